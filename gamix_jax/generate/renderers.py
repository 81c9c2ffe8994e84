"""What each kind of picture shows, and the one function that makes it."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gamix_jax import inference, paths, plots
from gamix_jax.errors import UserError
from gamix_jax.generate import animation, folder, select_images
from gamix_jax.inference import ways
from gamix_jax.inference.fitting import FITTED, ensure_fitted
from gamix_jax.plots import ImageGrid, named
from gamix_jax.step import to_float

SAMPLES, RECONSTRUCTIONS, WALKS, MAPPED = 64, 16, 8, 2000
COLUMNS = 8
BETWEEN = 6  # steps of the published interpolation
ALONG = 9  # steps of a traversal
SHOWN = 4  # images whose components are shown
FRAMES = 12  # of a walk, from stop to stop
WORDS = {
  "prior": "the prior",
  "population": "the population",
  "gmm": "the fitted mixture",
  "vamp": "the pseudo-inputs",
}


def make(
  workdir: str,
  what: str,
  out: str,
  *,
  data: Mapping[str, str] | None = None,
  raw: bool = False,
  which: str = "ema",
  step: int | None = None,
  **asked: Any,
) -> None:
  """Writes one picture, film or folder of images, whole or not at all.

  Args:
    workdir: the run's.
    what: a name of WHATS.
    out: the file; the folder, if `raw`.
    data: where the run's images lie now, see `inference.load`.
    raw: images one by one, as they are.
    which: of the weights, see `inference.load`.
    step: of the checkpoint, see `inference.load`.
    **asked: the flags of `what`, see `__main__`.

  Raises:
    UserError: whatever is wrong with them, the run or the images.
  """
  target = paths.resolve(out)
  _check_out(target, what, raw)
  model = inference.load(workdir, which, step, data=data)
  protocol = {"what": what, "workdir": str(model.workdir), "step": model.step}
  protocol |= {"which": which} | asked
  title = f"{named(model.workdir.name)}, {which} weights of step {model.step}"
  WHATS[what](model, _Out(target, raw, title, protocol), **asked)
  print(f"Written: {target}")


def _check_out(target: Path, what: str, raw: bool) -> None:
  """Refuses an ending or a place that will not do, before the work."""
  if raw:
    if what == "map":
      raise UserError("--what=map has no images for --format=folder.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
      raise UserError(f"--out={target} is there and not an empty folder.")
  elif target.suffix.lower() not in ENDINGS.get(what, (".png",)):
    fit = " or ".join(ENDINGS.get(what, (".png",)))
    raise UserError(f"--out={target}: a {what} picture ends with {fit}.")
  if not target.absolute().parent.is_dir():
    raise UserError(f"--out={target}: there is no folder {target.parent}.")


ENDINGS = {"walk": (".gif", ".mp4")}


class _Out:
  """Where a picture goes, with what is said about it."""

  def __init__(self, target: Path, raw: bool, title: str, protocol: dict):
    self.target, self.raw, self.title = target, raw, title
    self.protocol = protocol

  def write(
    self,
    strips: list[ImageGrid],
    title: str,
    xlabel: str = "",
    ylabel: str = "",
  ) -> None:
    """As a figure; as a folder, all images of all strips in order."""
    if self.raw:
      images = [s.images.reshape(-1, *s.images.shape[-3:]) for s in strips]
      folder.save(self.target, np.concatenate(images), self.protocol)
      return
    title = f"{title}\n{self.title}"
    plots.image_grids(self.target, strips, title, xlabel, ylabel)


def _number(name: str, value: int | None, default: int, least: int = 1) -> int:
  """A flag's number or its default; raises UserError under `least`."""
  value = default if value is None else value
  if value < least:
    raise UserError(f"--{name}={value} must be {least} or more.")
  return value


def _as_pixels(x: np.ndarray) -> np.ndarray:
  return np.asarray(to_float(x))


def _sampler(model, *, source, temperature, seed, fit_images, components):
  """n -> latents, and in words where they are from; fits what is needed."""
  if components is not None and components != "bic":
    if not components.isdecimal():
      raise UserError(f"--components={components} is no number, nor bic.")
    components = int(components)
  if (fit_images, components) != (None, None) and source not in FITTED:
    raise UserError(
      "--fit_images and --components are of --source=population and gmm."
    )
  ensure_fitted(model, source, images=fit_images, components=components)
  draw = functools.partial(
    model.draw_latents,
    jax.random.key(seed),
    source=source,
    temperature=temperature,
  )
  return draw, f"{WORDS[source]}, temperature {temperature:g}, seed {seed}"


def samples(model, out, *, n, **new) -> None:
  """New images."""
  n = _number("n", n, SAMPLES)
  draw, words = _sampler(model, **new)
  z = draw(n)
  fitted = model.fitted if new["source"] in FITTED else None
  out.protocol |= {"n": n, "fitted": fitted}
  if out.raw:  # may be many
    folder.save(out.target, z, out.protocol, model.decode)
    return
  columns = max(COLUMNS, math.isqrt(n - 1) + 1)
  images = plots.padded(model.decode(z), min(columns, n))
  out.write([ImageGrid(images)], f"{n} samples from {words}")


def reconstructions(model, out, *, n, images) -> None:
  """Images over what comes back of them."""
  if images:
    if n is not None:
      raise UserError("--n and --images: give one of them.")
    x, names = select_images.images(model.config, images)
  else:
    n = _number("n", n, RECONSTRUCTIONS)
    x, _, _ = select_images.first(model.config, n)
    names = [str(i) for i in range(len(x))]
  back, x = model.reconstruct(x), _as_pixels(x)
  strips = [
    ImageGrid(
      np.stack([x[i : i + COLUMNS], back[i : i + COLUMNS]]),
      names[i : i + COLUMNS],
      ("image", "decoded"),
    )
    for i in range(0, len(x), COLUMNS)
  ]
  off = np.mean(np.abs(x - back))
  title = f"Images and their reconstructions, mean absolute error {off:.3f}"
  out.write(strips, title)


