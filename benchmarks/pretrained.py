"""Writes a model that the package contains: python -m benchmarks.pretrained.

  python -m gamix_jax.main --config=configs/digits.py --workdir=runs/digits
  python -m gamix_jax.evaluate --workdir=runs/digits
  python -m benchmarks.pretrained --config=configs/digits.py \
      --workdir=runs/digits

Notes of each model's card, on its data and on the machine, are below.
"""

import dataclasses
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gamix_jax import cli, export, inference, presets
from gamix_jax import config as configs
from gamix_jax.errors import UserError
from gamix_jax.export import card
from gamix_jax.locate import PRETRAINED
from gamix_jax.training.workdir import RESUMABLE_KEYS

CONFIG = config_flags.DEFINE_config_file("config", help_string="Of the run.")
WORKDIR = flags.DEFINE_string("workdir", None, "Of the run, evaluated.")
LARGEST = 2_000_000  # bytes of a model's weights

_DIGITS = """\
The handwritten digits of the UCI repository (E. Alpaydin and C. Kaynak,
"Optical Recognition of Handwritten Digits", 1998; CC BY 4.0), as scikit-learn
contains them"""

FACTS = {
  "digits": export.Facts(
    name="pretrained:digits",
    license="mit",
    notes=f"""\
## Data

{_DIGITS}: 1,797 images of 8x8 grey levels, enlarged to 16x16; 332 of
them are held out.

## Machine

One of two cores of a shared cloud CPU, two minutes on the clock, beside other
programs: `python -m gamix_jax.main --config=configs/digits.py`.
""",
  ),
  "polydigits": export.Facts(
    name="pretrained:polydigits",
    license="mit",
    notes=f"""\
## Data

{_DIGITS}. Each view shows another digit of the same class on a
background that is drawn by code, 16x16 in colour, after PolyMNIST
(arXiv:2105.02470): 5,000 observations for training, 1,000 held out.

## Machine

Two cores of a shared cloud CPU, 2:43 minutes:
`python -m gamix_jax.main --config=configs/polydigits.py`.
""",
  ),
  "mnist": export.Facts(
    name="pretrained:mnist",
    license="mit",
    datasets=("ylecun/mnist",),
    notes="""\
## Data

MNIST (Y. LeCun, C. Cortes and C. J. C. Burges), 60,000 images for training and
10,000 held out. Its authors give no licence; the copy on the hub says MIT.

## Machine

One core of a shared cloud CPU, 20:58 CPU-minutes:
`python -m gamix_jax.main --config=configs/mnist.py`.
""",
  ),
  "fashion_mnist": export.Facts(
    name="pretrained:fashion_mnist",
    license="mit",
    datasets=("zalando-datasets/fashion_mnist",),
    notes="""\
## Data

Fashion-MNIST (H. Xiao, K. Rasul and R. Vollgraf, arXiv:1708.07747; MIT
licence), 60,000 images for training and 10,000 held out.

## Machine

One core of a shared cloud CPU, 32:34 CPU-minutes:
`python -m gamix_jax.main --config=configs/fashion_mnist.py`.
""",
  ),
}


def main() -> None:
  """Exports a run into the package.

  Raises:
    UserError: if the run is of another config, was not finished or not
      evaluated, or if its weights are too large.
  """
  config = presets.complete(CONFIG.value)
  file = config_flags.get_config_filename(flags.FLAGS["config"])
  name = Path(file).stem
  if not WORKDIR.value:
    raise UserError("--workdir is missing.")
  if name not in FACTS:
    raise UserError(f"--config={file}: there are no notes on it in FACTS.")
  model = inference.load(WORKDIR.value)
  saved = configs.differences(model.config, config)
  # What may change while a run continues does not change its weights.
  free = {"data.source", "data.fingerprint", *RESUMABLE_KEYS}
  other = saved.keys() - free
  if other or model.step != config.steps:
    raise UserError(
      f"{WORKDIR.value} is not a finished run of {file}: it is at step "
      f"{model.step}, and differs in {', '.join(sorted(other)) or 'no key'}."
    )
  if card.read_numbers(model) is None:
    raise UserError(f"{WORKDIR.value} was not evaluated.")
  out = PRETRAINED / name
  facts = dataclasses.replace(FACTS[name], source=config.data.source)
  export.export(model, "model", "safetensors", out, facts)
  sizes = {p.name: p.stat().st_size for p in out.iterdir()}
  print(f"{out}: {sizes} bytes")
  if sizes["model.safetensors"] > LARGEST:
    raise UserError(f"The weights have more than {LARGEST:,} bytes.")


if __name__ == "__main__":
  sys.exit(cli.start(main, __doc__))
