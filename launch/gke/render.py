"""Fills in a JobSet: python render.py TEMPLATE FLAGS ...; jobset.sh calls it.

What is filled in comes from the environment, is checked, and is written as
JSON, which YAML reads as it is: no value can become more than a value. It
needs Python alone, since it runs where gamix_jax need not be.
"""

import json
import math
import os
import re
import string
import sys
from pathlib import Path

# What a variable has to look like: the pattern, and that in words.
NAME = (r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?", "lower case, digits, -; up to 32")
LABEL = (r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "a label of GKE, as nvidia-l4")
COUNT = (r"[1-9][0-9]*", "a whole number from 1")
SHAPES = {
  "NAME": NAME,
  "IMAGE": (r"[\w./:@-]+", "the name of a container image"),
  "CLAIM": (r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", "a claim's name"),
  "HOSTS": COUNT,
  "MAX_RESTARTS": (r"[0-9]+", "a whole number"),
  "TPU": LABEL,
  "TOPOLOGY": (r"[0-9]+(x[0-9]+){1,2}", "as 4x4 or 2x2x4"),
  "CHIPS": COUNT,
  "GPU": LABEL,
  "GPUS": COUNT,
}
NUMBERS = ("HOSTS", "MAX_RESTARTS")  # a resource's quantity is text
SPOT = "cloud.google.com/gke-spot"


def values(names: set[str], flags: list[str]) -> dict[str, str]:
  """JSON for each name of a template.

  Raises:
    ValueError: a variable is missing or misshapen; it says which and how.
  """
  # Kubernetes would fill in $(...), but for a doubled dollar.
  flags = [flag.replace("$(", "$$(") for flag in flags]
  found = {"FLAGS": flags, "TOLERATIONS": []}
  if os.environ.get("SPOT", "0") != "0":
    found["TOLERATIONS"] = [
      {
        "key": SPOT,
        "operator": "Equal",
        "value": "true",
        "effect": "NoSchedule",
      }
    ]
  for name in sorted(names & SHAPES.keys()):
    pattern, words = SHAPES[name]
    value = os.environ.get(name, "")
    if not re.fullmatch(pattern, value):
      raise ValueError(f"set {name} ({value!r} now): {words}; see --help.")
    found[name] = int(value) if name in NUMBERS else value
  if {"TOPOLOGY", "HOSTS", "CHIPS"} <= names:
    chips = math.prod(map(int, found["TOPOLOGY"].split("x")))
    if chips != found["HOSTS"] * int(found["CHIPS"]):
      raise ValueError(
        f"TOPOLOGY={found['TOPOLOGY']} is {chips} chips, and HOSTS x CHIPS is "
        f"{found['HOSTS']} x {found['CHIPS']}."
      )
  if "HOSTS" in found:
    # An environment variable is text.
    found["HOSTS_TEXT"] = str(found["HOSTS"])
    # Where process 0 listens: the pod's name in the JobSet's own network.
    found["COORDINATOR"] = f"{found['NAME']}-host-0-0.{found['NAME']}:8476"
  found["SELECTOR"] = _selector(found)
  return {k: json.dumps(v) for k, v in found.items()}


def _selector(found: dict) -> dict[str, str]:
  """The labels of the nodes that will do."""
  labels = {}
  if "TPU" in found:
    labels["cloud.google.com/gke-tpu-accelerator"] = found["TPU"]
    labels["cloud.google.com/gke-tpu-topology"] = found["TOPOLOGY"]
  if "GPU" in found:
    labels["cloud.google.com/gke-accelerator"] = found["GPU"]
  if found["TOLERATIONS"]:
    labels[SPOT] = "true"
  return labels


def main() -> int:
  """Prints the JobSet; the exit code."""
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
