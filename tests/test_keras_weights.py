"""Converts the reference's weight files to workdirs; refuses other files."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import conftest
import h5py
import jax
import numpy as np
import optax
import pytest

import gamix_jax
from gamix_jax import build, step
from gamix_jax import config as configs
from gamix_jax.checkpoint import Checkpoints
from gamix_jax.errors import UserError
from gamix_jax.keras_weights import datasets, import_weights, locate

GOLDEN = Path(__file__).parent / "golden"
START = GOLDEN / "golden_A.weights.h5"
AFTER_20 = GOLDEN / "golden_A_after20.weights.h5"
SAMPLER = "layers/vae/layers/sampler"


def golden_config(**keys):
  c = configs.base()
  c.data.image_size, c.data.batch_size = 32, 8
  c.model.latent = 16
  c.model.encoder_features = (16,) * 4
  c.model.decoder_features = (16, 16, 16, 3)
  c.model.discriminator_features = (16, 16, 16, 8, 8, 1)
  c.update_from_flattened_dict(keys)
  return c


def golden(name):
  return np.load(GOLDEN / f"{name}.npz")


def leaf(state, role):
  net, collection, keys = locate(role)
  found = getattr(getattr(state, net), collection)
  for key in keys:
    found = found[key]
  return found


def error(a, b):
  """Returns the largest difference, relative to the largest value."""
  return float(np.max(np.abs(np.asarray(a) - b)) / np.max(np.abs(b)))


def restore(workdir):
  """Returns a run's spec and its state, as training restores it."""
  saved = Path(workdir, "config.json")
  spec = build.train_spec(configs.from_json(saved.read_text()))
  abstract = jax.eval_shape(partial(step.init, spec))
  checkpoints = Checkpoints(Path(workdir, "checkpoints"), keep=1)
  return spec, checkpoints.restore(abstract)[1]


def adam(net):
  leaves = jax.tree.leaves(
    net.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
  )
  return next(x for x in leaves if isinstance(x, optax.ScaleByAdamState))


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  import_weights(START, golden_config(), folder / "start")
  import_weights(AFTER_20, golden_config(), folder / "after20")
  return folder


# ---------------------------------------------------------- names


@pytest.mark.parametrize("name", ["A", "published"])
def test_every_path_is_that_of_the_golden_map(name):
  lines = (GOLDEN / f"h5_map_{name}.tsv").read_text().splitlines()[1:]
  rows = [line.split("\t") for line in lines]
  wanted = {row[-1]: row[0] for row in rows if row[-1] != "-"}
  config = golden_config() if name == "A" else configs.base()
  assert datasets(config) == wanted


@pytest.mark.parametrize("name", ["A", "published"])
def test_every_role_has_its_own_leaf_and_every_leaf_a_role(name):
  config = golden_config() if name == "A" else configs.base()
  spec = build.train_spec(config)
  state = jax.eval_shape(partial(step.init, spec))
  nets = [(n.params, n.batch_stats) for n in (state.vae, state.disc)]
  found = {id(leaf(state, role)) for role in datasets(config)}
  assert found == {id(x) for x in jax.tree.leaves(nets)}
  assert len(found) == len(datasets(config))


# ---------------------------------------------------------- numbers


def test_golden_outputs(workdirs):
  g = golden("golden_A")
  model = gamix_jax.load(workdirs / "start")
  assert model.step == 0
  q = model.encode(g["input"])
  x_hat = model.decode(g["z"], raw=True)
  pairs = {
    "z_mean": q.mu,
    "z_log_var": q.logvar,
    "decoder_out": x_hat,
    "decoder_out_at_z_mean": model.decode(g["z_mean"], raw=True),
    "logits_real": model.discriminate(g["input"]),
    "logits_fake": model.discriminate(x_hat, raw=True),
  }
  errors = {name: error(ours, g[name]) for name, ours in pairs.items()}
  assert max(errors.values()) < 2e-6, errors
  shown = np.clip(g["decoder_out"], -1, 1)
  np.testing.assert_allclose(model.decode(g["z"]), shown, atol=1e-5)


