"""A trained model of several modalities: any subset in, any subset out."""

import functools
import json
import re

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from program import ROOT
from scipy import special, stats

import gamix_jax
from gamix_jax import (
  build,
  cli,
  config,
  data,
  export,
  inference,
  locate,
  presets,
)
from gamix_jax.cpu import malloc
from gamix_jax.errors import UserError
from gamix_jax.export import serialize, signatures
from gamix_jax.inference import device, fitting, safetensors_io, samplers
from gamix_jax.keras_weights import import_weights
from gamix_jax.multimodal import RandomComponent, WithPrivate
from gamix_jax.posterior import Gaussian

pytestmark = pytest.mark.usefixtures("quick")
KEY = jax.random.key(4)
MIXED = ("a 4x4x1 l1", "b 5 categorical", "c 3 l2")
NUMBERS = ("x 3 l2", "y 2 l2")


def settings(fusion, modalities=MIXED, **changes):
  """Returns a config with narrow networks; `__` stands for a dot."""
  c = presets.multimodal(config.base(), modalities)
  c.data.source, c.data.batch_size = "npz:unused.npz", 8
  c.model.latent, c.model.patch = 2, 1
  c.model.encoder_features = c.model.decoder_features = (3,)
  c.multimodal.vector_encoder_features = (4,)
  c.multimodal.vector_decoder_features = (4,)
  c.multimodal.fusion, c.multimodal.width = fusion, 8
  separate = fusion == "separate"
  c.objective.name = "mmvm" if separate else "mixture_bound"
  c.weights.kl = 1.0
  for key, value in changes.items():
    config.put(c, key.replace("__", "."), value)
  return c


def in_memory(c, change=lambda params: params, **kwargs):
  """Returns a model with weights from NumPy."""
  spec = build.train_spec(c)
  state = conftest.state_of(spec)
  vae = {"params": change(state.vae.params), "batch_stats": {}}
  return inference.MultimodalModel(c, spec, 0, vae, {}, **kwargs)


def mixed(n=7, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "a": rng.uniform(-1, 1, (n, 4, 4, 1)).astype("f4"),
    "b": rng.integers(0, 5, n),
    "c": rng.normal(size=(n, 3)).astype("f4"),
  }


def by_module(model, x, mask):
  """The posterior from the module itself, of complete arrays."""
  x = {**x, "b": jax.nn.one_hot(x["b"], 5), "mask": jnp.asarray(mask, "f4")}
  variables = jax.device_get(model.variables["vae"])
  return model.spec.vae.apply(variables, x, method="encode")


@pytest.fixture(scope="module", params=["separate", "moe", "attention"])
def model(request):
  return in_memory(settings(request.param), batch_size=4)


@pytest.fixture(scope="module")
def loaded(polydigits):
  return gamix_jax.load(polydigits)


@pytest.fixture(scope="module")
def held_out(loaded):
  dataset = data.open_dataset(loaded.config.data, "test", 0)
  return fitting.read_observations(dataset, range(20))


# ---------------------------------------------------------- encode


def test_a_loaded_run(loaded, held_out):
  assert isinstance(loaded, gamix_jax.MultimodalModel)
  assert loaded.names == ("m0", "m1", "m2", "m3", "m4")
  assert (loaded.step, loaded.batch_size) == (3, 256)
  q = loaded.encode(held_out)  # with its mask and label
  assert q.mean().shape == (20, 5 * 4)
  z = q.mean()[:, None]
  decoded = loaded.decode(z)
  assert {v.shape for v in decoded.values()} == {(20, 1, 16, 16, 3)}
  shown = loaded.reconstruct(held_out)
  for k in loaded.names:
    np.testing.assert_array_equal(decoded[k][:, 0], shown[k])
    assert shown[k].dtype == np.float32 and np.abs(shown[k]).max() <= 1
  raw = loaded.decode(1000 * np.asarray(z), raw=True)["m1"]
  assert np.abs(raw).max() > 1
  assert np.abs(loaded.decode(1000 * np.asarray(z))["m1"]).max() == 1


