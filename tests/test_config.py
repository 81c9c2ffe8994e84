"""The schema: its checks, its JSON, and that every key has an effect."""

import collections
import functools
import json
import re

import jax
import jax.numpy as jnp
import peer_cases
import pytest
from conftest import EVAE, FLAT, alone, elbo, flat, small
from damage import damages

from gamix_jax import build, config, presets, step
from gamix_jax.errors import UserError
from gamix_jax.networks import layer_bytes

# ---------------------------------------------------------- every key

COSINE = dict(optim__vae__schedule="cosine", optim__disc__schedule="cosine")
NO_KL = dict(weights__population_kl=None, weights__collapse_penalty=None)
MIXTURE = dict(posterior__name="mixture", posterior__components=2)
ELBO = dict(objective__name="elbo", weights__kl=1.0, **NO_KL)
POISSON = dict(posterior__name="poisson", **ELBO)
VAMP = dict(prior__name="vamp", prior__components=3, **ELBO)
ALONE = dict(weights__adversarial=None, weights__real=None, weights__fake=None)
MULTI = dict(
  data__modalities=("a 4x4x1 l1", "b 3 l2"),
  data__flip=False,
  adversarial__loss="none",
  objective__name="masked",
  weights__kl=1.0,
  weights__subset_kl=1.0,
  **NO_KL,
  **ALONE,
)
ATTENTION = MULTI | dict(multimodal__fusion="attention")
MMVM = MULTI | dict(
  multimodal__fusion="separate",
  objective__name="mmvm",
  weights__subset_kl=None,
)
MIXTURE_BOUND = MULTI | dict(
  objective__name="mixture_bound", weights__subset_kl=None
)

# key: a value other than `flat`'s, and what makes that a valid config
CHANGES = {
  "seed": (1, {}),
  "steps": (77, COSINE),
  "dtype": ("bfloat16", {}),
  "data.image_size": (8, {}),
  "data.channels": (3, {}),
  "data.batch_size": (4, {}),
  "model.latent": (6, {}),
  "model.encoder_features": ((5,), {}),
  "model.decoder_features": ((5,), {}),
  "model.discriminator_features": ((5, 1), {}),
  "model.discriminator_strides": ((1, 1), {}),
  "model.encoder": ("linear", {}),
  "model.decoder": ("linear", {}),
  "model.norm": ("batch", {}),
  "model.input_norm": ("none", {}),
  "model.patch": (2, {}),
  "model.upsample_gain": (2.0, dict(model__decoder_features=(4, 1))),
  "model.bottleneck_channels": (3, {}),
  "model.dropout": (0.25, {}),
  "posterior.name": ("mixture", {}),
  "posterior.components": (2, dict(posterior__name="mixture")),
  "posterior.initial_logvar": (-3.0, {}),
  "posterior.mixture.temperature": (3.0, MIXTURE),
  "posterior.mixture.min_weight": (0.5, MIXTURE),
  "posterior.epanechnikov.prior": ("gaussian", EVAE),
  "posterior.epanechnikov.width": (0.5, EVAE),
  "objective.name": ("elbo", ELBO),
  "objective.population": ("full", {}),
  "objective.reconstruction": ("l2", {}),
  "objective.num_samples": (2, {}),
  "adversarial.loss": ("none", ALONE),
  "adversarial.disc_start": (7, {}),
  "adversarial.gen_delay": (7, {}),
  "weights.recon": (7.0, {}),
  "weights.population_kl": (7.0, {}),
  "weights.collapse_penalty": (7.0, {}),
  "weights.kl": (7.0, ELBO),
  "ramp.population_kl": (7, {}),
  "ramp.collapse_penalty": (7, {}),
  "ramp.kl": (7, ELBO),
  "ramp.kernel": (7, EVAE),
  "ramp.adversarial": (7, {}),
  "posterior.poisson.ramp": ("linear", POISSON),
  "posterior.poisson.temperature": (0.5, POISSON),
  "posterior.poisson.temperature_steps": (7, POISSON),
  "posterior.poisson.max_log_rate": (2.0, POISSON),
  "posterior.poisson.initial_log_rate": (-3.0, POISSON),
  "posterior.poisson.bias": (False, POISSON),
  "prior.name": ("vamp", VAMP | dict(prior__name="mixture")),
  "prior.components": (5, VAMP),
  "weights.kernel": (7.0, EVAE),
  "weights.adversarial": (7.0, {}),
  "weights.real": (7.0, {}),
  "weights.fake": (7.0, {}),
  "multimodal.fusion": ("avg", MULTI),
  "multimodal.private": (2, MULTI),
  "multimodal.subsets": ("bernoulli", MULTI),
  "multimodal.width": (8, ATTENTION),
  "multimodal.layers": (2, ATTENTION),
  "multimodal.heads": (2, ATTENTION),
  "multimodal.vector_encoder_features": ((5,), MULTI),
  "multimodal.vector_decoder_features": ((5,), MULTI),
  "objective.elbo.free_bits": (0.5, ELBO),
  "objective.swae.directions": (7, peer_cases.changes("swae")),
  "objective.sigreg.directions": (7, peer_cases.changes("sigreg")),
  "objective.aae.width": (7, peer_cases.changes("aae")),
  "objective.aae.layers": (3, peer_cases.changes("aae")),
  "weights.code_real": (7.0, peer_cases.changes("aae")),
  "weights.code_fake": (7.0, peer_cases.changes("aae")),
  **{
    f"weights.{t}": (7.0, peer_cases.changes(name))
    for t, name in peer_cases.TERMS.items()
  },
  **{
    f"ramp.{t}": (7, peer_cases.changes(name))
    for t, name in peer_cases.TERMS.items()
  },
  "objective.mmvm.estimate": ("surrogate", MMVM),
  "objective.mmvm.alpha": (0.5, MMVM),
  "objective.mmvm.alpha_steps": (7, MMVM),
  "objective.mixture_bound.kl_count": ("per_modality", MIXTURE_BOUND),
  "weights.subset_kl": (7.0, MULTI),
  "ramp.subset_kl": (7, MULTI),
  "optim.accumulate": (2, dict(objective__population="quadratic")),
  "optim.*.name": ("adam", {}),
  "optim.*.learning_rate": (7e-4, {}),
  "optim.*.b1": (0.7, {}),
  "optim.*.b2": (0.7, {}),
  "optim.*.eps": (7e-4, {}),
  "optim.*.clip": (7.0, {}),
  "optim.*.warmup": (7, {}),
  "optim.*.schedule": ("cosine", {}),
  "ema.decay": (0.7, {}),
}
# Those that affect the initial state, but not the step.
INITIAL = (
  "posterior.initial_logvar",
  "posterior.poisson.initial_log_rate",
  "model.upsample_gain",
)
# Which tests cover the keys that the step does not read.
ELSEWHERE = {
  "data.": "test_data_*: sources, decoding, batches",
  "checkpoint.": "test_checkpoint, test_main",
  "track": "test_trackers",
  "multimodal.observed_sizes": "test_generate_multimodal",
  "mesh.": "test_mesh: state shardings",
  "guard.": "test_main: the run ends",
  "extensions": "test_extensions",
  "model.discriminator": "test_extensions",
  "objective.tcvae.images": "test_peers: its weights are an array",
  "preset": "test_presets",
  "preset_weights.": "test_presets",
  "profile": "test_profile",
  "log_every": "test_main",
  "eval_every": "test_main",
  "eval_images": "test_validation",
  "eval_draws": "test_validation",
}


