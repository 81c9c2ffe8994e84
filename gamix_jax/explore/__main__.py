"""A Gradio demo of a trained model: python -m gamix_jax.explore.

--workdir=runs/digits   workdir of a run, or a folder of exported weights
          pretrained:mnist     a model of this package; no training, no data
          hf:<user>/<repo>     a model of the Hugging Face hub
--port=7860             port of the page
--host=127.0.0.1        address to serve on; the default is local only
--which=ema|raw         averaged weights, or those of the last step
--step=1000             step of the checkpoint; default: newest
--config.data.source=folder:DIR     where the run's images are now

Needs pip install '.[explore]'. Press Ctrl-C to stop.
"""

import sys

from absl import flags

from gamix_jax import cli
from gamix_jax.errors import UserError


def main() -> None:
  """Serves the page."""
  given = flags.FLAGS
  if given.workdir is None:
    raise UserError("--workdir is missing; --help shows the command.")
  cli.use_compilation_cache()
  from gamix_jax import inference  # noqa: PLC0415  (flags come first)
  from gamix_jax.explore import app, multimodal_view, view  # noqa: PLC0415

  app.gradio()  # fails before anything is loaded
  model = inference.load(
    given.workdir, given.which, given.step, data=given.config.data
  )
  several = model.spec.multimodal
  views = multimodal_view if several else view
  held_out = True
  try:
    x = views.held_out(model)
  except UserError as e:
    # The data of a model by name may never have been on this machine.
    if model.folder == model.workdir or given.config.data.source:
      raise
    print(f"{e}\nSo the page shows samples of the model instead.", flush=True)
    held_out, x = False, views.stand_ins(model)
  made = multimodal_view.MultimodalView if several else view.View
  app.serve(made(model, x, held_out), given.host, given.port)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Workdir of the run.")
  flags.DEFINE_string("host", "127.0.0.1", "Address to serve on.")
  flags.DEFINE_integer("port", 7860, "Port of the page.", 1, 65535)
  flags.DEFINE_string("which", "ema", "ema (averaged) or raw weights.")
  flags.DEFINE_integer("step", None, "Step of the checkpoint; default: newest.")
  cli.define_data()
  sys.exit(cli.run(main, text=__doc__))
