"""Exports a trained model for other programs: python -m gamix_jax.export.

--workdir=runs/digits        workdir of a run, or a folder of exported weights
--what=encoder|decoder|model part to export; model only as safetensors
--format=stablehlo           <what>.stablehlo: read by jax.export.deserialize
         onnx                <what>.onnx; needs pip install '.[onnx]'
         safetensors         <what>.safetensors and config.json
--out=DIR                    output folder; default: <workdir>/export
--which=ema|raw              averaged weights, or those of the last step
--step=1000                  step of the checkpoint; default: newest
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

  export.check(given.what, given.format)
  workdir = paths.resolve(given.workdir)
  model = inference.load(workdir, given.which, given.step)
  out = paths.resolve(given.out) if given.out else workdir / "export"
  written = export.export(model, given.what, given.format, out)
  for name, description in written.items():
    print(f"{out / name}: {description}.")


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Workdir of the run.")
  flags.DEFINE_string("what", None, "encoder, decoder or model.")
  flags.DEFINE_string("format", None, "stablehlo, onnx or safetensors.")
  flags.DEFINE_string("out", None, "Output folder.")
  flags.DEFINE_string("which", "ema", "ema (averaged) or raw weights.")
  flags.DEFINE_integer("step", None, "Step of the checkpoint; default: newest.")
  sys.exit(cli.run(main, text=__doc__))