def test_any_subset_in_any_order_whatever_the_chunks(model):
  """As the module itself: with a mask, and without the other arrays."""
  x = mixed()
  for given in (("a",), ("b",), ("c", "a"), ("b", "c", "a")):
    mask = np.tile([k in given for k in "abc"], (7, 1))
    wanted = by_module(model, x, mask)
    without = model.encode({k: x[k] for k in given})
    conftest.assert_close(without, wanted, rtol=1e-5)
    conftest.assert_same(model.encode(x | {"mask": mask}), without)
    in_turn = {"mask": mask, **{k: x[k] for k in reversed("abc")}}
    conftest.assert_same(model.encode(in_turn), without)
    # Rows that lack a modality say the same in company of others that have it.
    half = mask | (np.arange(7) % 2 == 0)[:, None]
    some = model.encode(x | {"mask": half})
    rows = np.arange(7) % 2 == 1
    odd = jax.tree.map(lambda leaf, r=rows: leaf[r], (some, without))
    conftest.assert_close(*odd, rtol=1e-5)


def test_what_is_masked_changes_nothing_to_the_bit(model):
  x = mixed()
  mask = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0], *[[1, 1, 1]] * 4])
  other = jax.tree.map(np.copy, x)
  other["a"][1], other["b"][0], other["c"][2] = np.nan, -1, np.inf
  for function in (
    model.encode,
    model.reconstruct,
    functools.partial(model.log_likelihood, samples=3),
    functools.partial(model.translate, from_=("a", "c"), to="b", key=KEY),
  ):
    a, b = (function(v | {"mask": mask}) for v in (x, other))
    conftest.assert_same(a, b)


def test_kinds_of_arrays(model):
  x = mixed()
  wanted = model.encode(x)
  one_hot = np.eye(5)[x["b"]]
  for b in (
    one_hot,
    one_hot.astype(int),
    jnp.asarray(one_hot),
    x["b"][:, None],
  ):
    same = x | {"b": b[:, 0] if b.shape[1] == 1 else b}
    conftest.assert_same(model.encode(same), wanted)
  pixels = np.round((x["a"] + 1) * 127.5).astype(np.uint8)
  floats = pixels / np.float32(127.5) - 1
  conftest.assert_close(
    model.encode({"a": pixels}), model.encode({"a": floats}), rtol=1e-5
  )


# ---------------------------------------------------------- from some to others


def test_translations_decode_the_posterior_of_what_is_given(model):
  x = mixed()
  q = model.encode({"a": x["a"]})
  wanted = model.decode(q.mean())
  found = model.translate(x, from_="a")
  assert list(found) == ["b", "c"]
  for k, v in found.items():
    np.testing.assert_array_equal(v, wanted[k])
  np.testing.assert_allclose(found["b"].sum(axis=-1), 1, rtol=1e-5)
  found = model.translate(x, ("b", "c"), ["a", "b"])
  assert found["a"].shape == (7, 4, 4, 1) and found["b"].shape == (7, 5)
  conftest.assert_same(
    model.translate({"a": x["a"]}), model.translate(x, "a", ("b", "c"))
  )


@pytest.mark.parametrize("fusion", ["separate", "moe"])
def test_translations_can_be_drawn(fusion):
  model, x = in_memory(settings(fusion)), mixed(2)
  many = {k: np.repeat(v, 3000, axis=0) for k, v in x.items()}
  given = {"a": many["a"], "b": many["b"]}
  first = model.translate(given, key=KEY)["c"]
  np.testing.assert_array_equal(model.translate(given, key=KEY)["c"], first)
  other = model.translate(given, key=jax.random.key(5))["c"]
  assert np.abs(first - other).max() > 0.01
  # The same distribution as the posterior's own draws have.
  z, w = model.encode({"a": x["a"], "b": x["b"]}).sample(KEY, 3000)
  draws = model.decode(z)["c"]
  for i in range(2):
    mine = first[3000 * i : 3000 * (i + 1)]
    mean = np.average(draws[:, i], axis=0, weights=w[:, i])
    scale = mine.std(axis=0) + 1e-3
    assert (np.abs(mine.mean(axis=0) - mean) < 6 * scale / 3000**0.5).all()


