"""`ivae`: nonlinear ICA, with the segment as a second modality.

The bimodal simulation of Hirt, Campolo, Leong & Ortega, arXiv:2309.00380,
after Khemakhem et al., arXiv:1907.04809. A row belongs to one of five segments
k, each as likely. Its two sources are independent,
N(0, s_kj^2); a network of two layers mixes them:

    x = W_2 leaky(W_1 s) + noise of standard deviation 0.1

with random orthogonal W and leaky(t) = max(t, t / 10). Since a source's scale
differs between segments, the sources can be found up to permutation and scale;
`metrics.mcc_strong` says how well they were.

    x         float32 [2]
    segment   one-hot, float32 [5]; the label too

4,000 rows for training, 1,000 for the test. All is a function of the option
`seed` (`ivae?seed=3`), none of the run's seed.
"""

import numpy as np

from gamix_jax.data import options
from gamix_jax.data.modalities import chosen
from gamix_jax.data.multimodal import MultimodalArrays
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError

ROWS = {"train": 4000, "test": 1000}
NAMES = ("x", "segment")
SOURCES, SEGMENTS, NOISE = 2, 5, 0.1
# Standard deviations of sources, log-uniform.
SCALES = (0.3, 3.0)
_OPTIONS = {"seed": options.Integer(0, 0)}


class Ivae(MultimodalArrays):
  """One split, in memory.

  Attributes:
    latents: the true sources, float64 [n, 2].
  """

  def __init__(self, rest: str, split: str, settings: Settings, seed: int):
    """Draws the rows.

    Raises:
      UserError: an unknown option or modality.
    """
    del seed
    where, given = options.split(rest)
    if where:
      raise UserError(f"data.source=ivae takes options only, not {where}")
    data_seed = options.parse("ivae", given, _OPTIONS)["seed"]
    names = chosen(settings.modalities, NAMES, "ivae")
    fixed = np.random.default_rng((80, data_seed, 0))
    scales = np.exp(fixed.uniform(*np.log(SCALES), (SEGMENTS, SOURCES)))
    mixing = [
      np.linalg.qr(fixed.normal(size=(SOURCES, SOURCES)))[0] for _ in range(2)
    ]
    rng = np.random.default_rng((80, data_seed, 1, split == "test"))
    n = ROWS[split]
    segments = rng.integers(SEGMENTS, size=n)
    self.latents = scales[segments] * rng.normal(size=(n, SOURCES))
    hidden = self.latents @ mixing[0].T
    x = np.maximum(hidden, hidden / 10) @ mixing[1].T
    x = x + NOISE * rng.normal(size=x.shape)
    arrays = {
      "x": x.astype(np.float32),
      "segment": np.eye(SEGMENTS, dtype=np.float32)[segments],
    }
    super().__init__(
      {name: arrays[name] for name in names},
      segments,
      title=f"ivae/{split}",
      total=sum(ROWS.values()),
    )