def test_weights_after_20_are_the_trajectorys(workdirs):
  t = golden("golden_A_traj")
  _, state = restore(workdirs / "after20")
  prefix = "weights_after_20/"
  roles = [k.removeprefix(prefix) for k in t.files if k.startswith(prefix)]
  trained = [r for r in datasets(golden_config()) if "moving" not in r]
  assert set(roles) == set(trained)
  for role in roles:
    np.testing.assert_array_equal(leaf(state, role), t[prefix + role])
  assert int(state.step) == 20
  for average, now in zip(
    jax.tree.leaves(state.ema), jax.tree.leaves(state.vae.params), strict=True
  ):
    np.testing.assert_array_equal(average, now)


@pytest.mark.slow
def test_training_goes_on_from_the_import_as_it_would_have(workdirs):
  g, t = golden("golden_A"), golden("golden_A_traj")
  spec, straight = restore(workdirs / "start")
  _, imported = restore(workdirs / "after20")
  train_step = conftest.jit(partial(step.train_step, spec))

  def batch(i):
    return {"image": g["input"], "eps": t["eps"][i % 20][None]}

  for i in range(20):
    straight, _ = train_step(straight, batch(i))
  # Each moment under its own name: within 20 steps, float32 loses a sixth of
  # the first ones and a hundredth of the second; other layers' are not close.
  for net in ("vae", "disc"):
    ours, its = (adam(getattr(s, net)) for s in (straight, imported))
    assert int(its.count) == 20
    conftest.assert_close(ours.mu, its.mu, rtol=0.3)
    conftest.assert_close(ours.nu, its.nu, rtol=0.03)
  after, metrics = train_step(straight, batch(20))
  after_import, metrics_of_import = train_step(imported, batch(20))
  for name in ("vae/loss", "disc/loss", "vae/recon", "vae/population_kl"):
    assert float(metrics_of_import[name]) == pytest.approx(
      float(metrics[name]), rel=3e-4
    )

  def moved(after, before):
    pairs = (after.vae.params, before.vae.params)
    move = jax.tree.map(np.subtract, *jax.device_get(pairs))
    return np.concatenate([x.ravel() for x in jax.tree.leaves(move)])

  wanted = moved(after, straight)
  fresh = jax.tree.map(np.zeros_like, adam(imported.vae))
  forgotten = imported.replace(
    vae=imported.vae.replace(opt_state=(fresh, *imported.vae.opt_state[1:]))
  )
  without, _ = train_step(forgotten, batch(20))
  near = np.linalg.norm(moved(after_import, imported) - wanted)
  far = np.linalg.norm(moved(without, forgotten) - wanted)
  assert near < 0.05 * np.linalg.norm(wanted)
  assert far > 0.5 * np.linalg.norm(wanted)


def other_config(**keys):
  """A config with another depth, width and size, not square and grey.

  The decoder's last width differs from the number of channels.
  """
  return golden_config(
    **{
      "data.image_size": (8, 16),
      "data.channels": 1,
      "model.latent": 6,
      "model.bottleneck_channels": 5,
      "model.encoder_features": (4, 6, 8),
      "model.decoder_features": (8, 6, 5),
      "model.discriminator_features": (4, 3, 1),
      "model.discriminator_strides": (2, 1, 1),
    }
    | keys
  )


@pytest.fixture(scope="module")
def other(tmp_path_factory):
  """Returns a file as the reference would write that model, and its values."""
  path = tmp_path_factory.mktemp("other") / "other.weights.h5"
  spec = build.train_spec(other_config())
  state = jax.eval_shape(partial(step.init, spec))
  rng, values = np.random.default_rng(0), {}
  with h5py.File(path, "w") as file:
    for role, name in datasets(other_config()).items():
      value = 0.3 * rng.normal(size=leaf(state, role).shape)
      if role.endswith("variance"):
        value = np.exp(value)
      file[name] = values[role] = value.astype("f4")
    for name in ("generator_optimizer", "discriminator_optimizer"):
      file[f"{name}/vars/0"], file[f"{name}/vars/1"] = 20, 1e-4
  return path, values


def test_another_depth_width_and_size_and_no_moments(tmp_path, other):
  path, values = other
  config = other_config(**{"optim.vae.clip": 1.0, "optim.vae.warmup": 10})
  found = import_weights(path, config, tmp_path / "run")
  assert found.step == 20 and not found.adam
  _, state = restore(tmp_path / "run")
  for role, value in values.items():
    np.testing.assert_array_equal(leaf(state, role), value)
  # Adam restarts and corrects its bias accordingly; the warm-up is over.
  assert int(adam(state.vae).count) == 0
  counts = [x for x in jax.tree.leaves(state.vae.opt_state) if x.ndim == 0]
  assert [int(x) for x in counts] == [0, 20]


