"""Judges a trained model: python -m gamix_jax.evaluate --workdir=DIR.

--workdir=runs/digits        of the run; numbers and report go to its eval/
--which=ema                  its averaged weights, or raw
--step=600                   that checkpoint's; the newest if left out
--split=test                 images that are judged on, or train
--config.eval.images=2000    any key, see gamix_jax/evaluate/settings.py
--config.data.source=folder:DIR
                             where the run's images are now
--config.eval.inception_weights=FILE
                             FID, KID, ...: with Inception's weights of that
                             file, by pip install 'gamix_jax[fid]'
"""

import sys
import time

from absl import flags
from ml_collections import config_flags

from gamix_jax import cli
from gamix_jax.errors import UserError
from gamix_jax.evaluate import settings
from gamix_jax.locate import locate


def main() -> None:
  """Judges as the flags say.

  Raises:
    UserError: whatever is wrong with flags, run or data.
  """
  given = flags.FLAGS
  if not given.workdir:
    raise UserError("--workdir is missing; --help shows the command.")
  settings.check(given.config)
  cli.use_compilation_cache()
  where = locate(given.workdir)
  cli.keep_freed_memory(where)
  from gamix_jax.evaluate import (  # noqa: PLC0415
    eval_inputs,
    multimodal,
    multimodal_inputs,
    report,
    run_metrics,
  )
  from gamix_jax.inference.load import saved_config  # noqa: PLC0415
  from gamix_jax.training.progress import duration  # noqa: PLC0415

  start = time.monotonic()

  def say(line: str) -> None:
    print(f"{duration(time.monotonic() - start):>12}  {line}", flush=True)

  several = bool(saved_config(where.folder).data.modalities)
  if several:
    settings.check_multimodal(given.config)
  say(f"opening {given.workdir}, {'classifiers' if several else 'features'}")
  opened = multimodal_inputs.open_run if several else eval_inputs.open_run
  inputs = opened(
    where,
    given.config.eval,
    data_now=given.config.data,
    which=given.which,
    step=given.step,
    split=given.split,
  )
  run = (multimodal if several else run_metrics).evaluate(inputs, say)
  folder = inputs.model.workdir / "eval"
  report.write(folder, run)
  for warning in run.warnings:
    print(warning)
  for name, number in run.numbers.found.items():
    print(f"  {name:45} {report.cell(number)}")
  say(f"done: {folder / report.REPORT}, {report.NUMBERS}")


def define() -> None:
  """The flags."""
  flags.DEFINE_string("workdir", None, "The run's folder.")
  flags.DEFINE_string("which", "ema", "Of its weights: ema or raw.")
  flags.DEFINE_integer("step", None, "Of a checkpoint; the newest.")
  flags.DEFINE_string("split", "test", "Judged on: test or train.")
  config_flags.DEFINE_config_dict("config", settings.base())


if __name__ == "__main__":
  sys.exit(cli.run(main, define=define, text=__doc__))
