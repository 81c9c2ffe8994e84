"""The report of an evaluation: numbers and pictures, in Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gamix_jax import files, plots
from gamix_jax import pictures as png
from gamix_jax.evaluate import multimodal_pictures
from gamix_jax.evaluate.multimodal import MultimodalRun
from gamix_jax.evaluate.results import Number
from gamix_jax.evaluate.run_metrics import EvalRun
from gamix_jax.metrics.specs import SAMPLE_SETS, SECTIONS, by_spec, find
from gamix_jax.plots import named

NUMBERS, REPORT = "metrics.json", "report.md"
PAIRS, SAMPLES, COLUMNS = 32, 64, 16  # images in a picture
BY_SOURCE = "Samples"  # the section whose table has a column for each source
LONGEST_VALUE = 200  # letters of a protocol's value that are shown
SHOWN_UNITS = ("nats", "bits", "dB")  # the others are in the meanings


def markdown_table(
  header: Sequence[str], align: Sequence[str], rows: Iterable[Sequence[str]]
) -> str:
  """A table in Markdown; `align` has `---` or `---:` for each column."""
  lines = [header, align, *rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(number: Number) -> str:
  """`value ± error`; in words why there is none."""
  value, error = number["value"], number.get("error")
  if value is None:
    return f"- ({number['reason']})"
  unit = f" {number['unit']}" if number["unit"] in SHOWN_UNITS else ""
  if error is None:
    return f"{value:.5g}{unit}"
  # The error with two digits, the value with as many places.
  places = max(0, 1 - int(f"{error:e}".split("e")[1])) if error else 4
  if places > 8:
    return f"{value:.4g} ± {error:.2g}{unit}"
  return f"{value:.{places}f} ± {error:.{places}f}{unit}"


def _value(value: Any) -> str:
  if isinstance(value, list | tuple):
    return ", ".join(map(_value, value)) or "none"
  if isinstance(value, int):
    return f"{value:,}"
  return named(str(value), LONGEST_VALUE).replace("|", "\\|")


def _protocol(protocol: dict[str, Any]) -> str:
  """A protocol as a line; of a hash the first digits."""
  parts = {
    k: v[:12] if k.endswith("sha256") else v for k, v in protocol.items()
  }
  return "; ".join(f"{k} {_value(v)}" for k, v in parts.items())


def _shared(numbers: Iterable[Number]) -> dict[str, Any]:
  """What is the same in the protocols of all of several numbers."""
  first, *others = [n["protocol"] for n in numbers]
  if not others:
    return {}
  return {
    k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)
  }


def _own(number: Number, shared: dict[str, Any]) -> str:
  """What a number's protocol has besides, as a line."""
  return _protocol(
    {k: v for k, v in number["protocol"].items() if k not in shared}
  )


def _section(title: str, found: dict[str, Number]) -> Iterator[str]:
  here = {k: v for k, v in found.items() if find(k).section == title}
  if not here:
    return
  yield f"\n## {title}\n\n"
  specs = by_spec(k for k, v in here.items() if v["value"] is not None)
  there = {k: here[k] for names in specs.values() for k in names}
  if there:
    yield from (_by_source if title == BY_SOURCE else _by_name)(there)
  reasons: dict[str, list[str]] = {}
  for name, number in here.items():
    if name not in there:
      reasons.setdefault(number["reason"], []).append(f"`{name}`")
  for reason, names in reasons.items():
    yield f"- {', '.join(names)}: none; {reason.rstrip('.')}.\n"
  for spec, names in specs.items():
    shown = [_split(k)[0] if title == BY_SOURCE else k for k in names]
    shown = [f"`{k}`" for k in dict.fromkeys(shown)]
    yield f"- {', '.join(shown)}: {spec.meaning}.\n"


def _by_name(there: dict[str, Number]) -> Iterator[str]:
  """A line for each number."""
  shared = _shared(there.values())
  if shared:
    yield f"All of these: {_protocol(shared)}.\n\n"
  yield markdown_table(
    ("number", "", "value", "of"),
    ("---", "---", "---:", "---"),
    (
      (f"`{name}`", find(name).arrow, cell(number), _own(number, shared))
      for name, number in there.items()
    ),
  )
  yield "\n"