@pytest.mark.slow
def test_batch_norm_absorbs_the_biases_it_has_no_place_for(tmp_path, other):
  models = []
  for norm in ("affine", "batch"):
    config = other_config(**{"model.norm": norm})
    import_weights(other[0], config, tmp_path / norm)
    models.append(gamix_jax.load(tmp_path / norm))
  rng = np.random.default_rng(1)
  x = rng.uniform(-1, 1, (4, 8, 16, 1)).astype("f4")
  z = rng.normal(size=(4, 6)).astype("f4")
  for ours, wanted in (
    [model.encode(x).mu for model in models],
    [model.decode(z, raw=True) for model in models],
    [model.discriminate(x) for model in models],
  ):
    assert error(ours, wanted) < 5e-6


def test_without_a_discriminator_its_weights_are_left_out(tmp_path, other):
  none = ("weights.adversarial", "weights.real", "weights.fake")
  config = other_config(
    **{"adversarial.loss": "none"}, **dict.fromkeys(none, None)
  )
  found = import_weights(other[0], config, tmp_path / "run")
  assert not any(role.startswith("discriminator") for role in found.values)
  model = gamix_jax.load(tmp_path / "run")
  with pytest.raises(UserError, match="without a discriminator"):
    model.discriminate(np.zeros((8, 16, 1), "f4"))


# ---------------------------------------------------------- refusals


def changed(tmp_path, change, source=START):
  """Returns a copy of a file after `change(file)`."""
  path = tmp_path / "changed.h5"
  path.write_bytes(source.read_bytes())
  with h5py.File(path, "r+") as file:
    change(file)
  return path


def refused(tmp_path, weights, config, *words):
  """Asserts that the import fails with these words and leaves nothing."""
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(UserError) as caught:
    import_weights(weights, config, tmp_path / "run")
  message = str(caught.value)
  assert all(word in message for word in words), message
  assert len(message.splitlines()) <= 2
  assert sorted(tmp_path.rglob("*")) == before


def test_a_model_saved_before_its_first_call(tmp_path):
  for part in (SAMPLER, f"{SAMPLER}/dense2/vars/0"):
    path = changed(tmp_path, lambda f, part=part: f.pop(part))
    refused(tmp_path, path, golden_config(), "sampler", "first call")


@pytest.mark.parametrize(
  ("keys", "words"),
  [
    (
      {"data.image_size": 64},
      ("encoder/layernorm/gamma", "(32, 32)", "(64, 64)", "image_size=32"),
    ),
    (
      {"model.latent": 20, "model.bottleneck_channels": 2},
      ("sampler/z_mean/kernel", "(32, 16)", "(32, 20)", "model.latent=16"),
    ),
    (
      {"model.encoder_features": (16, 16, 24, 16)},
      ("(3, 3, 16, 24)", "model.encoder_features='(16, 16, 16, 16)'"),
    ),
    (
      {
        "model.encoder_features": (16,) * 5,
        "model.decoder_features": (16, 16, 16, 16, 3),
      },
      ("stage3", "encoder_features='(16, 16, 16, 16)'"),
    ),
    (
      {
        "model.encoder_features": (16,) * 3,
        "model.decoder_features": (16, 16, 3),
      },
      ("encoder", "decoder_features='(16, 16, 16, 3)'"),
    ),
    (
      {"model.bottleneck_channels": 4},
      ("encoder/head/kernel", "model.bottleneck_channels=0"),
    ),
    (
      {"model.discriminator_features": (16, 16, 8, 8, 8, 1)},
      ("discriminator/layer2/conv/kernel", "model.discriminator_features='(16"),
    ),
    (
      {"data.channels": 1, "model.decoder_features": (16, 16, 16, 1)},
      ("encoder/stem/kernel", "data.channels=3"),
    ),
    ({"posterior.name": "mixture"}, ("posterior.name", "Gaussian")),
    ({"model.norm": "group"}, ("model.norm", "affine")),
    ({"model.norm": "none"}, ("model.norm", "affine")),
    (
      {"model.encoder": "conv", "model.encoder_features": (16,) * 3},
      ("model.encoder='conv'", "--config.model.encoder=resnet"),
    ),
    (
      {"model.decoder": "mlp"},
      ("model.decoder='mlp'", "--config.model.decoder=resnet"),
    ),
    (
      {"model.input_norm": "none"},
      ("model.input_norm='none'", "--config.model.input_norm=layer"),
    ),
    ({"model.patch": 2}, ("model.patch=2", "--config.model.patch=1")),
    (
      {"model.decoder_features": (16, 16, 16, 8)},
      ("decoder/stage2", "model.decoder_features='(16, 16, 16, 3)'"),
    ),
    (
      {"model.decoder_features": (16, 16, 3)},
      ("decoder/dense/kernel", "model.decoder_features='(16, 16, 16, 3)'"),
    ),
  ],
)
def test_another_model_by_its_config(tmp_path, keys, words):
  refused(tmp_path, START, golden_config(**keys), *words)


