"""The encoder and the decoder, each as a function of one array.

encoder   x [b, h, w, c] in [-1, 1]  ->  mean, variance [b, d]; of a mixture
                                         besides weights [b, k], means and
                                         variances [b, k, d]
decoder   z [b, d]                   ->  image [b, h, w, c] in [-1, 1]

They are of every family: a posterior has a mean and centres, see
`posterior.base`. `mean` is what a deterministic reconstruction decodes, and
`variance` is of z, per latent: sigma^2 of a Gaussian, r^2 / 5 of an
Epanechnikov kernel, the rate of a Poisson law.
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
  """One of them.

  Attributes:
    name: of PARTS.
    function: jax.Array -> {output's name: jax.Array}.
    model: numpy -> {name: numpy}, the same by the model itself.
    input: its name.
    shape: of one row of the input.
    dtype: of the input.
    range: of the input; None is any.
  """

  name: str
  function: Callable[[jax.Array], dict[str, jax.Array]]
  model: Callable[[np.ndarray], dict[str, np.ndarray]]
  input: str
  shape: tuple[int, ...]
  dtype: np.dtype
  range: tuple[float, float] | None

  def probe(self, rows: int) -> np.ndarray:
    """Inputs to compare on: uniform noise, or latents of N(0, I)."""
    rng = np.random.default_rng(rows)
    shape = (rows, *self.shape)
    x = rng.uniform(-1, 1, shape) if self.range else rng.normal(size=shape)
    return x.astype(self.dtype)

  def outputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Of two rows."""
    x = jax.ShapeDtypeStruct((2, *self.shape), self.dtype)
    return jax.eval_shape(self.function, x)


def describe(q: Posterior) -> dict[str, jax.Array]:
  """The encoder's outputs, by name, of a posterior."""
  found = {"mean": q.mean(), "variance": metrics.total_variance(q)}
  weights, means, variances = q.components()
  if means.shape[1] > 1:
    found |= {"weights": weights, "means": means, "variances": variances}
  return found


def part(model: Model, name: str) -> Part:
  """The part of a model."""
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
  """The same weights, computed with in float32."""
  if model.config.dtype == "float32":
    return model
  config = ConfigDict(model.config)
  config.dtype = "float32"
  trees = jax.tree.map(lambda x: x.astype(np.float32), model.variables)
  return Model(
    config, build.train_spec(config), model.step, **trees, which=model.which
  )
