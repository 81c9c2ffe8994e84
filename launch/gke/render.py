"""Renders a JobSet template: python render.py TEMPLATE FLAGS ...

Called by jobset.sh. Values come from environment variables, are validated, and
are written as JSON, which is valid YAML, so no value can inject other YAML. It
uses only the standard library, so that gamix_jax need not be installed.
"""

import json
import math
import os
import re
import string
import sys
from pathlib import Path

# Each variable's pattern, and its description.
NAME = (
  r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?",
  "lower-case letters, digits and -, at most 32",
)
LABEL = (r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "a GKE label, such as nvidia-l4")
COUNT = (r"[1-9][0-9]*", "a whole number, at least 1")
PATTERNS = {
  "NAME": NAME,
  "IMAGE": (r"[\w./:@-]+", "the name of a container image"),
  "CLAIM": (r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "the name of a claim"),
  "HOSTS": COUNT,
  "MAX_RESTARTS": (r"[0-9]+", "a whole number"),
  "TPU": LABEL,
  "TOPOLOGY": (r"[0-9]+(x[0-9]+){1,2}", "such as 4x4 or 2x2x4"),
  "CHIPS": COUNT,
  "GPU": LABEL,
  "GPUS": COUNT,
}
NUMERIC = ("HOSTS", "MAX_RESTARTS")  # a resource quantity is a string
SPOT = "cloud.google.com/gke-spot"


def values(names: set[str], flags: list[str]) -> dict[str, str]:
  """Returns the JSON of each variable of a template.

  Raises:
    ValueError: if a variable is missing or malformed; says which and why.
  """
  # Kubernetes would expand $(...); a doubled dollar prevents that.
  flags = [flag.replace("$(", "$$(") for flag in flags]
  variables = {"FLAGS": flags, "TOLERATIONS": []}
  if os.environ.get("SPOT", "0") != "0":
    variables["TOLERATIONS"] = [
      {
        "key": SPOT,
        "operator": "Equal",
        "value": "true",
        "effect": "NoSchedule",
      }
    ]
  for name in sorted(names & PATTERNS.keys()):
    pattern, description = PATTERNS[name]
    value = os.environ.get(name, "")
    if not re.fullmatch(pattern, value):
      raise ValueError(f"set {name}, now {value!r}: {description}; see --help.")
    variables[name] = int(value) if name in NUMERIC else value
  if {"TOPOLOGY", "HOSTS", "CHIPS"} <= names:
    chips = math.prod(map(int, variables["TOPOLOGY"].split("x")))
    if chips != variables["HOSTS"] * int(variables["CHIPS"]):
      raise ValueError(
        f"TOPOLOGY={variables['TOPOLOGY']} is {chips} chips, but HOSTS x CHIPS "
        f"is {variables['HOSTS']} x {variables['CHIPS']}."
      )
  if "HOSTS" in variables:
    # Environment variables are strings.
    variables["HOSTS_TEXT"] = str(variables["HOSTS"])
    # The coordinator's address: the pod's name in the JobSet's network.
    variables["COORDINATOR"] = (
      f"{variables['NAME']}-host-0-0.{variables['NAME']}:8476"
    )
  variables["SELECTOR"] = _selector(variables)
  return {k: json.dumps(v) for k, v in variables.items()}


def _selector(variables: dict) -> dict[str, str]:
  """Returns the labels of the nodes to use."""
  labels = {}
  if "TPU" in variables:
    labels["cloud.google.com/gke-tpu-accelerator"] = variables["TPU"]
    labels["cloud.google.com/gke-tpu-topology"] = variables["TOPOLOGY"]
  if "GPU" in variables:
    labels["cloud.google.com/gke-accelerator"] = variables["GPU"]
  if variables["TOLERATIONS"]:
    labels[SPOT] = "true"
  return labels


def main() -> int:
  """Prints the JobSet; returns the exit code."""
  template = string.Template(Path(sys.argv[1]).read_text())
  names = set(template.get_identifiers())
  if "CHIPS" in names:
    names |= {"TPU", "TOPOLOGY"}
  if "GPUS" in names:
    names.add("GPU")
  try:
    print(template.substitute(values(names, sys.argv[2:])), end="")
  except ValueError as e:
    print(f"jobset.sh: {e}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