def test_imputed_observations_keep_what_is_observed(model):
  x = mixed()
  mask = np.array([[1, 0, 1], [0, 1, 0], *[[1, 1, 1]] * 5])
  found = model.impute(x, mask)
  assert list(found) == ["a", "b", "c"]
  wanted = {**x, "b": np.eye(5)[x["b"]]}
  for i, k in enumerate("abc"):
    there = mask[:, i] == 1
    np.testing.assert_array_equal(found[k][there], wanted[k][there])
  one = {k: v[:1] for k, v in x.items()}
  np.testing.assert_allclose(
    found["b"][:1], model.translate(one, ("a", "c"), "b")["b"], rtol=1e-5
  )
  two = {k: v[1:2] for k, v in x.items()}
  for k in "ac":
    wanted = model.translate(two, "b", k)[k]
    np.testing.assert_allclose(found[k][1:2], wanted, atol=1e-5)
  conftest.assert_same(model.impute(x | {"mask": mask}), found)
  alone = model.impute({"b": x["b"]})
  conftest.assert_same(alone["a"], model.translate(x, "b", "a")["a"])
  drawn = model.impute(x, mask, key=KEY)
  assert np.abs(drawn["b"][0] - found["b"][0]).max() > 1e-4
  assert set(model.reconstruct({"b": x["b"]})) == {"b"}


# ---------------------------------------------------------- bounds


def linear(fusion="avg", **changes):
  """Returns a model with linear decoders, and their weights in NumPy.

  Its posteriors are close to the prior, and so wide enough that importance
  weights are bounded.
  """
  c = settings(
    *(fusion, NUMBERS),
    multimodal__vector_encoder_features=(),
    multimodal__vector_decoder_features=(),
    **changes,
  )
  model = in_memory(
    c,
    lambda params: (
      params | {"fusion": jax.tree.map(lambda x: 0.3 * x, params["fusion"])}
    ),
  )
  params = jax.device_get(model.variables["vae"]["params"])
  parts = {}
  for k in ("x", "y"):
    out = params[f"decoders_{k}"]["out"]
    parts[k] = [np.asarray(out[v], np.float64) for v in ("kernel", "bias")]
  return model, parts


def numbers(n=6):
  rng = np.random.default_rng(2)
  return {
    "x": rng.normal(size=(n, 3)).astype("f4"),
    "y": rng.normal(size=(n, 2)).astype("f4"),
  }


def marginal(parts, names, x, mean=None, var=None):
  """ln of the integral of p(x_names | z) N(z; mean, diag var), exactly."""
  w = np.concatenate([parts[k][0] for k in names], axis=1)
  bias = np.concatenate([parts[k][1] for k in names])
  values = np.concatenate([x[k] for k in names], axis=1).astype(np.float64)
  n, d = len(values), len(w)
  mean = np.zeros((n, d)) if mean is None else np.asarray(mean, np.float64)
  var = np.ones((n, d)) if var is None else np.asarray(var, np.float64)
  return np.array(
    [
      stats.multivariate_normal.logpdf(
        v, m @ w + bias, w.T @ np.diag(s) @ w + np.eye(len(bias))
      )
      for v, m, s in zip(values, mean, var, strict=True)
    ]
  )


def test_likelihoods_of_a_linear_gaussian_model():
  """Against its exact ln p(x), and its exact predictive density."""
  model, parts = linear()
  x = numbers()
  for names in (("x",), ("y",), ("x", "y")):
    exact = marginal(parts, names, x)
    found = model.log_likelihood(x, 20_000, of=names)
    np.testing.assert_allclose(found, exact, atol=0.03)
    alone = model.log_likelihood({k: x[k] for k in names}, 20_000)
    np.testing.assert_allclose(alone, found, rtol=1e-6)
    elbo = model.elbo({k: x[k] for k in names}, 2_000)
    assert (elbo < exact).all()
  for given, of in (("x", "y"), ("y", "x")):
    q = model.encode({given: x[given]})
    assert isinstance(q, Gaussian)
    exact = marginal(parts, (of,), x, q.mu, np.exp(q.logvar))
    found = model.log_likelihood(x, 20_000, given=given)
    np.testing.assert_allclose(found, exact, atol=0.03)


