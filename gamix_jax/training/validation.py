"""Validation during training: metrics and pictures of held-out images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gamix_jax import data, metrics, occlusion, pictures
from gamix_jax.config import ConfigDict
from gamix_jax.modality import IMAGE
from gamix_jax.parallel import mesh
from gamix_jax.posterior import Posterior
from gamix_jax.step import TrainSpec, TrainState, eval_step
from gamix_jax.training import multimodal_panels

GRID_COLUMNS = 8
GRID_ROWS = 4  # each row has originals and, below them, reconstructions
NUM_SAMPLES = 64
INTERPOLATION_STEPS = 8  # images per interpolation, including both ends
NUM_PICTURED = GRID_COLUMNS * GRID_ROWS  # held-out images in pictures


class Validator:
  """Computes metrics and pictures with the averaged (EMA) weights.

  Attributes:
    left_out: a line that says which metric is left out and why; empty if none
      is.
  """

  def __init__(
    self,
    spec: TrainSpec,
    config: ConfigDict,
    layout: mesh.ShardingPlan,
    dataset: data.Dataset,
  ):
    """Creates the jitted functions and loads the images for the pictures.

    Args:
      spec: what is trained.
      config: of the run.
      layout: the shardings of the state.
      dataset: the held-out split.
    """
    self._spec, self._config, self._layout = spec, config, layout
    self._dataset = dataset
    vae = spec.vae
    # Latents of different modalities belong together, so they are correlated.
    self._normal = (
      vae.prior is None
      and vae.posterior_type.standard_normal_prior
      and not vae.posterior_type.separate
    )
    self.left_out = ""
    if self._normal:
      self.left_out = _too_few_images(config, vae.latent, len(dataset))
    # Codes given different modalities cannot be compared.
    self._complete = not spec.multimodal or bool(dataset.mask.all())
    replicated = mesh.replicated(layout.mesh)
    self._metrics = jax.jit(self._compute_metrics, out_shardings=replicated)
    self._pictures = jax.jit(self._compute_pictures, out_shardings=replicated)
    rows = np.resize(np.arange(min(NUM_PICTURED, len(dataset))), NUM_PICTURED)
    pictured = dataset.load_batch(rows)
    self._pictured = {k: pictured[k] for k in spec.batch_shapes(1)}

  def numbers(self, state: TrainState) -> dict[str, float]:
    """Computes `eval/<metric>`: means over up to `eval_images` held-out images.

    They have even distances in the split, as those of `compare`.

    The metrics are mae, psnr, elbo, iwae, kl, population_kl_gaussian,
    mutual_information and active_units; `metrics.specs` describes them. Here:

    - mae and psnr use the reconstruction from q's mean, clipped to [-1, 1]. Of
      several modalities each has its own, `<name>/mae`, and classes have an
      accuracy; see `train_metrics.reconstruction`.
    - elbo, iwae and kl use `eval_draws` draws of z per image, see
      `train_metrics.held_out`.
    - mutual_information uses one draw per image, with the same noise every
      time. For n images it is at most ln n.

    A family without finite bounds has no elbo, iwae, kl and
    mutual_information. population_kl_gaussian is left out if the prior is not
    N(0, I), if there are not more images than latents, since the covariance
    then does not have full rank, or if modalities have separate latents.
    mutual_information is left out if modalities are missing. kl minus
    population_kl_gaussian is about the information that a code carries on its
    image (Hoffman & Johnson 2016).
    """
    size = self._config.data.batch_size
    batches = data.eval_batches(
      self._dataset,
      batch_size=size,
      at_most=self._config.eval_images,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    outputs: list[dict[str, Any]] = []
    for i, batch in enumerate(batches):
      names = (*self._spec.batch_shapes(1), "valid")
      global_batch = mesh.global_batch(
        self._layout.mesh, {k: batch[k] for k in names}
      )
      valid = global_batch.pop("valid")
      out = self._metrics(
        state.ema,
        state.vae.batch_stats,
        global_batch | {"step": np.int32(i), "valid": valid},
      )
      out = jax.device_get(out)
      real = out.pop("valid") > 0
      outputs.append(jax.tree.map(lambda v, real=real: v[real], out))
    per_image = jax.tree.map(lambda *v: np.concatenate(v), *outputs)
    mean, var = per_image.pop("mean"), per_image.pop("var")
    posterior = per_image.pop("posterior")
    values = {
      f"eval/{k}": _mean_where_there(v) if "/" in k else float(np.mean(v))
      for k, v in per_image.items()
    }
    if self._normal and not self.left_out:
      gaussian = metrics.population_kl_gaussian(mean, var)
      values["eval/population_kl_gaussian"] = gaussian
    if posterior.has_finite_elbo:
      # Moves kl next to population_kl_gaussian and mutual_information.
      values["eval/kl"] = values.pop("eval/kl")
      if self._complete:
        values["eval/mutual_information"] = self._mutual_information(posterior)
    report = metrics.latent_report(mean, var)
    values["eval/active_units"] = report["active_units"]
    return values

  def _mutual_information(self, posterior: Posterior) -> float:
    """Mutual information between images and codes; 0 for a single image."""
    key = jax.random.fold_in(self._spec.key(0), 3)
    return metrics.surgery(posterior, key)["mutual_information"]

  def panels(self, state: TrainState) -> dict[str, np.ndarray]:
    """Returns pictures, uint8 [h, w, c], by name.

    reconstructions: rows of originals, as the encoder sees them, with their
      reconstructions below.
    samples: decoded from draws of the prior.
    interpolation: linear, between the codes of held-out images.

    For several modalities see `multimodal_panels`.
    """
    out = jax.device_get(
      self._pictures(state.ema, state.vae.batch_stats, self._pictured)
    )
    if self._spec.multimodal:
      return multimodal_panels.panels(self._spec, self._pictured, out)
    x = out.pop("seen")
    return {
      "reconstructions": pictures.grid(
        pictures.pairs(x, out["reconstructions"], GRID_COLUMNS), GRID_COLUMNS
      ),
      "samples": pictures.grid(out["samples"], GRID_COLUMNS),
      "interpolation": pictures.grid(out["interpolation"], INTERPOLATION_STEPS),
    }

  def _compute_metrics(self, params, batch_stats, batch):
    params = self._layout.replicate(params)
    draws = self._config.eval_draws
    return eval_step(self._spec, draws, params, batch_stats, batch)

  def _compute_pictures(self, params, batch_stats, batch):
    spec, params = self._spec, self._layout.replicate(params)
    if spec.multimodal:
      return multimodal_panels.compute(spec, params, batch_stats, batch)
    vae = spec.vae.bind({"params": params, "batch_stats": batch_stats})
    x = spec.observations(spec.occluded(batch))
    mean = vae.encode(x).mean()
    # The same latents every time, so that pictures can be compared.
    z = vae.prior_draws(jax.random.fold_in(spec.key(0), 2), NUM_SAMPLES)
    t = jnp.linspace(0, 1, INTERPOLATION_STEPS, dtype=mean.dtype)[None, :, None]
    ends = mean[: NUM_PICTURED // 2, None]
    first, last = ends[::2], ends[1::2]
    between = (first + t * (last - first)).reshape(-1, mean.shape[-1])

    latents = {"reconstructions": mean, "samples": z, "interpolation": between}
    x_hat = vae.decode(jnp.concatenate(list(latents.values())))[IMAGE]
    image = spec.image.likelihood.mean(x_hat)
    stops = np.cumsum([len(v) for v in latents.values()])
    shown = dict(zip(latents, jnp.split(image, stops[:-1]), strict=True))
    return shown | {"seen": occlusion.seen(x, IMAGE).astype(jnp.float32)}


def _mean_where_there(values: np.ndarray) -> float:
  """The mean over observations that have a modality; NaN if none has it."""
  there = values[~np.isnan(values)]
  return float(np.mean(there)) if len(there) else float("nan")


def _too_few_images(config: ConfigDict, d: int, held_out: int) -> str:
  """Explains why `eval/population_kl_gaussian` is left out; empty if it is not.

  Args:
    config: of the run.
    d: number of latents.
    held_out: number of held-out images.
  """
  n = min(config.eval_images, held_out)
  if n > d:
    return ""
  if held_out > d:
    action = f"raise eval_images to {d + 1} or more"
  else:
    action = f"hold out {d + 1} or more"
    if config.eval_images <= d:
      action += " and raise eval_images to the same number"
  return (
    f"eval/population_kl_gaussian is left out: it needs more held-out images "
    f"than latents, and there are {n} images and {d} latents; {action}."
  )