@functools.cache
def program(text, first=False):
  """Returns the step of a config, or its init, as text with all constants."""
  c = config.from_json(text)
  spec = build.train_spec(c)
  state = jax.eval_shape(functools.partial(step.init, spec))
  batch = {
    k: jax.ShapeDtypeStruct(v.shape, jnp.float32)
    for k, v in spec.batch_shapes(c.data.batch_size).items()
  }
  if first:
    jaxpr = jax.make_jaxpr(functools.partial(step.init, spec))()
  else:
    function = functools.partial(step.train_step, spec)
    jaxpr = jax.make_jaxpr(function)(state, batch)
  return re.sub("0x[0-9a-f]+", "", str(jaxpr))


def changed(key):
  """Returns a key's new value and what it needs; None: covered elsewhere."""
  general = re.sub(r"^optim\.(vae|disc)\.", "optim.*.", key)
  return CHANGES.get(general)


KEYS = list(config.flat(config.base()))


def test_no_key_is_forgotten():
  """A new key must be tested here, or listed as tested elsewhere."""
  lost = [
    k for k in KEYS if not changed(k) and not k.startswith(tuple(ELSEWHERE))
  ]
  assert not lost, f"keys that no test walks: {lost}"
  known = {re.sub(r"^optim\.(vae|disc)\.", "optim.*.", k) for k in KEYS}
  assert set(CHANGES) <= known