def test_conditional_likelihoods_have_lower_bounds_in_expectation():
  model, parts = linear()
  x = numbers()
  q = model.encode({"x": x["x"]})
  exact = marginal(parts, ("y",), x, q.mu, np.exp(q.logvar))
  few = [
    model.log_likelihood(x, 2, given="x", of="y", key=jax.random.key(i))
    for i in range(300)
  ]
  error = np.std(few, axis=0) / 300**0.5
  assert (np.mean(few, axis=0) < exact + 3 * error).all()
  assert (np.mean(few, axis=0) < exact - 3 * error).any()


@pytest.mark.parametrize(
  ("fusion", "changes"),
  [
    ("separate", {}),
    ("moe", dict(multimodal__private=1)),
    (
      "sum_pooling",
      dict(posterior__name="mixture", posterior__components=3),
    ),
  ],
)
def test_likelihoods_by_hand(fusion, changes):
  """From the posterior's own draws, decoded, with SciPy's densities."""
  model = in_memory(settings(fusion, **changes))
  x, samples = mixed(3), 7
  x["b"] = np.eye(5, dtype="f4")[x["b"]]

  def density(k, decoded):
    if k == "b":
      return np.sum(x[k] * np.log(decoded), axis=-1)
    size = x[k][0].size
    law = stats.laplace(scale=2) if k == "a" else stats.norm()
    each = law.logpdf(np.asarray(x[k], np.float64) - decoded)
    return each.reshape(*each.shape[:2], size).sum(axis=-1)

  def draws(q):
    for t in range(samples):
      parts = []
      for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], q)
        key = jax.random.fold_in(jax.random.fold_in(KEY, i), t)
        parts.append(one.sample(key, 1))
      z, w = (np.concatenate(v, axis=1) for v in zip(*parts, strict=True))
      decoded = model.decode(z, raw=True)
      decoded["b"] = special.softmax(decoded["b"], axis=-1)
      yield z, np.log(w), decoded

  q = model.encode({k: x[k] for k in "ac"})
  terms = [w + density("b", decoded["b"]) for _, w, decoded in draws(q)]
  by_hand = special.logsumexp(terms, axis=(0, 1)) - np.log(samples)
  found = model.log_likelihood(x, samples, given=("a", "c"), of="b", key=KEY)
  np.testing.assert_allclose(found, by_hand, rtol=1e-5)

  q = model.encode(x)
  terms = [
    w
    + sum(density(k, decoded[k]) for k in "abc")
    + np.asarray(q.log_prior(z) - q.log_prob(z))
    for z, w, decoded in draws(q)
  ]
  joint = special.logsumexp(terms, axis=(0, 1)) - np.log(samples)
  found = model.log_likelihood(x, samples, key=KEY)
  np.testing.assert_allclose(found, joint, rtol=1e-5)


def test_rows_without_a_modality_have_the_likelihood_of_the_rest():
  model, _ = linear("poe")
  x = numbers()
  mask = np.array([[1, 1]] * 5 + [[1, 0]])
  found = model.log_likelihood(x | {"mask": mask}, 50)
  complete = model.log_likelihood(x, 50)
  np.testing.assert_allclose(found[:5], complete[:5], rtol=1e-5)
  only = model.log_likelihood(x, 50, of="x")
  np.testing.assert_allclose(found[5], only[5], rtol=1e-5)


# ---------------------------------------------------------- new observations


