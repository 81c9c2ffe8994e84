"""Renders each kind of picture; `make` writes one of them."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gamix_jax import inference, occlusion, paths, plots
from gamix_jax.errors import UserError
from gamix_jax.generate import animation, folder, multimodal, select_images
from gamix_jax.generate.options import number, sampler
from gamix_jax.generate.output import Out, check_out
from gamix_jax.inference import latents
from gamix_jax.inference.fitting import FITTED
from gamix_jax.locate import Location
from gamix_jax.plots import ImageGrid, named
from gamix_jax.step import to_float

# Default numbers of images, walks and points.
SAMPLES, RECONSTRUCTIONS, WALKS, MAP_POINTS = 64, 16, 8, 2000
COLUMNS = 8
INTERPOLATION_STEPS = 6  # as published
TRAVERSAL_STEPS = 9
COMPONENT_IMAGES = 4  # images whose components are shown
COMPLETED_IMAGES, COMPLETIONS = 8, 4  # images, and draws of each
WALK_STEPS = 12  # frames from stop to stop


def make(
  workdir: str | Location,
  what: str,
  out: str,
  *,
  data: Mapping[str, str] | None = None,
  raw: bool = False,
  which: str = "ema",
  step: int | None = None,
  **options: Any,
) -> None:
  """Writes one picture, animation or folder of images, atomically.

  Args:
    workdir: workdir of the run.
    what: a key of RENDERERS, or of `multimodal.RENDERERS` for such a run.
    out: the output file, or folder if `raw`.
    data: where the run's images are now, see `inference.load`.
    raw: whether to write single, unscaled images to a folder.
    which: the weights, see `inference.load`.
    step: the checkpoint, see `inference.load`.
    **options: the flags of `what`, see `__main__`.

  Raises:
    UserError: if the arguments, the run or the images are invalid, or if the
      run has no such pictures.
  """
  target = paths.resolve(out)
  check_out(target, what, raw)
  model = inference.load(workdir, which, step, data=data)
  several = model.spec.multimodal
  renderers = multimodal.RENDERERS if several else RENDERERS
  if what not in renderers:
    kind = "several modalities" if several else "images"
    raise UserError(
      f"--what={what} is not for runs of {kind} as this one; use "
      f"--what={' or '.join(renderers)}."
    )
  if "source" in options and options["source"] is None:
    options["source"] = model.default_source
  protocol = {"what": what, "workdir": str(model.workdir), "step": model.step}
  protocol |= {"which": which} | options
  title = f"{named(model.workdir.name)}, {which} weights of step {model.step}"
  renderers[what](model, Out(target, raw, title, protocol), **options)
  print(f"Written: {target}")


def _as_pixels(x: np.ndarray) -> np.ndarray:
  return np.asarray(to_float(x))


def samples(model, out, *, n, **new) -> None:
  """Renders new images."""
  n = number("n", n, SAMPLES)
  draw, description = sampler(model, **new)
  z = draw(n)
  fitted = model.fitted if new["source"] in FITTED else None
  out.protocol |= {"n": n, "fitted": fitted}
  if out.raw:  # may be many
    folder.save(out.target, z, out.protocol, model.decode)
    return
  columns = max(COLUMNS, math.isqrt(n - 1) + 1)
  images = plots.padded(model.decode(z), min(columns, n))
  out.write([ImageGrid(images)], f"{n} samples from {description}")


def reconstructions(model, out, *, n, images) -> None:
  """Renders images above their reconstructions."""
  if images:
    if n is not None:
      raise UserError("Use either --n or --images, not both.")
    x, names = select_images.images(model.config, images)
  else:
    n = number("n", n, RECONSTRUCTIONS)
    x, _, _ = select_images.first(model.config, n)
    names = [str(i) for i in range(len(x))]
  x_hat, x = model.reconstruct(x), _as_pixels(x)
  grids = [
    ImageGrid(
      np.stack([x[i : i + COLUMNS], x_hat[i : i + COLUMNS]]),
      names[i : i + COLUMNS],
      ("image", "decoded"),
    )
    for i in range(0, len(x), COLUMNS)
  ]
  mae = np.mean(np.abs(x - x_hat))
  title = f"Images and their reconstructions, mean absolute error {mae:.3f}"
  out.write(grids, title)


def interpolation(model, out, *, images, steps, path) -> None:
  """Renders interpolations between images, one row per pair."""
  steps = number("steps", steps, INTERPOLATION_STEPS, 2)
  x, names = select_images.images(model.config, images or ("0", "1"))
  if len(x) % 2:
    raise UserError(
      f"--images has {len(x)} images; the number must be even (pairs)."
    )
  rows = []
  for a, b in zip(x[::2], x[1::2], strict=True):
    between = model.interpolate(a, b, steps, path=path)
    rows.append(
      np.concatenate([_as_pixels(a[None]), between, _as_pixels(b[None])])
    )
  ticks = [f"{t:.2g}" for t in np.linspace(0, 1, steps)]
  pairs = [f"{a} to {b}" for a, b in zip(names[::2], names[1::2], strict=True)]
  grid = ImageGrid(np.stack(rows), ["from", *ticks, "to"], pairs)
  kind = "Convex" if path == "straight" else "Spherical"
  title = f"{kind} interpolation between the means of two posteriors"
  out.write([grid], title, "position between the latents of the two images")


def traversal(model, out, *, images, dims, span, steps) -> None:
  """Renders images moved along one or two latents."""
  steps = number("steps", steps, TRAVERSAL_STEPS, 2)
  latents = min(2, model.config.model.latent)
  dims = dims or [str(d) for d in range(latents)]
  if not all(d.strip().lstrip("-").isdecimal() for d in dims):
    raise UserError(f"--dims={','.join(dims)} must be one or two integers.")
  moved = [int(d) for d in dims]
  x, names = select_images.images(model.config, images or ("0",))
  if len(moved) == 2 and len(x) != 1:
    raise UserError("Two --dims need exactly one image; --images has several.")
  axes = moved[0] if len(moved) == 1 else moved
  decoded = [model.traverse(v, axes, span=span, steps=steps) for v in x]
  ticks = [f"{u:g}" for u in np.round(np.linspace(-span, span, steps), 3)]
  unit = "(posterior standard deviations from the mean)"
  out.protocol |= {"dims": moved, "steps": steps}
  if len(moved) == 1:
    grid = ImageGrid(np.stack(decoded), ticks, names)
    title = f"Latent {moved[0]} of {len(x)} images"
    out.write([grid], title, f"latent {moved[0]} {unit}")
    return
  # The first latent increases to the right, the second upwards.
  images = np.swapaxes(decoded[0], 0, 1)[::-1]
  out.write(
    [ImageGrid(images, ticks, ticks[::-1])],
    f"Latents {moved[0]} and {moved[1]} around image {names[0]}",
    f"latent {moved[0]} {unit}",
    f"latent {moved[1]} {unit}",
  )


def components(model, out, *, images) -> None:
  """Renders the decoded mean of each posterior component."""
  if model.config.posterior.components < 2:
    raise UserError(
      f"This model has one component (posterior.name="
      f"{model.config.posterior.name!r}); --what=components needs a model "
      "with posterior.name='mixture' and posterior.components of 2 or more."
    )
  if images:
    x, names = select_images.images(model.config, images)
  else:
    x, _, _ = select_images.first(model.config, COMPONENT_IMAGES)
    names = [str(i) for i in range(len(x))]
  x_hat = model.reconstruct(x)
  grids, weights = [], []
  for image, mean, name in zip(x, x_hat, names, strict=True):
    pi, decoded = model.components(image)
    weights.append(pi.tolist())
    row = np.concatenate([_as_pixels(image[None]), mean[None], decoded])
    labels = ["image", "mean", *(f"{p:.2f}" for p in pi)]
    grids.append(ImageGrid(row[None], labels, [name]))
  out.protocol |= {"weights": weights}
  title = "Images, their posterior means, and each component with its weight"
  out.write(grids, title)


def completions(model, out, *, n, images, seed) -> None:
  """Renders what a model makes of what it does not see."""
  if model.spec.occlude == occlusion.NONE:
    raise UserError(
      "This model was trained on whole images; --what=completions needs one "
      "that was trained with data.occlude=half or box."
    )
  n = number("n", n, COMPLETIONS)
  if images:
    x, names = select_images.images(model.config, images)
  else:
    x, _, _ = select_images.first(model.config, COMPLETED_IMAGES)
    names = [str(i) for i in range(len(x))]
  q, seen = model.encode(x), model.seen(x)
  weights, mu, _ = (np.asarray(v) for v in q.components())
  of_means = model.decode(mu)
  drawn = model.complete(x, n, key=jax.random.key(seed))
  grids = []
  for i, name in enumerate(names):
    row = [_as_pixels(x[i : i + 1]), seen[i : i + 1], of_means[i], drawn[:, i]]
    labels = ["image", "seen", *(f"{p:.2f}" for p in weights[i])]
    labels += ["draws", *[""] * (n - 1)]
    grids.append(ImageGrid(np.concatenate(row)[None], labels, [name]))
  out.protocol |= {"n": n, "weights": weights.tolist()}
  title = "Images, what the encoder sees, each component's mean with its weight"
  out.write(grids, f"{title}, and {n} draws")


def mapped(model, out, *, n, method, seed) -> None:
  """Renders the posterior means of held-out images in 2D."""
  n = number("n", n, MAP_POINTS, 4)
  x, labels, names = select_images.first(model.config, n)
  points = model.latent_map(x, method, seed)
  if (labels < 0).all():
    print("The images have no labels, so the map has one colour.")
  title = f"Posterior means of {len(x)} held-out images"
  plots.latent_map(
    out.target, points, labels, names, f"{title}\n{out.title}", method
  )


def walk(model, out, *, n, images, steps, stops, fps, **new) -> None:
  """Renders looping animations, side by side."""
  steps = number("steps", steps, WALK_STEPS)
  if not 0 < fps <= animation.MAX_FPS:
    raise UserError(
      f"--fps={fps:g} must be > 0 and at most {animation.MAX_FPS}."
    )
  if images:
    if n is not None:
      raise UserError("Use either --n or --images, not both.")
    x, _ = select_images.images(model.config, images)
    at = np.asarray(model.encode(x).mean())[None]  # [walks, stops, d]
  else:
    n = number("n", n, WALKS)
    stops = number("stops", stops, 5, 2)
    draw, _ = sampler(model, **new)
    at = draw(n * stops).reshape(n, stops, -1)
  legs = [
    # Without the last point of a leg, which is the first of the next one.
    [latents.between(a, b, steps + 1, "spherical")[:-1] for a, b in _loop(walk)]
    for walk in at
  ]
  z = np.stack([np.concatenate(leg) for leg in legs], axis=1)  # [t, walks, d]
  if out.raw:
    folder.save(
      out.target, z.reshape(-1, z.shape[-1]), out.protocol, model.decode
    )
    return
  animation.save(out.target, model.decode(z), fps)


def _loop(stops: np.ndarray):
  """Returns pairs of consecutive stops, the last paired with the first."""
  return zip(stops, np.roll(stops, -1, axis=0), strict=True)


RENDERERS = {
  "samples": samples,
  "reconstructions": reconstructions,
  "interpolation": interpolation,
  "traversal": traversal,
  "components": components,
  "completions": completions,
  "map": mapped,
  "walk": walk,
}