@pytest.mark.parametrize("key", [k for k in KEYS if changed(k)])
def test_every_key_changes_the_step(key):
  value, context = changed(key)
  first = flat(**context)
  second = flat(**(context | {key.replace(".", "__"): value}))
  if key in ("objective.name", "adversarial.loss"):
    first = flat()
  elif key == "model.encoder_features":
    assert first.model.encoder_features == FLAT["model__encoder_features"]
  for c in (first, second):
    config.check(c)
  assert config.get(first, key) != config.get(second, key)
  texts = [program(config.to_json(c), key in INITIAL) for c in (first, second)]
  assert texts[0] != texts[1]


# ---------------------------------------------------------- checks


@pytest.mark.parametrize("table", ["POSITIVE", "NOT_NEGATIVE", "BELOW_ONE"])
def test_ranges(table):
  """Every key of a table, at the values next to its limits."""
  wrong, wanted = {
    "POSITIVE": ((0, -1), "> 0"),
    "NOT_NEGATIVE": ((-1,), "0 or more"),
    "BELOW_ONE": ((1.0, -0.1), "in [0, 1)"),
  }[table]
  for key in getattr(config, table):
    kind = type(config.get(config.base(), key))
    for value in wrong:
      shown = kind(value) if kind in (int, float) else value
      changes = {key.replace(".", "__"): shown}
      with pytest.raises(UserError) as e:
        config.check(small(**changes))
      assert str(e.value) == f"{key}={shown} must be {wanted}."


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(weights__recon="1"), r"weights\.recon='1' must be a number"),
    (dict(weights__recon=True), "must be a number >= 0 or None"),
    (dict(weights__recon=-1.0), "must be a number >= 0 or None"),
    (dict(weights__recon=float("nan")), "must be a number"),
    (dict(optim__vae__learning_rate=float("inf")), "must be > 0"),
    (dict(seed=2**63), "64 bits"),
    (dict(data__channels=2), r"data\.channels=2 must be 1 \(grey\) or 3"),
    (dict(data__image_size=(8, 8, 1)), "image_size=.* must be an int"),
    (dict(data__image_size=0), "image_size=.* must be an int"),
    (dict(data__batch_size=0), "batch_size=0 must be an int, at least 1"),
    (dict(data__image_size=8.0), "image_size=.* must be an int"),
    (dict(data__image_size="8"), "image_size=.* must be an int"),
    (dict(data__image_size=(8, 7)), "halves an image 1 times.*6, 8, 10"),
    (dict(data__image_size=1), r"sizes that do: 2, 4 \(multiples of 2\)"),
    (
      dict(data__image_size=(12, 10), model__patch=3),
      "patches of model.patch=3 1 times, which 10 .* 6, 12, 18",
    ),
    (dict(model__encoder_features=()), r"encoder_features is empty"),
    (
      dict(model__decoder="mlp", model__decoder_features=()),
      r"decoder_features is empty",
    ),
    (dict(model__discriminator_strides=(2,)), "of one length"),
    (dict(model__discriminator_features=(4, 2)), "the features 1, the logit"),
    (dict(model__encoder_features=(0, 4)), "whole numbers > 0"),
    (dict(model__discriminator_strides=(0, 1)), "whole numbers > 0"),
    (dict(profile="3"), "profile='3' must be FIRST:LAST"),
    (dict(profile="0:3"), "two steps from 1 to 240000"),
    (dict(profile="5:4"), "two steps from 1 to"),
    (dict(profile="2:9", steps=8), "two steps from 1 to 8"),
  ],
)
def test_refused(changes, message):
  c = small(**changes)
  with pytest.raises(UserError) as e:
    config.check(c)
    build.train_spec(c)
  assert re.search(message, str(e.value)), str(e.value)
  assert len(str(e.value).splitlines()) <= 2


def test_another_thing_than_a_config():
  c = config.base()
  with c.unlocked():
    del c.steps
  for wrong in (None, {}, c):
    with pytest.raises(UserError, match="get_config"):
      config.check(wrong)


def test_accepted():
  for c in (
    config.base(),
    small(),
    flat(),
    alone(),
    elbo(),
    small(data__image_size=(8, 12)),
    small(weights__recon=1),
    small(model__decoder="linear", model__decoder_features=()),
    small(model__encoder_features=(4, 4, 4), model__decoder_features=(4, 7)),
  ):
    config.check(c)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(dtype="float16"), "float32, bfloat16"),
    (dict(dtype="float64"), "JAX_ENABLE_X64"),
    (dict(model__norm="instance"), "affine, batch, group, none"),
    (dict(model__decoder="dense"), "resnet, conv, mlp, linear"),
    (
      dict(model__encoder="dense", model__bottleneck_channels=3),
      "resnet, conv",
    ),
    (dict(model__input_norm="batch"), "layer, none"),
    (dict(data__batch_size=1), "2 or more"),
    (dict(objective__population="cov"), "means, full"),
    (dict(optim__vae__name="lion"), "adam, keras_adam"),
  ],
)
def test_names_are_checked_by_their_tables(changes, message):
  with pytest.raises(UserError, match=message):
    build.train_spec(small(**changes))


