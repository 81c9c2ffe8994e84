"""Validation during training: numbers and pictures of held-out images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax import data, metrics, pictures
from gamix_jax.config import ConfigDict
from gamix_jax.modality import IMAGE, to_float
from gamix_jax.parallel import mesh
from gamix_jax.posterior import Posterior
from gamix_jax.step import TrainSpec, TrainState, eval_step

GRID_COLUMNS = 8
GRID_ROWS = 4  # of images over their reconstructions
SAMPLES = 64
INTERPOLATED = 8  # images of an interpolation, including its ends
PICTURED = GRID_COLUMNS * GRID_ROWS  # held-out images in pictures


class Validator:
  """Numbers and panels of a state's averaged weights.

  Attributes:
    left_out: one line that says which number is left out and why; empty if
      there are all that the family has.
  """

  def __init__(
    self,
    spec: TrainSpec,
    config: ConfigDict,
    layout: mesh.ShardingPlan,
    dataset: data.Dataset,
  ):
    """`dataset` is the held-out split."""
    self._spec, self._config, self._layout = spec, config, layout
    self._dataset = dataset
    vae = spec.vae
    self._normal = (
      vae.prior is None and vae.posterior.posterior_type.standard_normal_prior
    )
    self.left_out = _too_few(config, len(dataset)) if self._normal else ""
    everywhere = mesh.replicated(layout.mesh)
    self._numbers = jax.jit(self._evaluate, out_shardings=everywhere)
    self._pictures = jax.jit(self._draw, out_shardings=everywhere)
    shown = [dataset[i]["image"] for i in range(min(PICTURED, len(dataset)))]
    self._shown = np.stack((shown * PICTURED)[:PICTURED])

  def numbers(self, state: TrainState) -> dict[str, float]:
    """`eval/<metric>`, means over up to `eval_images` held-out images.

    mae, psnr, elbo, iwae, kl, population_kl_gaussian, mutual_information and
    active_units, as in the table of `metrics.specs`, with these particulars:

    - mae and psnr are of reconstructions from q's mean, clipped to [-1, 1].
    - elbo, iwae and kl have `eval_draws` draws an image, see
      `train_metrics.held_out`.
    - mutual_information has one draw an image, with the same noise every
      time; it is at most ln n of n images.

    A family without finite bounds has no elbo, iwae, kl and
    mutual_information. population_kl_gaussian is left out where the prior is
    not N(0, I), and where there are no more images than latents, since their
    covariance then has no full rank. kl minus population_kl_gaussian is about
    what a code tells of its image (Hoffman & Johnson 2016).
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
      gaussian = metrics.population_kl_gaussian(mean, var)
      numbers["eval/population_kl_gaussian"] = gaussian
    if posterior.has_finite_elbo:
      numbers["eval/kl"] = numbers.pop("eval/kl")  # in lists beside these two
      numbers["eval/mutual_information"] = self._information(posterior)
    report = metrics.latent_report(mean, var)
    numbers["eval/active_units"] = report["active_units"]
    return numbers

  def _information(self, posterior: Posterior) -> float:
    """Mutual information of these images and their codes; 0 of one image."""
    key = jax.random.fold_in(self._spec.key(0), 3)
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
        pictures.pairs(x, out["reconstructions"], GRID_COLUMNS), GRID_COLUMNS
      ),
      "samples": pictures.grid(out["samples"], GRID_COLUMNS),
      "interpolation": pictures.grid(out["interpolation"], INTERPOLATED),
    }

  def _evaluate(self, params, batch_stats, batch):
    params = self._layout.replicate(params)
    draws = self._config.eval_draws
    return eval_step(self._spec, draws, params, batch_stats, batch)

  def _draw(self, params, batch_stats, image):
    spec, params = self._spec, self._layout.replicate(params)
    vae = spec.vae.bind({"params": params, "batch_stats": batch_stats})
    x = {IMAGE: to_float(image, spec.dtype)}
    mean = vae.encode(x).mean()
    # The same latents every time, so that pictures can be compared.
    z = vae.prior_draws(jax.random.fold_in(spec.key(0), 2), SAMPLES)
    t = jnp.linspace(0, 1, INTERPOLATED, dtype=mean.dtype)[None, :, None]
    ends = mean[: PICTURED // 2, None]
    first, last = ends[::2], ends[1::2]
    between = (first + t * (last - first)).reshape(-1, mean.shape[-1])

    kinds = {"reconstructions": mean, "samples": z, "interpolation": between}
    x_hat = vae.decode(jnp.concatenate(list(kinds.values())))[IMAGE]
    image = spec.image.likelihood.mean(x_hat)
    stops = np.cumsum([len(v) for v in kinds.values()])
    return dict(zip(kinds, jnp.split(image, stops[:-1]), strict=True))


def _too_few(config: ConfigDict, held_out: int) -> str:
  """Why there is no `eval/population_kl_gaussian`; empty if there is one.

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
    f"eval/population_kl_gaussian is left out: it needs more held-out images "
    f"than latents, and there are {n} images and {d} latents; {action}."
  )
