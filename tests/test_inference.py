"""A trained model, loaded: accepted inputs, outputs, refusals."""

import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import conftest
import eight_inference
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import gamix_jax
from gamix_jax import build, posterior
from gamix_jax import config as configs
from gamix_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")
SHAPE = (8, 8, 1)


def of(spec, params, stats, method, *args):
  """Applies the module itself, neither jitted nor in chunks, as a reference."""
  variables = {"params": params, "batch_stats": stats}
  if method == "encode":
    args = ({"image": args[0]},)
  out = spec.vae.apply(variables, *args, method=method)
  return out["image"] if method == "decode" else out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with two checkpoints: its folder, spec and states."""
  config = conftest.small(posterior__name="mixture", posterior__components=3)
  spec = build.train_spec(config)
  states = [conftest.state_of(spec, seed) for seed in (0, 1)]
  averages = jax.tree.map(lambda x: 0.9 * x, states[1].vae.params)
  states[1] = states[1].replace(ema=averages)
  folder = tmp_path_factory.mktemp("runs") / "run"
  conftest.save_run(folder, config, *states)
  return folder, spec, states


@pytest.fixture(scope="module")
def flat_run(tmp_path_factory):
  """The workdir of a model that compiles faster."""
  config = conftest.flat(posterior__name="mixture", posterior__components=2)
  state = conftest.state_of(build.train_spec(config))
  folder = tmp_path_factory.mktemp("flat") / "run"
  conftest.save_run(folder, config, state)
  return folder


@pytest.fixture(scope="module")
def model(run):
  return gamix_jax.load(run[0], batch_size=4)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).uniform(-1, 1, (10, *SHAPE)).astype("f4")


# ---------------------------------------------------------- which weights


def test_importing_the_package_does_not_import_jax():
  code = "import gamix_jax, sys; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
  with pytest.raises(AttributeError, match="nothing"):
    _ = gamix_jax.nothing


@pytest.mark.parametrize(
  ("which", "step", "wanted"),
  [("ema", None, 10), ("raw", None, 10), ("raw", 5, 5)],
)
def test_load_gives_the_weights_asked_for(run, images, which, step, wanted):
  folder, spec, states = run
  state = states[wanted // 5 - 1]
  params = state.ema if which == "ema" else state.vae.params
  model = gamix_jax.load(folder, which, step)
  assert model.step == wanted
  assert configs.flat(model.config)["posterior.components"] == 3
  q = of(spec, params, state.vae.batch_stats, "encode", images)
  conftest.assert_close(model.encode(images), q, rtol=1e-5)


def test_every_public_name_of_a_model(run, model):
  folder, spec, _ = run
  assert model.spec.image.shape == spec.image.shape == SHAPE
  assert gamix_jax.load(folder).batch_size == 256
  assert isinstance(model, gamix_jax.Model)


# ---------------------------------------------------------- numbers


def test_outputs_are_the_modules_whatever_the_chunks(run, model, images):
  _, spec, (_, state) = run
  stats = state.vae.batch_stats
  q = of(spec, state.ema, stats, "encode", images)
  for n in (1, 3, 4, 5, 10):  # with a batch_size of 4
    ours = model.encode(images[:n])
    assert isinstance(ours, posterior.Mixture)
    conftest.assert_close(
      ours, jax.tree.map(lambda leaf, n=n: leaf[:n], q), rtol=1e-5
    )
  z = np.random.default_rng(1).normal(size=(2, 5, 4)).astype("f4")
  raw = of(spec, state.ema, stats, "decode", z)
  np.testing.assert_allclose(model.decode(z, raw=True), raw, atol=2e-5)
  np.testing.assert_allclose(
    model.decode(z[0, 0], raw=True), raw[0, 0], atol=2e-5
  )
  shown = model.decode(3 * z)
  assert shown.shape == (2, 5, *SHAPE)
  assert shown.dtype == np.float32 and isinstance(shown, np.ndarray)
  assert np.abs(model.decode(3 * z, raw=True)).max() > 1
  assert np.abs(shown).max() == 1
  variables = {
    "params": state.disc.params,
    "batch_stats": state.disc.batch_stats,
  }
  logits = spec.disc.apply(variables, images)
  np.testing.assert_allclose(model.discriminate(images), logits, atol=2e-5)
  one = model.discriminate(images[7])
  np.testing.assert_allclose(one, logits[7], atol=2e-5)
  # As in training: without clipping the output.
  seen = spec.disc.apply(variables, raw[0])
  ours = model.discriminate(model.decode(z[0], raw=True), raw=True)
  np.testing.assert_allclose(ours, seen, atol=5e-5)


def test_few_images_do_not_pay_for_a_whole_chunk(run, images, caplog):
  model = gamix_jax.load(run[0], batch_size=4)
  caplog.set_level(logging.WARNING, "jax")
  for n in (1, 2, 3, 4, 5, 7, 9):
    with jax.log_compiles():
      model.encode(images[:n])
  compiled = {
    r.getMessage() for r in caplog.records if "encode)" in r.getMessage()
  }
  assert sum(m.startswith("Compiling") for m in compiled) == 3  # 1, 2, 4 rows


def test_documented_example(flat_run):
  """Runs every line of the Python block of docs/inference.md."""
  text = (Path(__file__).parents[1] / "docs" / "inference.md").read_text()
  block, *_ = re.findall(r"```python\n(.*?)```", text, re.S)
  assert '"runs/digits"' in block
  block = block.replace('"runs/digits"', f"{str(flat_run)!r}, batch_size=16")
  images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
  names = {"images": images, "train_images": np.tile(images, (4, 1, 1, 1))}
  exec(compile(block, "inference.md", "exec"), names)
  called = set(re.findall(r"model\.(\w+)\(", block))
  public = {n for n in dir(gamix_jax.Model) if not n.startswith("_")}
  rest = {"fitted", "check_source", "bounds", "default_source"}
  rest |= {"hidden", "seen"}  # of runs with data.occlude
  assert public - called == rest


def test_reconstruct_sample_interpolate(model, images):
  shown = model.decode(model.encode(images).mean())
  np.testing.assert_array_equal(model.reconstruct(images), shown)
  np.testing.assert_allclose(model.reconstruct(images[2]), shown[2], atol=2e-5)

  key = jax.random.key(3)
  pictures = model.sample(key, 6)
  assert pictures.shape == (6, *SHAPE)
  np.testing.assert_array_equal(pictures, model.sample(key, 6))
  assert np.abs(pictures - model.sample(jax.random.key(4), 6)).max() > 0.01
  at_mean = model.sample(key, 2, temperature=0)
  np.testing.assert_allclose(at_mean[0], model.decode(np.zeros(4)), atol=2e-5)
  z = jax.random.normal(key, (6, 4))
  half = model.sample(key, 6, temperature=0.5)
  np.testing.assert_allclose(half, model.decode(z / 2), atol=2e-5)

  way = model.interpolate(images[0], images[1], 5)
  assert way.shape == (5, *SHAPE)
  np.testing.assert_allclose(way[0], shown[0], atol=2e-5)
  np.testing.assert_allclose(way[-1], shown[1], atol=2e-5)
  ends = model.encode(images[:2]).mean()
  np.testing.assert_allclose(
    way[2], model.decode((ends[0] + ends[1]) / 2), atol=2e-5
  )


def test_every_kind_of_image_that_is_taken(model, images):
  bytes_ = np.round((images + 1) * 127.5).astype(np.uint8)
  floats = bytes_ / np.float32(127.5) - 1
  wanted = model.encode(floats)
  for same in (
    bytes_,
    jnp.asarray(bytes_),
    jnp.asarray(floats),
    floats.astype("f8"),
    floats.tolist(),
  ):
    conftest.assert_close(model.encode(same), wanted, rtol=2e-5)
  for kind in (np.float16, ml_dtypes.bfloat16):
    conftest.assert_close(model.encode(floats.astype(kind)), wanted, rtol=0.05)
  model.encode(np.full(SHAPE, 1.0005))  # rounding is tolerated


def test_bernoulli_logits_are_shown_as_images(tmp_path):
  config = conftest.small(objective__reconstruction="bernoulli")
  spec = build.train_spec(config)
  conftest.save_run(tmp_path / "run", config, conftest.state_of(spec))
  model = gamix_jax.load(tmp_path / "run")
  z = np.random.default_rng(0).normal(size=(3, 4))
  raw = model.decode(z, raw=True)
  np.testing.assert_allclose(model.decode(z), np.tanh(raw / 2), atol=1e-6)
  np.testing.assert_allclose(
    model.discriminate(raw, raw=True),
    model.discriminate(np.tanh(raw / 2)),
    atol=1e-5,
  )


def test_eight_devices_say_what_one_says(flat_run, program, tmp_path):
  out = tmp_path / "eight.npz"
  script = eight_inference.__file__
  with subprocess.Popen(
    [sys.executable, script, str(flat_run), str(out)], env=program.env(8)
  ) as other:
    one = eight_inference.answers(flat_run)
  assert other.returncode == 0
  with np.load(out) as file:
    eight = dict(file)
  assert (one.pop("devices"), eight.pop("devices")) == (1, 8)
  for name, value in one.items():
    np.testing.assert_allclose(eight[name], value, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------- refusals


def _nan():
  x = np.zeros((2, *SHAPE), "f4")
  x[1, 0, 0, 0], x[0, 0, 0, 0] = np.nan, np.inf
  return x


@pytest.mark.parametrize(
  ("x", "words"),
  [
    (np.zeros((2, 8, 8, 3), "f4"), ("(2, 8, 8, 3)", "[b, 8, 8, 1]")),
    (np.zeros((8, 8), "f4"), ("(8, 8)", "[8, 8, 1]")),
    (np.zeros((1, 2, 8, 8, 1), "f4"), ("(1, 2, 8, 8, 1)",)),
    (np.zeros((0, 8, 8, 1), "f4"), ("(0, 8, 8, 1)",)),
    (np.zeros((2, 8, 8, 1), "i4"), ("int32", "uint8")),
    (np.zeros((2, 8, 8, 1), bool), ("bool", "uint8")),
    (np.full((2, 8, 8, 1), 255.0), ("255", "[-1, 1]", "127.5")),
    (np.full((2, 8, 8, 1), -1.1), ("-1.1", "[-1, 1]")),
    (_nan(), ("2 of 128", "finite")),
  ],
)
def test_images_that_are_refused(model, x, words):
  for function in (model.encode, model.reconstruct, model.discriminate):
    with pytest.raises(UserError) as caught:
      function(x)
    assert all(w in str(caught.value) for w in words), caught.value
    assert len(str(caught.value).splitlines()) == 1


def test_what_else_is_refused(model, images):
  for call, words in (
    (lambda: model.decode(np.zeros((2, 5))), r"\(2, 5\).*\[..., 4\]"),
    (lambda: model.decode(np.zeros((0, 4))), r"\(0, 4\)"),
    (lambda: model.decode(np.full(4, np.nan)), "4 of 4"),
    (lambda: model.decode(np.zeros(4, int)), "int64"),
    (lambda: model.sample(jax.random.key(0), 0), "n=0"),
    (lambda: model.sample(jax.random.key(0), 1, temperature=-1), "-1"),
    (lambda: model.interpolate(images[0], images[1], 1), "steps=1"),
    (lambda: model.interpolate(images, images[1], 3), "10 and 1"),
    (lambda: model.discriminate(np.zeros(SHAPE, np.uint8), raw=True), "uint8"),
  ):
    with pytest.raises(UserError, match=words):
      call()


def test_workdirs_that_are_refused(tmp_path, run):
  folder = run[0]

  def refused(path, words, **kwargs):
    with pytest.raises(UserError, match=words):
      gamix_jax.load(path, **kwargs)

  refused(tmp_path / "none", "none is not a folder")
  refused(tmp_path, "no config.json")
  refused(folder, "which='best'", which="best")
  refused(folder, "step 7.*5, 10", step=7)
  refused(folder, "batch_size=0", batch_size=0)
  shutil.copy(folder / "config.json", tmp_path)
  refused(tmp_path, "no checkpoint yet.*2000")
  (tmp_path / "config.json").write_text("{")
  refused(tmp_path, "is not a config")
  (tmp_path / "config.json").write_text('{"version": 2, "model.latnt": 3}')
  refused(tmp_path, "latnt.*model.latent")
  other = configs.to_json(conftest.small(model__latent=8))
  shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
  (tmp_path / "config.json").write_text(other)
  refused(tmp_path, "another model")


def test_a_damaged_checkpoint(tmp_path, run, images, caplog):
  folder, spec, (state, _) = run
  shutil.copytree(folder, tmp_path / "run")

  def damage(step):
    files = Path(tmp_path, "run", "checkpoints", str(step), "state").rglob("*")
    largest = max(
      (f for f in files if f.is_file()), key=lambda f: f.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)

  damage(10)
  model = gamix_jax.load(tmp_path / "run")
  assert model.step == 5 and "step 10" in caplog.text
  q = of(spec, state.ema, state.vae.batch_stats, "encode", images)
  conftest.assert_close(model.encode(images), q, rtol=1e-5)
  damage(5)
  with pytest.raises(UserError, match="is damaged"):
    gamix_jax.load(tmp_path / "run")
