"""Features of images, between which distances are taken."""

import hashlib
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax import paths, pictures
from gamix_jax.errors import UserError

FEATURE_WIDTHS = (16, 32, 64)
FEATURE_BATCH = 256
INCEPTION_BATCH = 32  # 299x299 each
# How the SHA-256 of the FID's own weights begins; their file's name ends so.
FID_WEIGHTS = "6726825d"


class random_features:
  """Features of a fixed random conv network: no download, no training.

  3x3 convolutions with stride 2, He-scaled normal weights and leaky ReLU; the
  mean and the standard deviation over space of every layer. The weights come
  from NumPy's PCG64, so they are the same on every platform.

  A `frechet_distance` of these is called `fd_<name>`. It is never an FID and
  not on its scale: compare it with numbers of the same name and data only.
  `name` is the network's, `width` is f.
  """

  def __init__(self, shape: tuple[int, int, int], seed: int = 0):
    """Draws the weights, by `seed`, for images of `shape` (h, w, c).

    Raises:
      UserError: if the images are under 8x8.
    """
    if len(shape) != 3 or min(shape[:2]) < 8 or shape[2] < 1:
      raise UserError(
        f"random_features needs images (h, w, c) of 8x8 or more, not {shape}."
      )
    rng = np.random.Generator(np.random.PCG64(seed))
    self.shape = tuple(shape)
    self.kernels = []
    inputs = shape[2]
    for outputs in FEATURE_WIDTHS:
      kernel = rng.standard_normal((3, 3, inputs, outputs))
      kernel *= math.sqrt(2 / (9 * inputs))
      self.kernels.append(jnp.asarray(kernel, jnp.float32))
      inputs = outputs
    self.width = 2 * sum(FEATURE_WIDTHS)
    self.name = f"random_conv_f{self.width}_s{seed}"

  def __call__(self, x: jax.Array) -> np.ndarray:
    """Images [b, h, w, c] in [-1, 1] -> float32 features [b, f].

    Raises:
      UserError: if the images have another shape than was said.
    """
    if x.ndim != 4 or x.shape[1:] != self.shape:
      raise UserError(
        f"{self.name} was made for images {self.shape}, not {x.shape[1:]}."
      )
    out = np.empty((len(x), self.width), np.float32)
    for start in range(0, len(x), FEATURE_BATCH):
      rows = slice(start, start + FEATURE_BATCH)
      part = jnp.asarray(x[rows], jnp.float32)
      out[rows] = jax.device_get(_conv_features(self.kernels, part))
    return out


@jax.jit
def _conv_features(kernels: list[jax.Array], x: jax.Array) -> jax.Array:
  pooled = []
  for kernel in kernels:
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(2, 2),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision=jax.lax.Precision.HIGHEST,  # the same number on any device
    )
    x = jax.nn.leaky_relu(x, 0.2)
    pooled += [jnp.mean(x, axis=(1, 2)), jnp.std(x, axis=(1, 2))]
  return jnp.concatenate(pooled, axis=-1)


class inception_features:
  """The 2,048 pooled features of Inception-v3, with weights from a file.

  torch-fidelity's network, which resizes to 299x299 as TensorFlow 1 did and
  agrees with the FID's own; grey images are shown in three equal channels. A
  `frechet_distance` of these is an FID (Heusel et al., arXiv:1706.08500) if
  the file is the FID's, weights-inception-2015-12-05-6726825d.pth; else it is
  called `fd_<name>`. Nothing is ever downloaded.

  Attributes:
    name: "inception", with the hash's first digits where it is another file.
    sha256: of the file.
    official: whether it is the FID's.
    width: 2048.
  """

  def __init__(self, weights: str | Path):
    """Reads the file.

    Raises:
      UserError: torch-fidelity is not installed, there is no such file, it
        holds other weights.
    """
    file = paths.resolve(weights)
    if not file.is_file():
      raise UserError(
        f"eval.inception_weights={file}: there is no such file. It is "
        "weights-inception-2015-12-05-6726825d.pth of torch-fidelity's release "
        "v0.2.0 on GitHub; nothing is downloaded here."
      )
    try:
      import torch  # noqa: PLC0415
      from torch_fidelity.feature_extractor_inceptionv3 import (  # noqa: PLC0415
        FeatureExtractorInceptionV3,
      )
    except (
      ImportError,
      RuntimeError,
    ) as e:  # also torchvision of another torch
      raise UserError(
        "Features of Inception need torch-fidelity: pip install "
        f"'gamix_jax[fid]'. Importing it says: {str(e)[:120]}"
      ) from e
    with file.open("rb") as f:
      self.sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    self.official = self.sha256.startswith(FID_WEIGHTS)
    self.name = "inception" + ("" if self.official else f"_{self.sha256[:8]}")
    self.width = 2048
    try:
      # First as data alone: torch-fidelity would run what a file holds.
      torch.load(file, weights_only=True)
      self._network = FeatureExtractorInceptionV3(
        "inception-v3-compat",
        [str(self.width)],
        feature_extractor_weights_path=str(file),
      )
    except Exception as e:  # a file fails to unpickle in many ways
      reason = str(e).splitlines() or [type(e).__name__]
      raise UserError(
        f"eval.inception_weights={file} holds no weights of torch-fidelity's "
        f"Inception-v3: {reason[0][:120]}"
      ) from e

  def __call__(self, x: np.ndarray) -> np.ndarray:
    """Images [b, h, w, 1 or 3] in [-1, 1], as 8 bits -> float32 [b, 2048]."""
    import torch  # noqa: PLC0415

    x = pictures.to_uint8(x)
    x = np.moveaxis(np.broadcast_to(x, (*x.shape[:3], 3)), -1, 1)
    parts = []
    with torch.no_grad():
      for start in range(0, len(x), INCEPTION_BATCH):
        part = np.ascontiguousarray(x[start : start + INCEPTION_BATCH])
        parts.append(self._network(torch.from_numpy(part))[0].numpy())
    return np.concatenate(parts)
