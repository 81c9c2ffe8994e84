"""The linear networks, and the closed-form reconstruction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import alone, images, jit, small, state_of

from gamix_jax import build, step
from gamix_jax.errors import UserError

POISSON = dict(posterior__name="poisson", posterior__poisson__bias=False)
EXACT = dict(
  model__encoder="linear",
  model__decoder="linear",
  objective__name="exact",
  objective__reconstruction="l2",
  weights__population_kl=None,
  weights__collapse_penalty=None,
  weights__kl=1.0,
)


def linear(**changes):
  return alone(functools.partial(small, **(EXACT | changes)))


@pytest.mark.parametrize("family", ["poisson", "gaussian", "epanechnikov"])
def test_exact_is_the_mean_over_samples(family):  # P6
  """Against decoded samples; for the Poisson family, of true counts."""
  c = linear(posterior__name=family)
  spec = build.train_spec(c)
  state, batch = state_of(spec), images(c)
  params = (state.vae.params, state.disc.params)
  _, (metrics, *_) = jit(functools.partial(step.losses, spec))(
    state, batch, params
  )
  variables = {"params": state.vae.params}

  @jit
  def squares(key):
    q = spec.vae.apply(variables, batch, method="encode")
    z, w = q.sample(key, 4_000)
    x_hat = spec.vae.apply(variables, z, method="decode")
    each = spec.image.error(batch["image"], x_hat["image"])
    return each, jnp.mean(q.kl_divergence(z, w))

  each, kl = squares(jax.random.key(1))
  spread = np.sqrt(np.sum(np.var(each, axis=0)) / len(each)) / each.shape[1]
  off = float(metrics["vae/recon"]) - float(np.asarray(each, np.float64).mean())
  assert abs(off) < 5 * spread
  assert 0 < spread < 0.02 * float(metrics["vae/recon"])
  np.testing.assert_allclose(metrics["vae/kl"], kl, rtol=1e-5)


def test_exact_trains_all_parameters():
  c = linear(**POISSON)
  spec = build.train_spec(c)
  grads, _ = jit(functools.partial(step.gradients, spec))(
    state_of(spec), images(c)
  )[1]
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize(
  ("family", "wanted"), [(POISSON, 262_656), ({}, 394_240)]
)
def test_counts_of_the_linear_models(family, wanted):  # P9
  """16x16 patches, 512 latents, as in the code of arXiv:2405.14473."""
  c = linear(data__image_size=16, model__latent=512, **family)
  state = jax.eval_shape(functools.partial(step.init, build.train_spec(c)))
  assert sum(p.size for p in jax.tree.leaves(state.vae.params)) == wanted


def test_a_linear_decoder_behind_a_resnet():
  c = small(model__decoder="linear")
  spec = build.train_spec(c)
  x_hat = spec.vae.apply(
    {"params": state_of(spec).vae.params},
    jnp.ones((3, 5, 4)),
    method="decode",
  )
  assert x_hat["image"].shape == (3, 5, 8, 8, 1)


def test_any_size_fits_linear_networks():
  build.train_spec(linear(data__image_size=7))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(model__decoder="resnet"), "--config.model.decoder=linear"),
    (dict(objective__reconstruction="l1"), "reconstruction=l2"),
    (dict(objective__num_samples=2), "num_samples=1"),
    (dict(posterior__name="mixture"), "use one of gamix, elbo, selbo, siwae"),
    (dict(prior__name="vamp"), "elbo, selbo, siwae"),
  ],
)
def test_exact_refuses_what_has_no_closed_form(changes, message):
  with pytest.raises(UserError, match=message):
    build.train_spec(linear(**changes))