def test_what_is_no_file_of_the_reference(tmp_path, other):
  source, config = other[0], other_config()
  refused(tmp_path, tmp_path / "none.h5", config, "no such file")
  refused(tmp_path, tmp_path, config, "no such file")
  broken = tmp_path / "broken.h5"
  broken.write_text("no weights")
  refused(tmp_path, broken, config, "broken.h5", "HDF5")
  original = source.read_bytes()
  broken.write_bytes(original[: len(original) // 2])
  refused(tmp_path, broken, config, "HDF5", "truncated")
  broken.write_bytes(original[:2000] + b"x" * 2000 + original[4000:])
  refused(tmp_path, broken, config, "HDF5")

  def without(name):
    return changed(tmp_path, lambda file: file.pop(name), source)

  encoder = "layers/vae/encoder_model/layers"
  refused(tmp_path, without(encoder), config, "reference's model")
  path = without(f"{encoder}/conv2d_3/vars/0")
  refused(tmp_path, path, config, "stage0/block0/conv3/kernel")
  path = without("discriminator_model")
  refused(tmp_path, path, config, "lacks discriminator/")

  def add(file):
    file[f"{encoder}/conv2d_99/vars/0"] = 1.0

  path = changed(tmp_path, add, source)
  refused(tmp_path, path, config, "conv2d_99")

  def spoil(file):
    file[f"{encoder}/conv2d/vars/1"][0] = np.nan

  path = changed(tmp_path, spoil, source)
  refused(tmp_path, path, config, "encoder/stem/bias", "not finite")


def test_a_workdir_in_use(tmp_path, other):
  (source, _), config, run = other, other_config(), tmp_path / "run"
  run.write_text("")
  refused(tmp_path, source, config, "is a file")
  run.unlink()
  run.mkdir()
  (run / "notes.txt").write_text("")
  refused(tmp_path, source, config, "not empty", "notes.txt")
  (run / "notes.txt").unlink()
  (run / "config.json").write_text("{}")
  refused(tmp_path, source, config, "holds a run already")
  (run / "config.json").unlink()
  import_weights(source, config, run)
  refused(tmp_path, source, config, "holds a run already")


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch, other):
  def full(*_):
    raise UserError("No space left on device")

  monkeypatch.setattr(Checkpoints, "save", full)
  refused(tmp_path, other[0], other_config(), "No space left")


# ---------------------------------------------------------- the command


def command(*flags):
  return subprocess.run(
    [sys.executable, "-m", "gamix_jax.keras_weights", *flags],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_the_command(tmp_path, workdirs):
  run, saved = tmp_path / "run", workdirs / "start" / "config.json"
  done = command(
    f"--weights={AFTER_20}",
    f"--config={saved}",
    "--config.steps=30",
    f"--workdir={run}",
  )
  assert done.returncode == 0, done.stderr
  assert "84,785 weights at step 20, with Adam's moments" in done.stdout
  assert json.loads((run / "config.json").read_text())["steps"] == 30
  assert gamix_jax.load(run).step == 20

  done = command(
    f"--weights={AFTER_20}", f"--config={saved}", f"--workdir={run}"
  )
  assert done.returncode == 2
  assert done.stderr.startswith("gamix_jax: ")
  assert "holds a run already" in done.stderr
  assert len(done.stderr.splitlines()) <= 2
