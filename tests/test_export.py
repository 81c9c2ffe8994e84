"""Exported models: run without this package, load again, refuse."""

import dataclasses
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import conftest
import jax
import numpy as np
import pytest
from damage import damages
from program import ROOT, assert_refused

import gamix_jax
from gamix_jax import build, posterior
from gamix_jax import export as exporting
from gamix_jax.errors import UserError
from gamix_jax.export import serialize, signatures
from gamix_jax.inference import safetensors_io

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with a mixture, with a checkpoint at step 5."""
  config = conftest.small(posterior__name="mixture", posterior__components=3)
  state = conftest.state_of(build.train_spec(config))
  state = state.replace(ema=jax.tree.map(lambda x: 0.9 * x, state.vae.params))
  folder = tmp_path_factory.mktemp("runs") / "run"
  conftest.save_run(folder, config, state)
  return folder


@pytest.fixture(scope="module")
def model(run):
  return gamix_jax.load(run)


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).uniform(-1, 1, (5, *SHAPE)).astype("f4")


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
  """Both parts as stablehlo, and the complete model as safetensors."""
  out = tmp_path_factory.mktemp("exported") / "new"
  for what in signatures.PARTS:
    exporting.export(model, what, "stablehlo", out)
  exporting.export(model, "model", "safetensors", out)
  return out


def expected(model, x):
  """The encoder's outputs, from the posterior's own methods in float64."""
  q = model.encode(x)
  w, mu, var = (np.asarray(v, np.float64) for v in q.components())
  mean = np.einsum("bk,bkd->bd", w, mu)
  square = np.einsum("bk,bkd->bd", w, var + mu**2)
  return {
    "mean": mean,
    "variance": square - mean**2,
    "weights": w,
    "means": mu,
    "variances": var,
  }


# ------------------------------------------------------------- functions


def test_documented_lines_run_without_this_program(model, exported, images):
  text = (ROOT / "docs" / "export.md").read_text()
  (lines,) = re.findall(r"```python\n(import jax.*?)```", text, re.S)
  lines = lines.replace("runs/digits/export", str(exported))
  code = f"""
import sys
import numpy as np
x = np.load({str(exported / "x.npy")!r})
z = np.load({str(exported / "z.npy")!r})
{lines}
one = decoder.call(z[:1])
encoder = jax.export.deserialize(
  open({str(exported / "encoder.stablehlo")!r}, "rb").read()
)
assert "gamix_jax" not in sys.modules and "flax" not in sys.modules
assert set(decoder.platforms) == {{"cpu", "cuda", "tpu"}}
np.savez({str(exported / "out.npz")!r}, images=images, one=one,
  **encoder.call(x))
"""
  z = np.random.default_rng(1).normal(size=(7, 4)).astype("f4")
  np.save(exported / "x.npy", images)
  np.save(exported / "z.npy", z)
  subprocess.run(
    [sys.executable, "-W", "error", "-c", code],
    check=True,
    cwd=exported,  # a folder without our package
  )
  out = dict(np.load(exported / "out.npz"))
  np.testing.assert_allclose(out.pop("images"), model.decode(z), atol=1e-6)
  np.testing.assert_allclose(out.pop("one"), model.decode(z[:1]), atol=1e-6)
  wanted = expected(model, images)
  assert out.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_allclose(out[name], value, rtol=2e-5, atol=1e-6)


def test_what_is_said_of_a_function(model, exported):
  about = json.loads((exported / "encoder.stablehlo.json").read_text())
  assert about["inputs"] == {
    "x": {"shape": ["b", *SHAPE], "dtype": "float32", "range": [-1, 1]}
  }
  shapes = {k: v["shape"] for k, v in about["outputs"].items()}
  assert shapes == {
    "mean": ["b", 4],
    "variance": ["b", 4],
    "weights": ["b", 3],
    "means": ["b", 3, 4],
    "variances": ["b", 3, 4],
  }
  assert (about["what"], about["format"]) == ("encoder", "stablehlo")
  assert (about["step"], about["which"]) == (5, "ema")
  assert 0 <= about["max_difference"] <= about["tolerance"] == 1e-4
  assert about["versions"]["jax"] == jax.__version__
  assert about["config"]["model.latent"] == 4


def test_mean_and_variance_for_every_family():
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype("f4")

  mu, logvar = normal(2, 3), normal(2, 3)
  var = np.exp(logvar)
  b = 100 ** (-2 / 9)  # the EVAE paper's bandwidth
  families = [
    (posterior.Gaussian(mu, logvar), mu, var),
    (posterior.Epanechnikov(mu, logvar), mu, var),
    (
      posterior.EVAEPosterior(mu, logvar, 0.5, True),
      b * mu,
      b**2 * var + 0.5**2 / 12,
    ),
    (posterior.Poisson(logvar, mu), var, var),
  ]
  for q, mean, variance in families:
    out = signatures.describe(q)
    assert out.keys() == {"mean", "variance"}
    np.testing.assert_allclose(out["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(out["variance"], variance, rtol=1e-5)
  # Of a mixture, from NumPy samples.
  logits, mu, logvar = normal(1, 4), normal(1, 4, 3), normal(1, 4, 3)
  out = signatures.describe(posterior.Mixture(logits, mu, logvar))
  pi = np.exp(logits[0]) / np.exp(logits[0]).sum()
  np.testing.assert_allclose(out["weights"][0], pi, rtol=1e-5)
  k = rng.choice(4, 200_000, p=pi)
  z = rng.normal(mu[0][k], np.exp(logvar[0][k] / 2))
  np.testing.assert_allclose(out["mean"][0], z.mean(axis=0), atol=0.02)
  np.testing.assert_allclose(out["variance"][0], z.var(axis=0), rtol=0.03)


def _scaled(make, part):
  """A faulty exporter's output, one per cent too large."""
  function = part.function
  wrong = dataclasses.replace(
    part, function=lambda x: jax.tree.map(lambda v: 1.01 * v, function(x))
  )
  return make(wrong)