def test_draws_of_mixtures_are_of_one_component():
  """Also at other temperatures than 1, and with private latents."""
  mu = np.array([[[10.0, 0], [0, 10], [99, 99]]] * 2, "f4")
  logits = np.array([[0, 0, -1e9]] * 2, "f4")
  q = RandomComponent(logits, mu, np.zeros_like(mu))
  z = samplers.draw_population(q, KEY, 2000, temperature=0)
  assert {tuple(row) for row in z.tolist()} == {(10, 0), (0, 10)}
  assert 850 < (z[:, 0] == 10).sum() < 1150
  own = np.full((2, 2, 1), 3, "f4")
  z = samplers.draw_population(
    WithPrivate(q, own, np.zeros_like(own)), KEY, 50, temperature=0
  )
  assert {tuple(row) for row in z.tolist()} == {(10, 0, 3, 3), (0, 10, 3, 3)}
  z = samplers.draw_population(q, KEY)
  assert z.shape == (2, 2)


@pytest.mark.parametrize(
  ("changes", "source"),
  [
    (dict(fusion="separate"), "gmm"),
    (dict(fusion="separate", objective__mmvm__alpha=0.5), "gmm"),
    (dict(fusion="separate", objective__mmvm__alpha=1.0), "prior"),
    (dict(fusion="separate", objective__name="elbo"), "prior"),
    (
      dict(
        fusion="separate",
        objective__name="mmvm_population",
        weights__population_kl=1.0,
        weights__collapse_penalty=0.1,
      ),
      "prior",
    ),
    (dict(fusion="poe"), "prior"),
  ],
)
def test_what_new_observations_come_from(changes, source):
  model = in_memory(settings(**changes))
  assert model.default_source == source
  if source == "prior":
    found = model.sample(KEY, 3, temperature=0.5)
    assert {k: v.shape for k, v in found.items()} == {
      **{"a": (3, 4, 4, 1), "b": (3, 5), "c": (3, 3)}
    }
    conftest.assert_same(found, model.sample(KEY, 3, temperature=0.5))
  else:
    with pytest.raises(UserError, match=r"'mmvm'.*fit_samplers.*'gmm'"):
      model.sample(KEY, 3)
  with pytest.raises(UserError, match="are none for the ema"):
    model.sample(KEY, 3, source="gmm")
  model.fit_samplers(mixed(60), components=2)
  assert model.sample(KEY, 3, source="gmm")["b"].shape == (3, 5)
  assert model.sample(KEY, 3, source="population")["c"].shape == (3, 3)


def test_samplers_are_saved_with_the_run(polydigits, held_out):
  model = gamix_jax.load(polydigits)
  fitting.ensure_fitted(model, "gmm", images=40, say=lambda line: None)
  assert model.fitted["images"] == 40
  again = gamix_jax.load(polydigits)
  assert again.fitted == model.fitted
  for source in ("gmm", "population"):
    conftest.assert_same(
      *(m.sample(KEY, 4, source=source) for m in (model, again))
    )
  assert again.latent_map(held_out).shape == (20, 2)


def test_documented_example(polydigits, held_out):
  """Runs every line of the Python block of docs/multimodal.md."""
  text = (ROOT / "docs" / "multimodal.md").read_text()
  blocks = re.findall(r"```python\n(.*?)```", text, re.S)
  (block,) = (b for b in blocks if "gamix_jax.load" in b)
  assert '"runs/polydigits"' in block
  block = block.replace('"runs/polydigits"', repr(str(polydigits)))
  mask = np.array([[1, 0, 1, 1, 0]] * 20)
  names = {"x": held_out, "train": held_out, "mask": mask}
  exec(compile(block, "multimodal.md", "exec"), names)
  assert names["views"].keys() == {"m1", "m2", "m3", "m4"}
  called = set(re.findall(r"model\.(\w+)\(", block))
  public = {n for n in dir(gamix_jax.MultimodalModel) if not n.startswith("_")}
  assert public - called == {
    *("fitted", "check_source", "bounds", "default_source", "names"),
    *("with_prior", "draw_latents", "trained_sizes", "check_trained"),
  }


# ---------------------------------------------------------- refusals


