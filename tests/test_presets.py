"""What a preset fills in: sizes that fit, weights for each objective."""

import functools
import itertools
import sys

import absl.flags
import jax
import pytest
from ml_collections import config_flags
from program import config_of

from gamix_jax import build, config, preset_values, presets, step
from gamix_jax.errors import UserError
from gamix_jax.networks import DECODERS, ENCODERS

ODD = (18, 7)
SIZES = (28, 32, 64, 128, 256, (48, 96), *ODD)


def completed(name="folder", **changes):
  """Returns a config of configs/ with some flags, completed."""
  c = config_of(name)
  for key, value in changes.items():
    config.put(c, key.replace("__", "."), value)
  return presets.complete(c)


def parameters(c):
  state = jax.eval_shape(functools.partial(step.init, build.train_spec(c)))
  return sum(x.size for x in jax.tree.leaves(state.vae.params))


@pytest.mark.parametrize("size", SIZES)
def test_networks_fit_every_size(size):
  """They build, and a larger preset gives a larger model."""
  for channels in (1, 3):
    configs = {
      preset: completed(
        data__image_size=size, data__channels=channels, preset=preset
      )
      for preset in presets.PRESETS
    }
    counts = [parameters(c) for c in configs.values()]
    if size not in ODD:  # no halvings: a small preset's mlp is the largest
      assert counts == sorted(counts) and counts[0] < counts[-1]
    assert configs["small"].adversarial.loss == "none"
    assert configs["base"].adversarial.loss != "none"


def test_patches_divide_and_keep_work_at_a_few_scales():
  for size, preset in itertools.product((32, 64, 128, 256), presets.PRESETS):
    c = completed(data__image_size=size, preset=preset)
    encoder, decoder = ENCODERS[c.model.encoder], DECODERS[c.model.decoder]
    start = decoder.start_shape(c.model, config.image_shape(c))
    assert start[:2] == (4, 4)
    halvings = encoder.halvings(c.model.encoder_features)
    assert halvings == decoder.doublings(c.model.decoder_features)
    assert c.model.patch * 2**halvings * 4 == size


def test_a_given_key_is_kept():
  c = completed(
    model__latent=5,
    model__encoder_features=(3, 3),
    weights__recon=7.0,
    ramp__collapse_penalty=9,
    posterior__initial_logvar=-1.0,
  )
  assert c.model.latent == 5
  assert c.model.encoder_features == (3, 3)
  assert c.weights.recon == 7
  assert c.ramp.collapse_penalty == 9
  assert c.posterior.initial_logvar == -1
  again = config.from_json(config.to_json(c))
  assert config.differences(c, presets.complete(again)) == {}


@pytest.mark.parametrize(
  ("changes", "terms", "ramps"),
  [
    ({}, {"recon", "population_kl", "collapse_penalty"}, {"collapse_penalty"}),
    (dict(objective__name="elbo"), {"recon", "kl"}, {"kl"}),
    (dict(objective__name="siwae"), {"recon", "kl"}, set()),
    (
      dict(posterior__name="poisson", objective__name="elbo"),
      {"recon", "kl"},
      {"kl"},
    ),
    (
      dict(
        posterior__name="epanechnikov",
        posterior__epanechnikov__prior="uniform",
        objective__name="evae",
      ),
      {"recon", "kernel"},
      {"kernel"},
    ),
    (
      dict(adversarial__loss="bce"),
      {
        "recon",
        "population_kl",
        "collapse_penalty",
        "adversarial",
        "real",
        "fake",
      },
      {"collapse_penalty", "adversarial"},
    ),
  ],
)
def test_weights_and_ramps_go_with_the_objective(changes, terms, ramps):
  """One flag changes the objective, without a list of weights."""
  c = completed(**changes)
  assert {k for k, v in c.weights.items() if v is not None} == terms
  assert {k for k, v in c.ramp.items() if v} == ramps
  build.train_spec(c)


def test_a_files_weights_apply_to_existing_terms():
  """Its weights do not prevent another objective, and flags take precedence."""
  c = completed("digits")
  own = config_of("digits").preset_weights
  assert c.weights.collapse_penalty == own.collapse_penalty is not None
  assert c.weights.population_kl == own.population_kl is not None
  elbo = completed("digits", objective__name="elbo")
  assert {k for k, v in elbo.weights.items() if v is not None} == {
    "recon",
    "kl",
  }
  c = completed("digits", weights__collapse_penalty=7.0)
  assert c.weights.collapse_penalty == 7


def test_weights_go_with_the_number_of_pixels():
  small, large = (completed(data__image_size=s) for s in (32, 64))
  assert large.weights.recon == 4 * small.weights.recon
  assert large.weights.population_kl == 4 * small.weights.population_kl
  assert small.weights.collapse_penalty == large.weights.collapse_penalty


def test_ramps_end_within_a_quarter_of_a_short_run():
  assert completed(steps=100).ramp.collapse_penalty == 25
  assert (
    completed(steps=10**6).ramp.collapse_penalty == preset_values.RAMP_STEPS
  )


@pytest.mark.parametrize("kind", ["mlp", "conv", "resnet"])
def test_one_given_network_decides_the_other(kind):
  for name, other in (("encoder", "decoder"), ("decoder", "encoder")):
    c = completed(**{f"model__{name}": kind})
    assert c.model[other] == kind
    build.train_spec(c)


def test_every_open_key_can_be_given_by_a_flag(monkeypatch):
  """A key at None needs a field type, by which the flag is read."""
  c, default = config_of("mnist"), config.base()
  keys = [k for k in presets.OPEN_KEYS if config.get(c, k) is None]
  assert keys
  argv = ["", *(f"--c.{key}={config.get(default, key)}" for key in keys)]
  monkeypatch.setattr(sys, "argv", argv)  # where ml_collections finds them
  values = absl.flags.FlagValues()
  flag = config_flags.DEFINE_config_dict("c", c, flag_values=values)
  values(argv)
  for key in keys:
    assert config.get(flag.value, key) == config.get(default, key), key


def test_mistakes():
  with pytest.raises(UserError, match="small, base, large"):
    completed(preset="tiny")
  c = config_of("folder")
  c.preset = ""
  with pytest.raises(UserError, match="is None: set it"):
    presets.complete(c)


def test_the_published_config_is_unchanged():
  c = config_of("celeba_hq")
  assert c.preset == ""
  before = config.to_json(c)
  assert config.to_json(presets.complete(c)) == before
