"""A model in training, looked at on held-out images: numbers and pictures."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax import data, mesh, metrics, pictures
from gamix_jax.config import ConfigDict
from gamix_jax.modality import IMAGE, to_float
from gamix_jax.posterior import Posterior
from gamix_jax.step import TrainSpec, TrainState, eval_step

COLUMNS = 8
ROWS = 4  # of pairs, and of samples by two
SAMPLES = 64
BETWEEN = 8  # images of an interpolation, ends included
SPAN = COLUMNS * ROWS  # held-out images in pictures


class Validator:
  """Numbers and panels of a state's averaged weights.

  Attributes:
    left_out: why `numbers` leaves a number out that the family has, one line;
      empty if it leaves out none.
  """

  def __init__(
    self,
    recipe: TrainSpec,
    config: ConfigDict,
    layout: mesh.ShardingPlan,
    dataset: data.Dataset,
  ):
    """`dataset` is the held-out split."""
    self._recipe, self._config, self._layout = recipe, config, layout
    self._dataset = dataset
    vae = recipe.vae
    self._normal = (
      vae.prior is None and vae.posterior.posterior_type.standard_normal_prior
    )
    self.left_out = _too_few(config, len(dataset)) if self._normal else ""
    everywhere = mesh.replicated(layout.mesh)
    self._numbers = jax.jit(self._evaluate, out_shardings=everywhere)
    self._pictures = jax.jit(self._draw, out_shardings=everywhere)
    shown = [dataset[i]["image"] for i in range(min(SPAN, len(dataset)))]
    self._shown = np.stack((shown * SPAN)[:SPAN])

  def numbers(self, state: TrainState) -> dict[str, float]:
    """`eval/<metric>`, means over up to `eval_images` held-out images.

    mae, psnr (dB) of reconstructions from q's mean, clipped to [-1, 1]; elbo
    and iwae (nats an image, see `diagnose.held_out`); kl, the mean of
    KL(q(z | x) || p); population_kl, that of the Gaussian with the moments of
    these images' population, in nats (the rest of kl is, about, what a code
    tells of its image: Hoffman & Johnson 2016); mutual_information, in nats,
    of an image and its code, with q(z) the mean of these n images' posteriors
    (`metrics.surgery`, one draw an image, the same noise at every look): at
    most ln n, and where it is near that, the codes tell these images apart and
    it says no more; active_units. A family without bounds has no elbo, iwae,
    kl, mutual_information, one with another prior than N(0, I) no
    population_kl. With no more images than latents their population's
    covariance has no full rank, and population_kl is left out too.
    """
    size = self._config.data.batch_size
    batches = data.eval_batches(
      self._dataset,
      batch_size=size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    found: list[dict[str, Any]] = []
    for i, batch in enumerate(batches):
      if i * size >= self._config.eval_images:
        break
      whole = mesh.global_batch(
        self._layout.mesh, {"image": batch["image"], "mask": batch["mask"]}
      )
      mask = whole.pop("mask")
      out = self._numbers(
        state.ema,
        state.vae.batch_stats,
        whole | {"step": np.int32(i), "mask": mask},
      )
      out = jax.device_get(out)
      real = out.pop("mask") > 0
      found.append(jax.tree.map(lambda v, real=real: v[real], out))
    each = jax.tree.map(
      lambda *v: np.concatenate(v)[: self._config.eval_images], *found
    )
    mean, var = each.pop("mean"), each.pop("var")
    posterior = each.pop("posterior")
    numbers = {f"eval/{k}": float(np.mean(v)) for k, v in each.items()}
    if self._normal and not self.left_out:
      numbers["eval/population_kl"] = metrics.population_kl_gaussian(mean, var)
    if posterior.has_finite_elbo:
      numbers["eval/kl"] = numbers.pop("eval/kl")  # in lists beside these two
      numbers["eval/mutual_information"] = self._information(posterior)
    report = metrics.latent_report(mean, var)
    numbers["eval/active_units"] = report["active_units"]
    return numbers

  def _information(self, posterior: Posterior) -> float:
    """Mutual information of these images and their codes; of 1 image 0."""
    key = jax.random.fold_in(self._recipe.key(0), 3)
    return metrics.surgery(posterior, key)["mutual_information"]

  def panels(self, state: TrainState) -> dict[str, np.ndarray]:
    """Pictures as uint8 [h, w, c].

    Originals over reconstructions; samples from N(0, I); straight
    interpolations between the codes of held-out images.
    """
    out = jax.device_get(
      self._pictures(state.ema, state.vae.batch_stats, self._shown)
    )
    x = np.asarray(to_float(self._shown))
    return {
      "reconstructions": pictures.grid(
        pictures.pairs(x, out["reconstructions"], COLUMNS), COLUMNS
      ),
      "samples": pictures.grid(out["samples"], COLUMNS),
      "interpolation": pictures.grid(out["interpolation"], BETWEEN),
    }

  def _evaluate(self, params, batch_stats, batch):
    params = self._layout.replicate(params)
    draws = self._config.eval_draws
    return eval_step(self._recipe, draws, params, batch_stats, batch)

  def _draw(self, params, batch_stats, image):
    recipe, params = self._recipe, self._layout.replicate(params)
    vae = recipe.vae.bind({"params": params, "batch_stats": batch_stats})
    x = {IMAGE: to_float(image, recipe.dtype)}
    mean = vae.encode(x).mean()
    # The same latents at every look, so that pictures can be compared.
    z = vae.prior_draws(jax.random.fold_in(recipe.key(0), 2), SAMPLES)
    t = jnp.linspace(0, 1, BETWEEN, dtype=mean.dtype)[None, :, None]
    first, last = mean[: SPAN // 2 : 2, None], mean[1 : SPAN // 2 : 2, None]
    between = (first + t * (last - first)).reshape(-1, mean.shape[-1])

    kinds = {"reconstructions": mean, "samples": z, "interpolation": between}
    x_hat = vae.decode(jnp.concatenate(list(kinds.values())))[IMAGE]
    image = recipe.image.likelihood.mean(x_hat)
    ends = np.cumsum([len(v) for v in kinds.values()])
    return dict(zip(kinds, jnp.split(image, ends[:-1]), strict=True))


def _too_few(config: ConfigDict, held_out: int) -> str:
  """Why there is no `eval/population_kl`; empty if there is one.

  Args:
    config: of the run.
    held_out: images of the split.
  """
  n, d = min(config.eval_images, held_out), config.model.latent
  if n > d:
    return ""
  if held_out > d:
    action = f"raise eval_images to {d + 1} or more"
  else:
    action = f"hold out {d + 1} or more"
    if config.eval_images <= d:
      action += " and raise eval_images to as many"
  return (
    f"eval/population_kl is left out: it needs more held-out images than"
    f" latents, and there are {n} images and {d} latents; {action}."
  )