@pytest.mark.parametrize(
  ("x", "words"),
  [
    ({}, "No modality is given.*a, b, c"),
    ({"mask": np.ones((2, 3))}, "No modality is given"),
    (np.zeros((2, 3)), "a dict of arrays"),
    ({"d": np.zeros((2, 3))}, "no modality 'd'; it has a, b, c"),
    ({"a": np.zeros((4, 4, 1))}, r"a has shape \(4, 4, 1\).*\[b, 4, 4, 1\]"),
    ({"a": np.zeros((2, 4, 4, 1), int)}, "Values of a have dtype int64"),
    ({"a": np.full((2, 4, 4, 1), 255.0)}, r"255.*\[-1, 1\]"),
    ({"c": np.zeros((0, 3))}, r"\(0, 3\)"),
    ({"c": np.full((2, 3), np.nan)}, "6 of 6 values"),
    ({"c": np.zeros(())}, r"c has shape \(\)"),
    ({"b": np.zeros((2, 4))}, r"\(2, 4\).*\[b, 5\], or whole numbers.*\[b\]"),
    ({"b": np.array([0, 5])}, "classes from 0 to 5.*0 to 4"),
    ({"b": np.array([0, -1])}, "classes from -1 to 0.*mask"),
    ({"b": np.full((2, 5), 0.3)}, "sum to 1"),
    ({"b": np.array([[2.0, -1, 0, 0, 0]])}, "sum to 1"),
    (
      {"b": np.array([0, 1]), "c": np.zeros((3, 3))},
      "different numbers of rows: {'b': 2, 'c': 3}",
    ),
    ({"b": np.array([0, 1]), "mask": np.ones((2, 2))}, r"must be \[2, 3\]"),
    ({"b": np.array([0, 1]), "mask": np.full((2, 3), 0.5)}, "other values"),
    (
      {"b": np.array([0, 1]), "mask": [[1, 1, 1], [1, 0, 1]]},
      "1 of 2 rows .the first is row 1. have no observed modality",
    ),
  ],
)
def test_observations_that_are_refused(x, words):
  model = in_memory(settings("poe"))
  for function in (model.encode, model.impute, model.log_likelihood):
    with pytest.raises(UserError, match=words):
      function(x)


def test_what_else_is_refused():
  model = in_memory(settings("poe"))
  x = mixed(2)
  gap = x | {"mask": [[1, 1, 1], [0, 1, 1]]}
  for call, words in (
    (lambda: model.translate(x), "nothing to generate"),
    (lambda: model.translate(x, "d"), "from_='d' must be one of a, b, c"),
    (lambda: model.translate(x, "a", "d"), "to='d' must be one of"),
    (lambda: model.translate(x, ()), "one or more different names"),
    (lambda: model.translate(x, ("a", "a")), "different names"),
    (lambda: model.translate(gap, "a"), "1 of 2 rows.*row 1.*no a, which"),
    (lambda: model.translate({"b": x["b"]}, "a"), "2 of 2 rows"),
    (lambda: model.log_likelihood(x, 0), "samples=0"),
    (lambda: model.log_likelihood(x, 0, given="a"), "samples=0"),
    (lambda: model.log_likelihood(x, given="a", of="a"), "different mod"),
    (lambda: model.log_likelihood(x, given=("a", "b", "c")), "left for `of`"),
    (lambda: model.log_likelihood(gap, given="b", of="a"), "no a, which of"),
    (lambda: model.decode(np.zeros((2, 3))), r"\(2, 3\).*\[..., 2\]"),
    (lambda: model.sample(KEY, 0), "n=0"),
    (lambda: model.sample(KEY, 1, source="vamp"), "does not work with"),
  ):
    with pytest.raises(UserError, match=words):
      call()


def test_a_command_for_images_refuses(loaded, tmp_path):
  with pytest.raises(UserError, match=r"data\.modalities is set"):
    import_weights("none.h5", loaded.config, tmp_path / "run")


# ---------------------------------------------------------- memory