def _split(name: str) -> tuple[str, str]:
  """`precision_prior` as `precision_` and the set of images, `prior`."""
  kind = next(s for s in SAMPLE_SETS if name.endswith(f"_{s}"))
  return name.removesuffix(kind), kind


def _by_source(there: dict[str, Number]) -> Iterator[str]:
  """A line for each kind of number, a column for each set of images."""
  rows: dict[str, dict[str, Number]] = {}
  for name, number in there.items():
    stem, source = _split(name)
    rows.setdefault(stem, {})[source] = number
  sources = [s for s in SAMPLE_SETS if any(s in row for row in rows.values())]
  of_features = {
    k: v
    for number in there.values()
    for k, v in number["protocol"].items()
    if k.startswith(("features", "against", "neighbours", "kernel"))
  }
  shared = _shared(there.values()) | of_features
  yield f"All of these: {_protocol(shared)}.\n\n"
  yield markdown_table(
    ("", "", *(f"`{s}`" for s in sources)),
    ("---", "---", *["---:"] * len(sources)),
    (
      (
        f"`{stem}`",
        find(stem + next(iter(row))).arrow,
        *(cell(row[s]) if s in row else "-" for s in sources),
      )
      for stem, row in rows.items()
    ),
  )
  yield "\n"
  for source in sources:
    one = next(row[source] for row in rows.values() if source in row)
    own = _own(one, shared)
    if source == "training_images":
      own = own or "as many training images"
    if own:
      yield f"- `{source}`: {own}.\n"


def write(folder: Path, run: EvalRun | MultimodalRun) -> None:
  """Writes numbers, pictures and the report, each whole or not at all.

  Raises:
    UserError: a file cannot be written.
  """
  with files.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  numbers, inputs = run.numbers, run.inputs
  files.write_text(folder / NUMBERS, numbers.to_json())
  several = isinstance(run, MultimodalRun)
  pictures = multimodal_pictures.pictures if several else _pictures
  images = dict(pictures(folder, run))
  text = f"# Evaluation of step {inputs.model.step:,}\n\n"
  text += f"{_protocol(numbers.protocol)}.\n"
  text += "".join(f"\n**Note.** {line}\n" for line in run.warnings)
  for title in SECTIONS:
    text += "".join(_section(title, numbers.found))
    text += "".join(
      f"\n{caption}:\n\n![{caption}]({name})\n"
      for name, (where, caption) in images.items()
      if where == title
    )
  text += (
    "\n± is the standard error over the images that were measured, not over "
    f"trainings. `{NUMBERS}` holds every number with its whole "
    "protocol.\n"
  )
  files.write_text(folder / REPORT, text)


def _pictures(
  folder: Path, run: EvalRun
) -> Iterator[tuple[str, tuple[str, str]]]:
  """Files, the sections they belong to, captions."""
  shown = dict(run.shown)
  above, below = shown.pop("originals"), shown.pop("reconstructions")
  columns = min(COLUMNS, len(above))
  made = {
    "reconstructions.png": (
      *("Reconstructions", "images over their reconstructions"),
      png.pairs(above[:PAIRS], below[:PAIRS], columns),
    )
  }
  for source, x in shown.items():
    name = f"samples_{source}.png"
    made[name] = ("Samples", f"samples, source {source}", x[:SAMPLES])
  for name, (title, caption, x) in made.items():
    with files.writing(folder / name):
      png.save_png(folder / name, png.grid(x, columns))
    yield name, (title, caption)
  with files.writing(folder / "latents.png"):
    path = folder / "latents.png"
    plots.latents(path, *run.moments, run.standard_prior)
  yield "latents.png", ("Latents", "variances and correlations of the codes")
  if run.scores:
    unseen = named(f"held out: {', '.join(run.inputs.excluded)}")
    with files.writing(folder / "anomalies.png"):
      plots.anomalies(folder / "anomalies.png", run.scores, unseen)
    yield "anomalies.png", ("Anomalies", "scores of the two sets of images")