def interpolation(model, out, *, images, steps, path) -> None:
  """From one image to another, a row a pair."""
  steps = _number("steps", steps, BETWEEN, 2)
  x, names = select_images.images(model.config, images or ("0", "1"))
  if len(x) % 2:
    raise UserError(f"--images has {len(x)} images; wanted are pairs.")
  rows = []
  for a, b in zip(x[::2], x[1::2], strict=True):
    way = model.interpolate(a, b, steps, path=path)
    rows.append(np.concatenate([_as_pixels(a[None]), way, _as_pixels(b[None])]))
  places = [f"{t:.2g}" for t in np.linspace(0, 1, steps)]
  pairs = [f"{a} to {b}" for a, b in zip(names[::2], names[1::2], strict=True)]
  strip = ImageGrid(np.stack(rows), ["from", *places, "to"], pairs)
  what = "Convex" if path == "straight" else "Spherical"
  title = f"{what} interpolation between the means of two posteriors"
  out.write(
    [strip], title, "way from the first image's latents to the second's"
  )


def traversal(model, out, *, images, dims, span, steps) -> None:
  """An image moved along one latent or two."""
  steps = _number("steps", steps, ALONG, 2)
  latents = min(2, model.config.model.latent)
  words = dims or [str(d) for d in range(latents)]
  if not all(w.strip().lstrip("-").isdecimal() for w in words):
    raise UserError(f"--dims={','.join(words)} must be one latent or two.")
  moved = [int(w) for w in words]
  x, names = select_images.images(model.config, images or ("0",))
  if len(moved) == 2 and len(x) != 1:
    raise UserError("Two --dims are of one image; --images has several.")
  way = moved[0] if len(moved) == 1 else moved
  made = [model.traverse(v, way, span=span, steps=steps) for v in x]
  places = [f"{u:g}" for u in np.round(np.linspace(-span, span, steps), 3)]
  unit = "(posterior standard deviations from the mean)"
  out.protocol |= {"dims": moved, "steps": steps}
  if len(moved) == 1:
    strip = ImageGrid(np.stack(made), places, names)
    title = f"Latent {moved[0]} of {len(x)} images"
    out.write([strip], title, f"latent {moved[0]} {unit}")
    return
  # As axes go: the first latent to the right, the second upwards.
  grid = np.swapaxes(made[0], 0, 1)[::-1]
  out.write(
    [ImageGrid(grid, places, places[::-1])],
    f"Latents {moved[0]} and {moved[1]} around image {names[0]}",
    f"latent {moved[0]} {unit}",
    f"latent {moved[1]} {unit}",
  )


def components(model, out, *, images) -> None:
  """What each component of an image's posterior shows."""
  if model.config.posterior.components < 2:
    raise UserError(
      f"This model has one component (posterior.name="
      f"{model.config.posterior.name!r}); pictures of components want "
      "posterior.name='mixture' with posterior.components of 2 or more."
    )
  if images:
    x, names = select_images.images(model.config, images)
  else:
    x, _, _ = select_images.first(model.config, SHOWN)
    names = [str(i) for i in range(len(x))]
  back = model.reconstruct(x)
  strips, weights = [], []
  for image, mean, name in zip(x, back, names, strict=True):
    pi, shown = model.components(image)
    weights.append(pi.tolist())
    row = np.concatenate([_as_pixels(image[None]), mean[None], shown])
    labels = ["image", "mean", *(f"{p:.2f}" for p in pi)]
    strips.append(ImageGrid(row[None], labels, [name]))
  out.protocol |= {"weights": weights}
  title = "Images, their posteriors' means, and each component with its weight"
  out.write(strips, title)


def mapped(model, out, *, n, method, seed) -> None:
  """Codes in a plane."""
  n = _number("n", n, MAPPED, 4)
  x, labels, names = select_images.first(model.config, n)
  places = model.latent_map(x, method, seed)
  if (labels < 0).all():
    print("The images have no labels, so the map has one colour.")
  title = f"{len(x)} held-out images by the means of their posteriors"
  plots.latent_map(
    out.target, places, labels, names, f"{title}\n{out.title}", method
  )


def walk(model, out, *, n, images, steps, stops, fps, **new) -> None:
  """Films that end where they began, beside one another."""
  steps = _number("steps", steps, FRAMES)
  if not 0 < fps <= animation.FASTEST:
    raise UserError(
      f"--fps={fps:g} must be > 0 and at most {animation.FASTEST}."
    )
  if images:
    if n is not None:
      raise UserError("--n and --images: give one of them.")
    x, _ = select_images.images(model.config, images)
    at = np.asarray(model.encode(x).mean())[None]  # [walks, stops, d]
  else:
    n = _number("n", n, WALKS)
    stops = _number("stops", stops, 5, 2)
    draw, _ = _sampler(model, **new)
    at = draw(n * stops).reshape(n, stops, -1)
  legs = [
    # The end of a leg is the next one's beginning.
    [ways.between(a, b, steps + 1, "spherical")[:-1] for a, b in _loop(walk)]
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
  return zip(stops, np.roll(stops, -1, axis=0), strict=True)


WHATS = {
  "samples": samples,
  "reconstructions": reconstructions,
  "interpolation": interpolation,
  "traversal": traversal,
  "components": components,
  "map": mapped,
  "walk": walk,
}