def test_other_numbers_are_not_written(model, tmp_path, monkeypatch, exported):
  before = {f: f.read_bytes() for f in exported.iterdir()}
  make = serialize.EXPORTERS["stablehlo"]
  monkeypatch.setitem(serialize.EXPORTERS, "stablehlo", partial(_scaled, make))
  for out in (tmp_path / "new" / "folder", exported):
    with pytest.raises(UserError, match="differs from the model by 0"):
      exporting.export(model, "decoder", "stablehlo", out)
  assert not (tmp_path / "new" / "folder").exists()
  assert {f: f.read_bytes() for f in exported.iterdir()} == before


def test_bfloat16_is_compared_as_such(tmp_path):
  config = conftest.flat(
    dtype="bfloat16", objective__reconstruction="bernoulli"
  )
  conftest.save_run(
    tmp_path / "run", config, conftest.state_of(build.train_spec(config))
  )
  model = gamix_jax.load(tmp_path / "run")
  exporting.export(model, "decoder", "stablehlo", tmp_path / "out")
  data = (tmp_path / "out" / "decoder.stablehlo").read_bytes()
  z = np.random.default_rng(0).normal(size=(4, 4)).astype("f4")
  out = jax.export.deserialize(bytearray(data)).call(z)
  # Bernoulli logits, converted to the image.
  wanted = np.tanh(model.decode(z, raw=True) / 2)
  np.testing.assert_allclose(out, wanted, atol=0.03)
  in_full = signatures.in_float32(model)
  assert in_full.config.dtype == "float32" != model.config.dtype
  off = np.abs(in_full.decode(z) - model.decode(z)).max()
  assert 0 < off < 0.03


