"""A trained model for other programs: python -m gamix_jax.export.

--workdir=runs/digits        of a run, or a folder of exported weights
--what=encoder|decoder       or model, of which safetensors alone are written
--format=stablehlo           <what>.stablehlo: read by jax.export.deserialize
         onnx                <what>.onnx; needs pip install '.[onnx]'
         safetensors         <what>.safetensors and config.json
--out=DIR                    where they go; <workdir>/export if left out
--which=ema|raw              the averaged weights, or the last step's
--step=1000                  of that checkpoint; the newest if left out
"""

import sys

from absl import flags

from gamix_jax import cli, paths
from gamix_jax.errors import UserError


def main() -> None:
  """Exports as the flags say."""
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
  for name, about in export.export(
    model, given.what, given.format, out
  ).items():
    print(f"{out / name}: {about}.")


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Of a run.")
  flags.DEFINE_string("what", None, "encoder, decoder or model.")
  flags.DEFINE_string("format", None, "stablehlo, onnx or safetensors.")
  flags.DEFINE_string("out", None, "The folder to write to.")
  flags.DEFINE_string("which", "ema", "ema or raw.")
  flags.DEFINE_integer("step", None, "Of a checkpoint.")
  sys.exit(cli.run(main, text=__doc__))
