"""The pictures of an evaluation, as PNG."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gamix_jax import figures
from gamix_jax.figures import literal

DPI = 110
MOST = 64  # latents that have a bar of their own


@literal()
def latent(path: Path, mean: np.ndarray, var: np.ndarray, prior: bool) -> None:
  """Each latent's variance over the population, and their correlations.

  Args:
    path: the file.
    mean: of each image's posterior, [n, d].
    var: of each image's posterior, [n, d].
    prior: whether the prior is N(0, I), whose variance gets a line.

  Raises:
    OSError: it cannot be written.
  """
  between, within = mean.var(axis=0), var.mean(axis=0)
  order = np.argsort(-between)
  fig = Figure(figsize=(11, 4), dpi=DPI, layout="constrained")
  left, right = fig.subplots(1, 2, width_ratios=[1.7, 1])
  shown = order[:MOST]
  places = np.arange(len(shown))
  left.bar(places, between[shown], label="of the posterior means")
  left.bar(
    *(places, within[shown]),
    bottom=between[shown],
    label="mean posterior variance",
    alpha=0.6,
  )
  if prior:
    left.axhline(1, color="black", ls="--", lw=1, label="the prior's variance")
  if len(shown) <= 16:
    left.set_xticks(places, shown)
  left.set_xlabel(
    "latent, by the variance of its means"
    + (f" (the first {MOST} of {len(order)})" if len(order) > MOST else "")
  )
  left.set_title("variance of the population of codes", fontsize=10)
  left.set_ylim(0, 1.3 * max(float((between + within).max()), float(prior)))
  left.legend(fontsize=8, ncols=3, loc="upper center")
  total = np.cov(mean, rowvar=False, bias=True).reshape(len(order), -1)
  total = total + np.diag(within)
  scale = np.sqrt(np.maximum(np.diag(total), 1e-12))
  correlation = (total / np.outer(scale, scale))[np.ix_(order, order)]
  drawn = right.imshow(correlation, cmap="RdBu_r", vmin=-1, vmax=1)
  right.set_title("correlations of the population's latents", fontsize=10)
  right.set_xticks([])
  right.set_yticks([])
  fig.colorbar(drawn, ax=right, shrink=0.85)
  figures.save(fig, path)


@literal()
def anomaly(
  path: Path, scores: Mapping[str, tuple[np.ndarray, np.ndarray]], odd: str
) -> None:
  """Histograms of the scores of known and of odd images.

  Raises:
    OSError: it cannot be written.
  """
  fig = Figure(figsize=(11, 2.8), dpi=DPI, layout="constrained")
  panels = fig.subplots(1, len(scores), squeeze=False)[0]
  for ax, (name, (known, other)) in zip(panels, scores.items(), strict=True):
    both = np.concatenate([known, other])
    bins = np.linspace(*np.quantile(both, [0.001, 0.999]), 40)
    for values, label in ((known, "classes trained on"), (other, odd)):
      ax.hist(values, bins, density=True, alpha=0.55, label=label)
    ax.set_title(f"score by {name}; larger is odder", fontsize=9)
    ax.set_yticks([])
  panels[0].legend(fontsize=8)
  figures.save(fig, path)