KEYS_OF_NETWORKS = dict(
  model__input_norm="none",
  model__patch=2,
  model__upsample_gain=2.0,
  model__bottleneck_channels=3,
)


@pytest.mark.parametrize(
  ("encoder", "decoder", "unread"),
  [
    ("resnet", "resnet", ()),
    ("mlp", "resnet", ()),
    ("resnet", "mlp", ("upsample_gain",)),
    ("linear", "resnet", ("input_norm",)),
    ("conv", "conv", ("bottleneck_channels",)),
    ("mlp", "conv", ("bottleneck_channels",)),
    ("mlp", "mlp", ("patch", "upsample_gain", "bottleneck_channels")),
    (
      *("linear", "linear"),
      ("input_norm", "patch", "upsample_gain", "bottleneck_channels"),
    ),
  ],
)
def test_keys_of_networks_that_are_not_there(encoder, decoder, unread):
  """Refused in one message, with the flags that make it a valid config."""
  c = small(model__encoder=encoder, model__decoder=decoder, **KEYS_OF_NETWORKS)
  config.check(c)
  if unread:
    with pytest.raises(UserError) as e:
      build.train_spec(c)
    suggested = re.findall(
      r"--config\.model\.(\w+)=(\w[\w.]*\w|\d)", str(e.value)
    )
    assert tuple(key for key, _ in suggested) == unread
    assert f"model.encoder='{encoder}' nor model.decoder='{decoder}'" in str(
      e.value
    )
    for key, value in suggested:
      kind = type(c.model[key])
      c.model[key] = kind(value)
  build.train_spec(c)
  # Unset keys are no mistake, whatever the networks.
  build.train_spec(small(model__encoder=encoder, model__decoder=decoder))


def test_a_gain_needs_a_stage():
  with pytest.raises(UserError, match=r"--config\.model\.upsample_gain=1\.0"):
    build.train_spec(flat(model__upsample_gain=2.0))


@pytest.mark.parametrize(
  ("changes", "numbers"),
  [
    ({}, 8 * 8 * 4),
    (dict(model__patch=2), 4 * 4 * 4),
    (dict(model__encoder="conv"), 4 * 4 * 4),
    (dict(model__encoder="conv", model__patch=2), 2 * 2 * 4),
    (dict(model__encoder="mlp"), 8 * 8),
    (dict(model__encoder="mlp", model__encoder_features=(99, 200)), 99),
    (dict(model__encoder="linear"), 8 * 8),
  ],
)
def test_bytes_of_the_first_layer(changes, numbers):
  assert layer_bytes(small(**changes)) == 4 * 8 * numbers


def test_a_misspelt_key_is_an_error():
  c = config.base()
  with pytest.raises(AttributeError, match="batch_sise"):
    c.data.batch_sise = 3
  with pytest.raises(TypeError):
    c.steps = "many"


# ---------------------------------------------------------- JSON


def test_json_round_trip():
  for c in (
    config.base(),
    small(
      data__image_size=(8, 12),
      data__range=(-0.5, 0.5),
      weights__kl=0.5,
      weights__recon=None,
      model__input_norm="none",
      posterior__components=3,
    ),
  ):
    again = config.from_json(config.to_json(c))
    assert config.differences(c, again) == {}
    assert config.to_json(again) == config.to_json(c)
    assert isinstance(again.model.encoder_features, tuple)
    assert config.image_shape(again) == config.image_shape(c)
    build.train_spec(again) if c.weights.recon else None
    assert again.is_locked


def of_version(keys):
  """Returns the text of a config.json with these keys."""
  return f'{{"version": {config.VERSION}, {keys}}}'


@pytest.mark.parametrize("text", ['{"steps": 5}', '{"version": 3}', "{}"])
def test_json_of_another_version(text):
  """Refused in one line, whatever its keys."""
  with pytest.raises(UserError) as e:
    config.from_json(text, "DIR/config.json")
  for words in ("DIR/config.json has config version", "reads 2", "train again"):
    assert words in str(e.value)
  assert len(str(e.value).splitlines()) == 1