def test_batches_go_with_the_size_of_all_images(tmp_path, monkeypatch):
  for entries, size in (
    (NUMBERS, 256),
    (MIXED, 256),
    (("a 128x128x3 l1", "b 128x128x3 l1"), 32),
  ):
    spec = build.train_spec(settings("poe", entries))
    assert device.default_batch_size(spec.modalities) == size
  kept = []
  monkeypatch.setattr(malloc, "keep_freed_on_cpu", kept.append)
  for entries in (NUMBERS, MIXED):
    text = config.to_json(settings("poe", entries))
    (tmp_path / "config.json").write_text(text)
    cli.keep_freed_memory(locate.locate(tmp_path))
  # One without images has no large layer.
  assert kept[0] == 0 and kept[1] == 4 * 256 * 12


# ---------------------------------------------------------- export


def test_an_exported_run_is_the_model(loaded, held_out, tmp_path):
  export.export(loaded, "model", "safetensors", tmp_path)
  again = gamix_jax.load(tmp_path)
  assert isinstance(again, gamix_jax.MultimodalModel)
  x = {k: held_out[k] for k in ("m1", "m3")}
  conftest.assert_same(again.translate(x), loaded.translate(x))
  parts = [
    safetensors_io.flat(loaded.variables, what).keys()
    for what in ("model", "encoder", "decoder")
  ]
  assert not parts[1] & parts[2] and parts[1] | parts[2] == parts[0]


@pytest.mark.parametrize(
  ("fusion", "changes"),
  [
    ("separate", {}),
    ("mopoe", dict(multimodal__private=1)),
    ("attention", {}),
    ("sum_pooling", dict(multimodal__private=1)),
  ],
)
def test_exported_functions_take_all_modalities(fusion, changes, tmp_path):
  model = in_memory(settings(fusion, **changes))
  for what in ("encoder", "decoder"):
    export.export(model, what, "stablehlo", tmp_path)
  encoder, decoder = (
    jax.export.deserialize(bytearray((tmp_path / name).read_bytes()))
    for name in ("encoder.stablehlo", "decoder.stablehlo")
  )
  x = mixed(5)
  mask = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]])
  given = x | {"b": np.eye(5, dtype="f4")[x["b"]], "mask": mask.astype("f4")}
  given["a"][2] = np.nan  # masked
  out = encoder.call(given)
  q = model.encode(x | {"mask": mask})
  np.testing.assert_allclose(out["mean"], q.mean(), atol=1e-6)
  wanted = model.decode(q.mean())
  found = decoder.call(out["mean"])
  assert found.keys() == wanted.keys()
  for k, v in wanted.items():
    np.testing.assert_allclose(found[k], v, atol=1e-5)
  about = json.loads((tmp_path / "encoder.stablehlo.json").read_text())
  assert about["inputs"] == {
    "a": {"shape": ["b", 4, 4, 1], "dtype": "float32", "range": [-1, 1]},
    "b": {"shape": ["b", 5], "dtype": "float32", "range": [0, 1]},
    "c": {"shape": ["b", 3], "dtype": "float32", "range": None},
    "mask": {"shape": ["b", 3], "dtype": "float32", "range": [0, 1]},
  }
  assert about["max_difference"] <= 1e-5


def test_onnx(tmp_path):
  reason = "pip install '.[onnx]' has it tested"
  pytest.importorskip("jax2onnx", reason=reason)
  runtime = pytest.importorskip("onnxruntime", reason=reason)
  model = in_memory(settings("poe"))
  for what in ("encoder", "decoder"):
    export.export(model, what, "onnx", tmp_path)
  session = runtime.InferenceSession(tmp_path / "encoder.onnx")
  x = mixed(3)
  x |= {"b": np.eye(5, dtype="f4")[x["b"]], "mask": np.ones((3, 3), "f4")}
  names = [o.name for o in session.get_outputs()]
  out = dict(zip(names, session.run(None, x), strict=True))
  np.testing.assert_allclose(out["mean"], model.encode(x).mean(), atol=1e-5)
  part = signatures.part(model, "encoder")
  with pytest.raises(UserError, match="onnxruntime cannot run"):
    serialize.RUNNERS["onnx"](b"damaged", part, x)
  same = in_memory(settings("poe", ("z 3 l2", "y 2 l2")))
  with pytest.raises(UserError, match="'z' has the name of another value"):
    export.export(same, "decoder", "onnx", tmp_path / "same")
