"""Numbers and pictures of an evaluation, to be read."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gamix_jax import files, pictures
from gamix_jax.evaluate import figure
from gamix_jax.evaluate.results import Number
from gamix_jax.evaluate.run_metrics import EvalRun
from gamix_jax.evaluate.settings import SOURCES
from gamix_jax.figures import named

NUMBERS, REPORT = "metrics.json", "report.md"
PAIRS, SAMPLES, COLUMNS = 32, 64, 16
CROSSED = "Samples"  # the section whose table has a column for each source
IMAGE_SETS = ("training_images", *SOURCES)  # those columns
WORDS = 200  # letters of a word of the protocol that are shown
SHORT = ("nats", "bits", "dB")  # units that stand beside a number


class MetricSpec(NamedTuple):
  """What numbers of a name are.

  Attributes:
    pattern: of the name, a regular expression.
    arrow: to the better side.
    meaning: in a sentence.
    label: for people; the pattern if left out.
  """

  pattern: str
  arrow: str
  meaning: str
  label: str = ""


SECTIONS: dict[str, tuple[MetricSpec, ...]] = {
  "Reconstructions": (
    MetricSpec("mae", "↓", "mean absolute error, pixels in [-1, 1]"),
    MetricSpec("psnr", "↑", "peak signal-to-noise ratio, mean over images"),
    MetricSpec("ssim", "↑", "structural similarity, 11x11 Gaussian window"),
    MetricSpec(
      "sharpness_(images|reconstructions)",
      "",
      "variance of the Laplacian; best is what the images have, not more",
      "sharpness_",
    ),
    MetricSpec(
      "(fid|fd)(_.*)?_reconstructions",
      "↓",
      "squared Frechet distance of reconstructions to their images; rFID with "
      "the FID's Inception",
      "fid_, fd_",
    ),
  ),
  "Samples": (
    MetricSpec(
      "(fid|fd)_.*",
      "↓",
      "squared Frechet distance of samples to images; fid_ with the FID's "
      "Inception, else fd_ and the features' name, never an FID. "
      "`training_images` is what as many real images get",
      "fid_, fd_",
    ),
    MetricSpec(
      "(kid|kd)_.*",
      "↓",
      "unbiased squared maximum mean discrepancy, cubic kernel; kid_ with the "
      "FID's Inception. May be under 0",
      "kid_, kd_",
    ),
    MetricSpec(
      "precision_.*", "↑", "share of samples near an image", "precision_"
    ),
    MetricSpec("recall_.*", "↑", "share of images near a sample", "recall_"),
    MetricSpec(
      "density_.*", "↑", "images' balls around a sample, over k", "density_"
    ),
    MetricSpec(
      "coverage_.*",
      "↑",
      "share of images with a sample in their ball",
      "coverage_",
    ),
    MetricSpec("sharpness_.*", "", "as of the images above", "sharpness_"),
  ),
  "Likelihood": (
    MetricSpec("elbo", "↑", "lower bound of ln p(x), mean over images"),
    MetricSpec(
      "iwae", "↑", "importance-weighted bound of so many draws, nearer"
    ),
    MetricSpec(
      "(elbo|iwae)_bits_per_dim",
      "↓",
      "the same, bits for each number of an image at 256 levels",
      "_bits_per_dim",
    ),
  ),
  "Latents": (
    MetricSpec(
      "kl",
      "",
      "mean KL(q(z given x) to p): `mutual_information` + `population_kl`",
    ),
    MetricSpec(
      "mutual_information",
      "",
      "of image and code; at most ln of the images' count: where it is near "
      "that, `population_kl` has what is cut off",
    ),
    MetricSpec(
      "active_units",
      "",
      "latents whose mean's variance is over 0.01; how much they tell is "
      "`mutual_information`, which may be near 0 with all of them active",
    ),
    MetricSpec("population_kl", "↓", "KL(q(z) to p): the next two's sum"),
    MetricSpec(
      "total_correlation", "↓", "KL of q(z) to its dimensions' product"
    ),
    MetricSpec(
      "dimension_kl", "↓", "KL of the dimensions to the prior's, summed"
    ),
    MetricSpec(
      "population_kl_gaussian", "↓", "of the Gaussian of q(z)'s moments"
    ),
    MetricSpec("collapsed_fraction", "", "posterior variances under 0.01"),
    MetricSpec(
      "(population|lifetime)_sparseness",
      "",
      "of rates, over the latents of an image and over the images of a latent; "
      "1 where one alone is not 0, 0 where all are alike",
      "_sparseness",
    ),
  ),
  "Anomalies": (
    MetricSpec(
      "auroc_.*",
      "↑",
      "chance that an image of a class held out of the training scores higher "
      "than one of the others; 0.5 is guessing",
      "auroc_",
    ),
  ),
  "Labels": (
    MetricSpec(
      "linear_probe", "↑", "accuracy of logistic regression on the codes"
    ),
    MetricSpec("knn", "↑", "accuracy of the nearest codes' vote"),
    MetricSpec("majority_class", "", "accuracy of always saying the commonest"),
  ),
}


def place(name: str) -> tuple[str, MetricSpec]:
  """The section that a number belongs to, and what it is."""
  for title, lines in SECTIONS.items():
    for line in lines:
      if re.fullmatch(line.pattern, name):
        return title, line
  raise KeyError(name)


def cell(number: Number) -> str:
  """`value ± error`; in words why there is none."""
  value, error = number["value"], number.get("error")
  if value is None:
    return f"- ({number['reason']})"
  unit = (
    f" {number['unit']}" if number["unit"] in ("nats", "bits", "dB") else ""
  )
  if error is None:
    return f"{value:.5g}{unit}"
  # The error with two digits, the value with as many places.
  places = max(0, 1 - int(f"{error:e}".split("e")[1])) if error else 4
  if places > 8:
    return f"{value:.4g} ± {error:.2g}{unit}"
  return f"{value:.{places}f} ± {error:.{places}f}{unit}"


def _words(value: Any) -> str:
  if isinstance(value, list | tuple):
    return ", ".join(map(_words, value)) or "none"
  if isinstance(value, int):
    return f"{value:,}"
  return named(str(value), WORDS).replace("|", "\\|")


def _own(number: Number) -> str:
  parts = {
    k: v[:12] if k.endswith("sha256") else v
    for k, v in number["protocol"].items()
  }
  return "; ".join(f"{k} {_words(v)}" for k, v in parts.items())


def _shared(numbers: list[Number]) -> dict[str, Any]:
  """What is the same in the protocols of all that are there."""
  first, *others = [n["protocol"] for n in numbers]
  return {
    k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)
  }


def _section(title: str, found: dict[str, Number]) -> Iterator[str]:
  here = {k: v for k, v in found.items() if place(k)[0] == title}
  there = {k: v for k, v in here.items() if v["value"] is not None}
  if not here:
    return
  yield f"\n## {title}\n\n"
  if there and title == CROSSED:
    yield from _crossed(title, there)
  elif there:
    yield from _listed(title, there)
  reasons: dict[str, list[str]] = {}
  for name, number in here.items():
    if name not in there:
      reasons.setdefault(number["reason"], []).append(f"`{name}`")
  for reason, names in reasons.items():
    yield f"- {', '.join(names)}: none; {reason.rstrip('.')}.\n"
  for line in SECTIONS[title]:
    if any(place(k)[1] is line for k in there):
      label = line.label or line.pattern
      yield f"- `{label}`: {line.meaning}.\n"


def _common(numbers: Iterable[Number]) -> tuple[dict[str, Any], str]:
  """What all protocols share, and a sentence of it."""
  numbers = list(numbers)
  shared = _shared(numbers) if len(numbers) > 1 else {}
  said = f"All of these: {_own({'protocol': shared})}.\n\n" if shared else ""
  return shared, said


def _rest(number: Number, shared: dict[str, Any]) -> str:
  """What a protocol has besides."""
  own = {k: v for k, v in number["protocol"].items() if k not in shared}
  return _own({"protocol": own})


def _listed(title: str, there: dict[str, Number]) -> Iterator[str]:
  """A line for each number."""
  shared, said = _common(there.values())
  yield f"{said}| number | | value | of |\n|---|---|---:|---|\n"
  for line in SECTIONS[title]:
    for name, number in there.items():
      if place(name)[1] is line:
        rest = _rest(number, shared)
        yield f"| `{name}` | {line.arrow} | {cell(number)} | {rest} |\n"
  yield "\n"


def _crossed(title: str, there: dict[str, Number]) -> Iterator[str]:
  """A line for each kind of number, a column for each set of images."""
  rows: dict[str, dict[str, Number]] = {}
  sources: list[str] = []
  for name, number in there.items():
    source = next(s for s in IMAGE_SETS if name.endswith(f"_{s}"))
    rows.setdefault(name.removesuffix(source), {})[source] = number
    if source not in sources:
      sources.append(source)
  of_features = {
    k: v
    for number in there.values()
    for k, v in number["protocol"].items()
    if k.startswith(("features", "against", "neighbours", "kernel"))
  }
  shared, _ = _common(there.values())
  yield f"All of these: {_own({'protocol': shared | of_features})}.\n\n"
  yield f"| | | {' | '.join(f'`{s}`' for s in sources)} |\n"
  yield "|---|---|" + "---:|" * len(sources) + "\n"
  for line in SECTIONS[title]:
    for stem, row in rows.items():
      if place(next(f"{stem}{s}" for s in row))[1] is line:
        cells = [cell(row[s]) if s in row else "-" for s in sources]
        yield f"| `{stem}` | {line.arrow} | {' | '.join(cells)} |\n"
  yield "\n"
  for source in sources:
    one = next(row[source] for row in rows.values() if source in row)
    rest = _rest(one, shared | of_features)
    if source == "training_images":
      rest = rest or "as many training images"
    if rest:
      yield f"- `{source}`: {rest}.\n"


def write(folder: Path, measured: EvalRun) -> None:
  """Writes numbers, pictures and the report, each whole or not at all.

  Raises:
    UserError: a file cannot be written.
  """
  with files.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  numbers, subject = measured.numbers, measured.subject
  files.write_text(folder / NUMBERS, numbers.to_json())
  images = dict(_pictures(folder, measured))
  text = f"# Evaluation of step {subject.model.step:,}\n\n"
  text += f"{_own({'protocol': numbers.protocol})}.\n"
  text += "".join(f"\n**Note.** {line}\n" for line in measured.warnings)
  for title in SECTIONS:
    text += "".join(_section(title, numbers.found))
    text += "".join(
      f"\n{caption}:\n\n![{caption}]({name})\n"
      for name, (where, caption) in images.items()
      if where == title
    )
  text += (
    "\n± is the standard error of the images that were looked at, not of "
    f"another training. `{NUMBERS}` holds every number with its whole "
    "protocol.\n"
  )
  files.write_text(folder / REPORT, text)


def _pictures(
  folder: Path, measured: EvalRun
) -> Iterator[tuple[str, tuple[str, str]]]:
  """Files, the sections they belong to, captions."""
  shown = dict(measured.shown)
  above, below = shown.pop("originals"), shown.pop("reconstructions")
  columns = min(COLUMNS, len(above))
  made = {
    "reconstructions.png": (
      *("Reconstructions", "images over their reconstructions"),
      pictures.pairs(above[:PAIRS], below[:PAIRS], columns),
    )
  }
  for source, x in shown.items():
    name = f"samples_{source}.png"
    made[name] = ("Samples", f"samples, source {source}", x[:SAMPLES])
  for name, (title, caption, x) in made.items():
    with files.writing(folder / name):
      pictures.save_png(folder / name, pictures.grid(x, columns))
    yield name, (title, caption)
  with files.writing(folder / "latents.png"):
    path = folder / "latents.png"
    figure.latent(path, *measured.moments, measured.standard)
  yield "latents.png", ("Latents", "variances and correlations of the codes")
  if measured.scores:
    odd = named(f"held out: {', '.join(measured.subject.excluded)}")
    with files.writing(folder / "anomalies.png"):
      figure.anomaly(folder / "anomalies.png", measured.scores, odd)
    yield "anomalies.png", ("Anomalies", "scores of the two sets of images")
