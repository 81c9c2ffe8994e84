"""Exports a trained model for other programs: python -m gamix_jax.export.

--workdir=runs/digits        workdir of a run, or a folder of exported weights
--what=encoder|decoder|model part to export; model only as safetensors
--format=stablehlo           <what>.stablehlo: read by jax.export.deserialize
         onnx                <what>.onnx; needs pip install '.[onnx]'
         safetensors         <what>.safetensors and config.json; of the
                             model also a card: the Hugging Face hub takes
                             the folder as it is
--out=DIR                    output folder; default: <workdir>/export
--which=ema|raw              averaged weights, or those of the last step
--step=1000                  step of the checkpoint; default: newest
--name=hf:<user>/<repo>      for the card: the model's future name,
--license=mit                the licence of the weights,
--dataset=ylecun/mnist       the hub's names of the data,
--source=idx:data/mnist      in place of the data's path on this machine,
--notes=FILE.md              Markdown of your own
"""

import sys

from absl import flags

from gamix_jax import cli, paths
from gamix_jax.errors import UserError


def main() -> None:
  """Exports the part that the flags specify."""
  given = flags.FLAGS
  for name in ("workdir", "what", "format"):
    if getattr(given, name) is None:
      raise UserError(f"--{name} is missing; --help shows the command.")
  cli.use_compilation_cache()
  from gamix_jax import export, inference  # noqa: PLC0415  (flags come first)

  facts = export.Facts(
    given.name or "",
    given.license or "",
    tuple(given.dataset or ()),
    given.source or "",
    _read_notes(given.notes) if given.notes else "",
  )
  export.check(given.what, given.format, facts)
  model = inference.load(given.workdir, given.which, given.step)
  out = paths.resolve(given.out) if given.out else model.workdir / "export"
  written = export.export(model, given.what, given.format, out, facts)
  for name, description in written.items():
    print(f"{out / name}: {description}.")


def _read_notes(file: str) -> str:
  try:
    return paths.resolve(file).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(
      f"--notes={file} cannot be read as text ({type(e).__name__})."
    ) from e


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Workdir of the run.")
  flags.DEFINE_string("what", None, "encoder, decoder or model.")
  flags.DEFINE_string("format", None, "stablehlo, onnx or safetensors.")
  flags.DEFINE_string("out", None, "Output folder.")
  flags.DEFINE_string("which", "ema", "ema (averaged) or raw weights.")
  flags.DEFINE_integer("step", None, "Step of the checkpoint; default: newest.")
  flags.DEFINE_string("name", None, "By which the model will be loaded.")
  flags.DEFINE_string("license", None, "Of the weights, as the hub calls it.")
  flags.DEFINE_list("dataset", None, "Names of the data on the hub.")
  flags.DEFINE_string("source", None, "Written as data.source.")
  flags.DEFINE_string("notes", None, "A Markdown file for the card.")
  sys.exit(cli.run(main, text=__doc__))
