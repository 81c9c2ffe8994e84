"""The encoder and the decoder, each as a function of one array.

encoder   x [b, h, w, c] in [-1, 1]  ->  mean, variance [b, d]; for a mixture
                                         also weights [b, k], means and
                                         variances [b, k, d]
decoder   z [b, d]                   ->  image [b, h, w, c] in [-1, 1]

The outputs exist for every family, since every posterior has a mean and
components, see `posterior.base`. A deterministic reconstruction decodes `mean`.
`variance` is that of z, per latent: sigma^2 for a Gaussian, r^2 / 5 for an
Epanechnikov kernel, the rate for a Poisson distribution.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax import build, metrics
from gamix_jax.config import ConfigDict
from gamix_jax.inference import Model
from gamix_jax.modality import IMAGE
from gamix_jax.posterior import Posterior

PARTS = ("encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class Part:
  """An encoder or a decoder.

  Attributes:
    name: a name in PARTS.
    function: jax.Array -> {output name: jax.Array}.
    model: NumPy array -> {output name: NumPy array}, computed by `Model`.
    input: name of the input.
    shape: shape of one row of the input.
    dtype: dtype of the input.
    range: range of the input; None if unbounded.
  """

  name: str
  function: Callable[[jax.Array], dict[str, jax.Array]]
  model: Callable[[np.ndarray], dict[str, np.ndarray]]
  input: str
  shape: tuple[int, ...]
  dtype: np.dtype
  range: tuple[float, float] | None

  def probe(self, rows: int) -> np.ndarray:
    """Returns test inputs: uniform noise, or latents from N(0, I)."""
    rng = np.random.default_rng(rows)
    shape = (rows, *self.shape)
    x = rng.uniform(-1, 1, shape) if self.range else rng.normal(size=shape)
    return x.astype(self.dtype)

  def outputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of the outputs for two rows."""
    x = jax.ShapeDtypeStruct((2, *self.shape), self.dtype)
    return jax.eval_shape(self.function, x)


def describe(q: Posterior) -> dict[str, jax.Array]:
  """Returns the encoder's outputs, by name, for a posterior."""
  outputs = {"mean": q.mean(), "variance": metrics.total_variance(q)}
  weights, means, variances = q.components()
  if means.shape[1] > 1:
    outputs |= {"weights": weights, "means": means, "variances": variances}
  return outputs


def part(model: Model, name: str) -> Part:
  """Returns a part of a model: "encoder" or "decoder"."""
  spec, vae = model.spec, jax.device_get(model.variables["vae"])
  kind = dict(name=name, dtype=np.dtype(spec.dtype))

  if name == "encoder":

    def encode(x):
      return describe(spec.vae.apply(vae, {IMAGE: x}, method="encode"))

    def by_model(x):
      return jax.device_get(describe(model.encode(x)))

    return Part(
      function=encode,
      model=by_model,
      input="x",
      shape=spec.image.shape,
      range=(-1.0, 1.0),
      **kind,
    )

  def decode(z):
    x_hat = spec.vae.apply(vae, z, method="decode")[IMAGE]
    image = spec.image.likelihood.mean(x_hat)
    return {"image": jnp.clip(image, -1, 1)}

  return Part(
    function=decode,
    model=lambda z: {"image": model.decode(z)},
    input="z",
    shape=(model.config.model.latent,),
    range=None,
    **kind,
  )


def in_float32(model: Model) -> Model:
  """Returns the model with weights and computation in float32."""
  if model.config.dtype == "float32":
    return model
  config = ConfigDict(model.config)
  config.dtype = "float32"
  trees = jax.tree.map(lambda x: x.astype(np.float32), model.variables)
  return Model(
    config, build.train_spec(config), model.step, **trees, which=model.which
  )
