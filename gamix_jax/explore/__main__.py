"""A page to touch a trained model on: python -m gamix_jax.explore.

--workdir=runs/digits   of a run, or a folder of exported weights
--port=7860             of the page
--host=127.0.0.1        who reaches it: this machine alone, unless told
--which=ema|raw         the averaged weights, or the last step's
--step=1000             of that checkpoint; the newest if left out
--config.data.source=folder:DIR     where the run's images lie now

Needs pip install '.[explore]'. Ctrl-C ends it.
"""

import sys

from absl import flags

from gamix_jax import cli
from gamix_jax.errors import UserError


def main() -> None:
  """Serves as the flags say."""
  given = flags.FLAGS
  if given.workdir is None:
    raise UserError("--workdir is missing; --help shows the command.")
  cli.use_compilation_cache()
  from gamix_jax import inference  # noqa: PLC0415  (flags come first)
  from gamix_jax.explore import app, view  # noqa: PLC0415

  app.gradio()  # a missing one is told before anything is loaded
  model = inference.load(
    given.workdir, given.which, given.step, data=given.config.data
  )
  app.serve(view.View(model, view.held_out(model)), given.host, given.port)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Of a run.")
  flags.DEFINE_string("host", "127.0.0.1", "Who reaches the page.")
  flags.DEFINE_integer("port", 7860, "Of the page.", 1, 65535)
  flags.DEFINE_string("which", "ema", "ema or raw.")
  flags.DEFINE_integer("step", None, "Of a checkpoint.")
  cli.define_data()
  sys.exit(cli.run(main, text=__doc__))