def test_onnx(model, tmp_path, images):
  reason = "pip install '.[onnx]' has it tested"
  pytest.importorskip("jax2onnx", reason=reason)
  runtime = pytest.importorskip("onnxruntime", reason=reason)
  for what in signatures.PARTS:
    exporting.export(model, what, "onnx", tmp_path)
  about = json.loads((tmp_path / "decoder.onnx.json").read_text())
  assert about["versions"].keys() >= {"jax2onnx", "onnxruntime"}

  def run(what, **rows):
    session = runtime.InferenceSession(tmp_path / f"{what}.onnx")
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, rows), strict=True))

  for n in (1, 2, 5):
    z = np.random.default_rng(n).normal(size=(n, 4)).astype("f4")
    (image,) = run("decoder", z=z).values()
    np.testing.assert_allclose(image, model.decode(z), atol=1e-5)
    out, wanted = run("encoder", x=images[:n]), expected(model, images[:n])
    assert out.keys() == wanted.keys()
    for name, value in wanted.items():
      np.testing.assert_allclose(out[name], value, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------- weights


def test_safetensors_are_the_model_bit_for_bit(run, model, exported, images):
  again = gamix_jax.load(exported)
  assert (again.step, again.which) == (5, "ema")
  x_hat = model.reconstruct(images)
  np.testing.assert_array_equal(again.reconstruct(images), x_hat)
  logits = model.discriminate(images)
  np.testing.assert_array_equal(again.discriminate(images), logits)
  # Names and bytes are also checked with the safetensors library.
  from safetensors.numpy import load_file

  arrays = load_file(exported / "model.safetensors")
  params = model.variables["vae"]["params"]
  kernel = params["decoder"]["dense"]["kernel"]
  name = "vae.params.decoder.dense.kernel"
  np.testing.assert_array_equal(arrays[name], kernel)
  # An export inside a workdir is not loaded instead of its checkpoints.
  raw = gamix_jax.load(run, "raw")
  exporting.export(raw, "model", "safetensors", run)
  opened = gamix_jax.load(run).variables
  conftest.assert_same(opened, model.variables)


def test_parts_hold_their_arrays(model, tmp_path):
  names = {}
  for what in safetensors_io.PARTS:
    exporting.export(model, what, "safetensors", tmp_path / what)
    names[what], header = safetensors_io.contents(
      tmp_path / what / f"{what}.safetensors"
    )
    assert (header["what"], header["step"]) == (what, "5")
  assert not names["encoder"].keys() & names["decoder"].keys()
  assert "vae.params.posterior.logits.kernel" in names["encoder"]
  of_vae = {k for k in names["model"] if k.startswith("vae.")}
  assert names["encoder"].keys() | names["decoder"].keys() == of_vae
  assert any(k.startswith("disc.params.") for k in names["model"])
  with pytest.raises(
    UserError, match=r"only a part of a model[^$]*--what=model"
  ):
    gamix_jax.load(tmp_path / "encoder")


def test_a_model_without_a_discriminator(tmp_path):
  config = conftest.alone(conftest.flat)
  conftest.save_run(
    tmp_path / "run", config, conftest.state_of(build.train_spec(config))
  )
  model = gamix_jax.load(tmp_path / "run", "raw")
  exporting.export(model, "model", "safetensors", tmp_path / "out")
  x = np.zeros((1, 4, 4, 1), "f4")
  again = gamix_jax.load(tmp_path / "out", "raw")
  np.testing.assert_array_equal(again.reconstruct(x), model.reconstruct(x))
  with pytest.raises(UserError, match="without a discriminator"):
    again.discriminate(x)


@pytest.mark.parametrize(
  "times", [15, pytest.param(100, marks=pytest.mark.slow)]
)
def test_weights_that_are_refused(model, exported, tmp_path, times):
  for kwargs, words in (
    ({"which": "raw"}, "which='ema'"),
    ({"step": 4}, "only step 5"),
  ):
    with pytest.raises(UserError, match=words):
      gamix_jax.load(exported, **kwargs)
  exporting.export(model, "model", "safetensors", tmp_path)
  file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
  data, text = file.read_bytes(), config.read_text()

  def refused(words):
    with pytest.raises(UserError, match=words):
      gamix_jax.load(tmp_path)

  file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
  refused("damaged.*checksum")
  file.write_bytes(data[: len(data) // 2])
  refused("damaged")
  for damaged in damages(data, times):
    if damaged != data:
      file.write_bytes(damaged)
      refused("damaged|not written by|another model")
  file.write_bytes(data)
  config.write_text(text.replace('"model.latent": 4', '"model.latent": 8'))
  refused("another model than the config.json")
  with pytest.raises(UserError, match="is of another model"):
    exporting.export(model, "decoder", "safetensors", tmp_path)


# --------------------------------------------------------------- command


def test_command(program, run, model, tmp_path):
  flags = [f"--workdir={run}", f"--out={tmp_path}/out", "--format=safetensors"]

  def command(*more):
    return subprocess.run(
      program.argv(*flags, *more, module="gamix_jax.export"),
      env=program.env(),
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  ran = command("--what=model", "--which=raw")
  assert (ran.returncode, ran.stderr) == (0, "")
  assert f"{tmp_path}/out/model.safetensors: " in ran.stdout
  assert {f.name for f in Path(tmp_path, "out").iterdir()} == {
    *("model.safetensors", "config.json", "README.md", "samples.png"),
  }
  assert gamix_jax.load(tmp_path / "out", "raw").step == model.step
  assert_refused(command("--what=both"), "--what='both'", "encoder")


@pytest.mark.parametrize(
  ("what", "form", "words"),
  [
    ("model", "onnx", "--what=model is for --format=safetensors"),
    ("decoder", "torch", "--format='torch' must be one of stablehlo"),
    ("head", "onnx", "--what='head' must be one of model, encoder, decoder"),
  ],
)
def test_what_is_refused(model, tmp_path, what, form, words):
  with pytest.raises(UserError, match=words):
    exporting.export(model, what, form, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_missing_package_is_named(model, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "jax2onnx", None)
  with pytest.raises(UserError, match=r"needs jax2onnx.*\.\[onnx\]"):
    exporting.export(model, "decoder", "onnx", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(model, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file"):
    exporting.export(model, "decoder", "safetensors", tmp_path / "file")
