"""The model card of exported weights: the README.md of a Hugging Face model.

Its header is YAML that the hub reads:
https://huggingface.co/docs/hub/model-cards. The text says what the model is,
how it is opened, what it was trained on and what `evaluate` measured.
"""

import dataclasses
import json
import platform
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

import gamix_jax
from gamix_jax import pictures
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.evaluate.report import NUMBERS, cell, markdown_table
from gamix_jax.evaluate.results import FORMAT, Number
from gamix_jax.inference.base import LoadedModel
from gamix_jax.metrics.specs import find

CARD, PICTURE = "README.md", "samples.png"
LIBRARY = "library_name: gamix_jax"  # a line of every card that this writes
SAMPLES, COLUMNS = 32, 8
TASK = "unconditional-image-generation"  # the hub's name for it
PAPER = "https://arxiv.org/abs/2309.13160"
# The numbers that a card shows, as a regular expression of their names.
HEADLINES = re.compile(
  r"mae(/\w+)?|psnr|ssim|accuracy/\w+"
  r"|(fid|fd_\w+)_(reconstructions|prior|gmm|training_images)"
  r"|coherence_size/\d+|joint_coherence|sample_classes"
  r"|elbo|iwae|log_likelihood_gap|mcc_\w+"
  r"|active_units|mutual_information|linear_probe(_size/\d+)?|knn"
)


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a run does not know about itself.

  Attributes:
    name: by which `gamix_jax.load` will open the model.
    license: of the weights, an identifier of the hub such as "mit".
    datasets: identifiers of the hub, such as "ylecun/mnist".
    source: written as `data.source`, in place of the path on this machine.
    notes: Markdown: the data and their licence, hardware, limits, ...
  """

  name: str = ""
  license: str = ""
  datasets: Sequence[str] = ()
  source: str = ""
  notes: str = ""


def read_numbers(model: LoadedModel) -> dict[str, Any] | None:
  """What `evaluate` measured of these weights: the contents of metrics.json.

  Searched in the workdir's `eval/`, then in the folder of exported weights.

  Returns:
    None if the weights were not evaluated; numbers of another step, or of raw
    instead of averaged weights, do not count.

  Raises:
    UserError: if a file is damaged.
  """
  files = [model.workdir / "eval" / NUMBERS] if model.workdir else []
  files += [model.folder / NUMBERS] if model.folder else []
  for file in files:
    if not file.is_file():
      continue
    try:
      found = json.loads(file.read_text(encoding="utf-8"))
      protocol, _ = found["protocol"], found["numbers"].items()
      step, weights = protocol["step"], protocol["weights"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
      raise UserError(
        f"{file} is damaged ({e}); run python -m gamix_jax.evaluate again, or "
        "remove it."
      ) from e
    same = step == model.step and (model.which == "ema") == ("ema" in weights)
    if same and found.get("format") == FORMAT:
      return found
  return None


def shown(found: Mapping[str, Any] | None) -> dict[str, Number]:
  """The numbers of a card: HEADLINES that have a value."""
  if found is None:
    return {}
  return {
    name: number
    for name, number in sorted(found["numbers"].items())
    if number["value"] is not None and HEADLINES.fullmatch(name)
  }


def draw_samples(model: LoadedModel) -> np.ndarray | None:
  """A grid of new images, uint8 [h, w, c].

  Of several modalities a row for each that is an image; images in a column
  belong together.

  Returns:
    None if nothing can be drawn: without images, or without a prior or fitted
    samplers to draw latents from.
  """
  names = [k for k, m in model.spec.modalities.items() if m.is_image]
  source = model.default_source
  if not names or (source != "prior" and model.fitted is None):
    return None
  n = COLUMNS if model.spec.multimodal else SAMPLES
  x = model.sample(jax.random.key(0), n, source=source)
  if model.spec.multimodal:
    return pictures.rows([x[k] for k in names])
  return pictures.grid(x, COLUMNS)


def markdown(
  model: LoadedModel,
  config: ConfigDict,
  facts: Facts,
  found: Mapping[str, Any] | None,
  picture: bool,
) -> str:
  """The card.

  Args:
    model: that was exported.
    config: that is written beside it.
    facts: what the run does not know.
    found: see `read_numbers`.
    picture: whether PICTURE is beside it.
  """
  title = facts.name.rpartition(":")[2].rpartition("/")[2]
  title = title or (model.workdir.name if model.workdir else "gamix_jax")
  parts = [_header(model, config, facts, found, title), f"# {title}\n"]
  parts.append(_paragraph(_what(model)))
  if picture:
    parts.append(_picture(model))
  parts.append(_use(model, facts))
  parts.append("## Training\n")
  parts.append(
    markdown_table(("", ""), ("---", "---"), _training(model, config))
  )
  parts.append("Every key is in `config.json`.\n")
  if facts.notes:
    parts.append(facts.notes.strip() + "\n")
  parts.append(_numbers(found))
  return "\n".join(parts)


def _header(
  model: LoadedModel,
  config: ConfigDict,
  facts: Facts,
  found: Mapping[str, Any] | None,
  title: str,
) -> str:
  numbers = shown(found)
  images = any(m.is_image for m in model.spec.modalities.values())
  tags = ["vae", "variational-autoencoder", "gamix", "jax", "flax"]
  header: dict[str, Any] = {}
  if facts.license:
    header["license"] = facts.license
  key, _, value = LIBRARY.partition(": ")
  header[key] = value
  if images:
    header["pipeline_tag"] = TASK
  header["tags"] = tags + ["multimodal"] * model.spec.multimodal
  if facts.datasets:
    header["datasets"] = list(facts.datasets)
  if numbers:
    source = config.data.source
    header["metrics"] = list(numbers)
    header["model-index"] = [
      {
        "name": title,
        "results": [
          {
            "task": {"type": TASK if images else "other"},
            "dataset": {
              "type": facts.datasets[0] if facts.datasets else source,
              "name": source,
              "split": found["protocol"]["split"],
            },
            "metrics": [
              {"type": k, "name": _label(k), "value": v["value"]}
              for k, v in numbers.items()
            ],
          }
        ],
      }
    ]
  text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
  return f"---\n{text}---\n"


def _label(name: str) -> str:
  """The metric in words, without its arrow."""
  return find(name).title(name).rstrip("↑↓ ")


def _paragraph(text: str) -> str:
  lines = textwrap.fill(
    text, 80, break_long_words=False, break_on_hyphens=False
  )
  return lines + "\n"


def _what(model: LoadedModel) -> str:
  """The model in two sentences."""
  config, latent = model.config, model.spec.vae.latent
  if model.spec.multimodal:
    names = ", ".join(
      f"{k} ({'x'.join(map(str, m.shape))})"
      for k, m in model.spec.modalities.items()
    )
    kind = (
      "A variational autoencoder of several modalities, any of which may be "
      f"missing: {names}. It has {latent} latents, fusion "
      f"{config.multimodal.fusion!r}"
    )
  else:
    size = "x".join(map(str, model.spec.image.shape))
    kind = (
      f"A variational autoencoder of images, {size}. It has {latent} latents"
    )
  gamix = config.objective.name == "gamix"
  paper = f" ([GAMIX-VAE]({PAPER}))" if gamix else ""
  return (
    f"{kind} and the posterior {config.posterior.name!r}, and was trained with "
    f"the objective {config.objective.name!r}{paper} of gamix_jax."
  )


def _picture(model: LoadedModel) -> str:
  source = model.default_source
  drawn = {"prior": "the prior"}.get(source, "a mixture fitted to the codes")
  text = f"New images: draws of {drawn}, decoded."
  if model.spec.multimodal:
    names = [k for k, m in model.spec.modalities.items() if m.is_image]
    text += f" Rows: {', '.join(names)}; images in a column belong together."
  return f"![samples]({PICTURE})\n\n{_paragraph(text)}"


def _use(model: LoadedModel, facts: Facts) -> str:
  name = facts.name or "hf:<user>/<repo>"
  which = "" if model.which == "ema" else f', "{model.which}"'
  x = "observations" if model.spec.multimodal else "images"
  source = model.default_source
  given = "" if source == "prior" else f', source="{source}"'
  fit = (
    "" if source == "prior" else "model.fit_samplers(training_observations)\n"
  )
  return (
    "## Use\n\n```python\nimport gamix_jax, jax\n\n"
    f'model = gamix_jax.load("{name}"{which})\n'
    f"q = model.encode({x})  # the posterior\n"
    f"x_hat = model.reconstruct({x})\n{fit}"
    f"new = model.sample(jax.random.key(0), 16{given})\n```\n\n"
    + _paragraph(
      "Meant for experiments with latent spaces, for teaching, and as a "
      "baseline. It knows only data like those it was trained on; what it "
      "generates is not evidence of anything."
    )
  )


def _training(model: LoadedModel, c: ConfigDict) -> list[tuple[str, str]]:
  count = sum(v.size for v in jax.tree.leaves(model.variables))
  objective = c.objective.name
  if c.weights.population_kl is not None:
    objective += f", population {c.objective.population!r}"
  weights = ", ".join(f"{k} {v:g}" for k, v in _weights(c).items())
  kinds = {"ema": "averaged", "raw": "those of the last step"}
  observations = "observations" if c.data.modalities else "images"
  return [
    ("data", f"`{c.data.source}`, fingerprint `{c.data.fingerprint}`"),
    (
      "networks",
      f"encoder {c.model.encoder!r}, decoder {c.model.decoder!r}; "
      f"{count:,} values",
    ),
    ("posterior, prior", f"{c.posterior.name}, {c.prior.name}"),
    ("objective", objective),
    ("likelihood", _likelihood(c)),
    ("weights of the terms", weights),
    ("steps", f"{model.step:,} of {c.data.batch_size} {observations}"),
    ("seed", str(c.seed)),
    ("weights", f"{kinds[model.which]}, {c.dtype}"),
    (
      "exported with",
      f"gamix_jax {gamix_jax.__version__}, JAX {jax.__version__}, Python "
      f"{platform.python_version()}",
    ),
  ]


def _weights(config: ConfigDict) -> dict[str, float]:
  return {k: v for k, v in config.weights.items() if v is not None}


def _likelihood(config: ConfigDict) -> str:
  if config.data.modalities:
    return "; ".join(config.data.modalities)
  return config.objective.reconstruction


def _numbers(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return (
      "## Numbers\n\nNone: these weights were not evaluated (python -m "
      "gamix_jax.evaluate).\n"
    )
  p = found["protocol"]
  rows = [
    (f"`{k}`", find(k).title(k), cell(v)) for k, v in shown(found).items()
  ]
  table = markdown_table(("", "", "value"), ("---", "---", "---:"), rows)
  n = p.get("split_images") or p.get("split_observations")
  return (
    "## Numbers\n\n"
    + _paragraph(
      f"By `python -m gamix_jax.evaluate`, on up to {n:,} of the split "
      f"`{p['split']}`, with gamix_jax {p['gamix_jax']} and JAX {p['jax']}; "
      f"`{NUMBERS}` has all, each with its protocol."
    )
    + f"\n{table}"
  )


def is_card(file: Path) -> bool:
  """Whether a README.md was written by this module."""
  text = file.read_text(encoding="utf-8", errors="replace")
  return text.startswith("---\n") and LIBRARY in text.splitlines()
