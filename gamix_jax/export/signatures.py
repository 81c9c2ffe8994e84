"""The encoder and the decoder, each as a function of arrays.

encoder   x [b, h, w, c] in [-1, 1]  ->  mean, variance [b, d]; for a mixture
                                         also weights [b, k], means and
                                         variances [b, k, d]
decoder   z [b, d]                   ->  image [b, h, w, c] in [-1, 1]

Of several modalities the encoder takes a dict of all of them and of "mask"
[b, m], 1 where a modality is observed; what a missing one contains does not
matter. The decoder returns a dict of all of them.

The outputs exist for every family, since every posterior has a mean and
components, see `posterior.base`. A deterministic reconstruction decodes `mean`.
`variance` is that of z, per latent: sigma^2 for a Gaussian, r^2 / 5 for an
Epanechnikov kernel, the rate for a Poisson distribution.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gamix_jax import build, metrics
from gamix_jax.config import ConfigDict
from gamix_jax.inference.base import LoadedModel
from gamix_jax.modality import IMAGE, MASK, Modality
from gamix_jax.posterior import Posterior

PARTS = ("encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class Input:
  """An input of a part.

  Attributes:
    shape: of one row.
    dtype: of the array.
    range: of the values; None if unbounded.
    classes: whether the last axis has probabilities.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  range: tuple[float, float] | None = None
  classes: bool = False

  def probe(self, rng: np.random.Generator, rows: int) -> np.ndarray:
    """Returns test values: uniform noise, probabilities, or N(0, I)."""
    shape = (rows, *self.shape)
    if self.classes:
      x = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
    else:
      x = rng.uniform(-1, 1, shape) if self.range else rng.normal(size=shape)
    return x.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Part:
  """An encoder or a decoder.

  Attributes:
    name: a name in PARTS.
    function: jax.Array -> {output name: jax.Array}; of several inputs it takes
      a dict of arrays.
    model: the same of NumPy arrays, computed by the model.
    inputs: by name.
    packed: whether the function takes a dict, also of one input.
  """

  name: str
  function: Callable[[Any], dict[str, jax.Array]]
  model: Callable[[Any], dict[str, np.ndarray]]
  inputs: dict[str, Input]
  packed: bool = False

  def pack(self, arrays: dict[str, Any]) -> Any:
    """The argument of `function` for inputs by name."""
    return arrays if self.packed else next(iter(arrays.values()))

  def shapes(self, rows: Any) -> Any:
    """The shapes and dtypes of the argument, for a number of rows."""
    return self.pack(
      {
        k: jax.ShapeDtypeStruct((rows, *v.shape), v.dtype)
        for k, v in self.inputs.items()
      }
    )

  def probe(self, rows: int) -> dict[str, np.ndarray]:
    """Returns test inputs by name."""
    rng = np.random.default_rng(rows)
    x = {k: v.probe(rng, rows) for k, v in self.inputs.items()}
    if MASK in x:
      m = x[MASK].shape[1]
      x[MASK] = (x[MASK] > 0).astype(x[MASK].dtype)
      x[MASK][np.arange(rows), np.arange(rows) % m] = 1  # none is empty
    return x

  def outputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of the outputs for two rows."""
    return jax.eval_shape(self.function, self.shapes(2))


def describe(q: Posterior) -> dict[str, jax.Array]:
  """Returns the encoder's outputs, by name, for a posterior."""
  outputs = {"mean": q.mean(), "variance": metrics.total_variance(q)}
  weights, means, variances = q.components()
  if means.shape[1] > 1:
    outputs |= {"weights": weights, "means": means, "variances": variances}
  return outputs


def part(model: LoadedModel, name: str) -> Part:
  """Returns a part of a model: "encoder" or "decoder"."""
  return _encoder(model) if name == "encoder" else _decoder(model)


def _encoder(model: LoadedModel) -> Part:
  spec, vae = model.spec, jax.device_get(model.variables["vae"])
  several, dtype = spec.multimodal, np.dtype(spec.dtype)

  def encode(x):
    x = x if several else {IMAGE: x}
    return describe(spec.vae.apply(vae, x, method="encode"))

  def by_model(x):
    if several:
      return jax.device_get(describe(model.encode(x)))
    nothing = np.zeros((len(x), 4), np.int32)  # what to hide is the user's
    return jax.device_get(describe(model.encode(x, nothing)))

  if several:
    inputs = {k: _input(m, dtype) for k, m in spec.modalities.items()}
    inputs[MASK] = Input((len(spec.modalities),), dtype, (0.0, 1.0))
  else:
    inputs = {"x": _input(spec.image, dtype)}
  return Part("encoder", encode, by_model, inputs, packed=several)


def _input(modality: Modality, dtype: np.dtype) -> Input:
  if modality.is_image:
    return Input(modality.shape, dtype, (-1.0, 1.0))
  classes = modality.likelihood.categorical
  bounds = (0.0, 1.0) if classes else None
  return Input(modality.shape, dtype, bounds, classes)


def _decoder(model: LoadedModel) -> Part:
  spec, vae = model.spec, jax.device_get(model.variables["vae"])

  def decode(z):
    x_hat = spec.vae.apply(vae, z, method="decode")
    return {k: spec.modalities[k].shown(v) for k, v in x_hat.items()}

  def by_model(z):
    decoded = model.decode(z)
    return decoded if spec.multimodal else {IMAGE: decoded}

  z = Input((spec.vae.latent,), np.dtype(spec.dtype))
  return Part("decoder", decode, by_model, {"z": z})


def in_float32(model: LoadedModel) -> LoadedModel:
  """Returns the model with weights and computation in float32."""
  if model.config.dtype == "float32":
    return model
  config = ConfigDict(model.config)
  config.dtype = "float32"
  trees = jax.tree.map(lambda x: x.astype(np.float32), model.variables)
  return type(model)(
    config, build.train_spec(config), model.step, **trees, which=model.which
  )