def test_json_with_other_keys():
  """Missing keys get their defaults; unknown keys are an error."""
  c = config.from_json(of_version('"steps": 5, "data.batch_size": 7'))
  assert (c.steps, c.data.batch_size) == (5, 7)
  assert set(config.differences(config.base(), c)) == {
    "steps",
    "data.batch_size",
  }
  with pytest.raises(
    UserError, match=r"batch_sise.*did you mean data\.batch_size\?"
  ):
    config.from_json(of_version('"data.batch_sise": 7'))
  with pytest.raises(UserError) as e:
    config.from_json(of_version('"qqqqqqqqqq": 7'), "DIR/config.json")
  assert "DIR/config.json has the unknown key qqqqqqqqqq." in str(e.value)
  with pytest.raises(UserError, match="is not a config"):
    config.from_json("{")


@pytest.mark.parametrize(
  ("text", "words"),
  [
    *(
      (text, "has no keys")
      for text in ("[]", "null", "3", '"x"', "[[1, 2]]", "NaN")
    ),
    ("", "is not a config"),
    ("[" * 100_000, "is not a config"),
    ('{"seed": ' + "1" * 5000 + "}", "is not a config"),
    ('{"version": "x", "steps": 3}', "config version x"),
    ('{"steps": "x"}', "steps is 'x', but must be a whole number"),
    ('{"steps": 1.0}', "steps is '1.0', but must be a whole number"),
    ('{"steps": true}', "steps .* a whole number"),
    ('{"steps": null}', "steps is 'None', but must be a whole number"),
    ('{"steps": [3]}', "steps .* a whole number"),
    ('{"ema.decay": NaN}', "ema.decay is 'nan', but must be a number"),
    ('{"ema.decay": Infinity}', "ema.decay .* a number"),
    ('{"ema.decay": "0.9"}', "ema.decay .* a number"),
    ('{"data.flip": 1}', "data.flip .* true or false"),
    ('{"data.source": 3}', "data.source .* a string"),
    ('{"data.source": "a\\u0000"}', "data.source .* a string"),
    ('{"model.encoder_features": 64}', "encoder_features .* a list of whole"),
    (
      '{"model.encoder_features": [0.5]}',
      "encoder_features .* a list of whole",
    ),
    (
      '{"data.image_size": {"a": 1}}',
      "data.image_size .* a number, a string or",
    ),
    ('{"data.image_size": true}', "data.image_size .* a number, a string or"),
    ('{"weights.kl": NaN}', "weights.kl .* a number, a string or"),
    ('{"model": {"latent": 3}}', "has the unknown key model"),
    ('{"data.of_later": 3}', "unknown key.* A later version"),
  ],
)
def test_json_that_is_no_config(text, words):
  if text.startswith("{") and "version" not in text:
    text = of_version(text[1:-1])
  with pytest.raises(UserError, match=rf"^DIR/config\.json.*{words}"):
    config.from_json(text, "DIR/config.json")


def test_files_that_are_no_config(tmp_path):
  """The message names the file."""
  path = tmp_path / "config.json"
  for make, words in (
    (lambda: path.write_bytes(b'{"seed": "\xff"}'), "is not UTF-8"),
    (lambda: (path.unlink(), path.mkdir()), "cannot be read .Is a directory"),
    (path.rmdir, "cannot be read .No such file"),
    (lambda: path.symlink_to(path), "cannot be read .Too many levels"),
  ):
    make()
    with pytest.raises(UserError, match=f"^{path}.* {words}"):
      config.read(path)


def test_any_damage_of_config_json(tmp_path):
  """Gives a config that can be checked, or a message that names the file."""
  path = tmp_path / "config.json"
  original = config.to_json(small()).encode()
  ends = collections.Counter()
  for damaged in damages(original, 500):
    path.write_bytes(damaged)
    try:
      found = config.read(path)
    except UserError as e:
      assert str(e).startswith(str(path))
      ends["refused"] += 1
      continue
    assert (
      found.is_locked
      and config.flat(found).keys() == config.flat(config.base()).keys()
    )
    try:
      build.train_spec(found)
      ends["good"] += 1
    except UserError:
      ends["out of range"] += 1
  assert min(ends["refused"], ends["good"]) > 20, ends


def test_flat_and_differences():
  a, b = small(), small(model__latent=9, weights__kl=2.0)
  assert config.differences(a, b) == {
    "model.latent": (4, 9),
    "weights.kl": (None, 2.0),
  }
  saved = json.loads(config.to_json(a))
  assert saved == {"version": config.VERSION} | config.flat(a)
  assert config.flat(a)["model.encoder_features"] == [4, 4]


def test_tiny_variant():
  c = presets.variant(config.base(), "tiny")
  config.check(c)
  build.train_spec(c)
  assert c.steps == 3
  assert c.data.source == "synthetic"
  assert presets.variant(c, "") is c
  with pytest.raises(UserError, match="'tiny'"):
    presets.variant(c, "large")
