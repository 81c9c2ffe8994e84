"""The benchmarks: both sides compute the same, and the tables are consistent.

Times are only checked for consistency.
"""

import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_close, jit, run_of, small
from program import ROOT, assert_refused, complete_config_of

from benchmarks import flops
from gamix_jax import config
from gamix_jax.errors import UserError

WHY = "needs PyTorch, an extra: pip install -e '.[bench]'"


def torch_modules():
  pytest.importorskip("torch", reason=WHY)
  from benchmarks import torch_baseline, torch_check

  return torch_check, torch_baseline


VARIANTS = {
  "published": {},
  "batch": dict(
    model__norm="batch",
    posterior__name="mixture",
    posterior__components=2,
    objective__population="kernel",
    objective__num_samples=2,
    objective__reconstruction="l2",
    adversarial__loss="hinge",
    adversarial__disc_start=1,
    ramp__adversarial=3,
    ramp__collapse_penalty=2,
    optim__vae__name="adam",
  ),
  "none": dict(model__norm="none", objective__population="quadratic"),
  "group": dict(model__norm="group", objective__population="full"),
  "debiased": dict(
    posterior__name="mixture",
    posterior__components=2,
    objective__population="debiased",
  ),
}


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(v, marks=[] if v == "batch" else pytest.mark.slow)
    for v in VARIANTS
  ],
)
def test_torch_computes_the_same(name):
  check, baseline = torch_modules()
  c = small(data__batch_size=4, **VARIANTS[name])
  off = check.compare(c, baseline.Options())
  assert set(off) == {"terms", "gradients", "update1", "update3"}


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(model__patch=2, model__input_norm="none", model__norm="group"),
    dict(model__decoder_features=(6, 5), model__encoder_features=(4, 6, 5)),
  ],
)
def test_torch_networks(changes):
  """Forward pass with patches and free widths, non-square colour images."""
  torch_modules()
  import torch

  from benchmarks import torch_networks, torch_weights

  c = small(
    data__image_size=(8, 16), data__channels=3, data__batch_size=3, **changes
  )
  run = run_of(c)
  net, x = run.state.vae, run.batch["image"]
  variables = {"params": net.params, "batch_stats": net.batch_stats}

  @jit
  def ours(x, z):
    vae = run.spec.vae
    q = vae.apply(variables, {"image": x}, method="encode")
    x_hat = vae.apply(variables, z[None], method="decode")["image"]
    return q.mu, q.logvar, x_hat[0]

  theirs = torch_networks.VAE(c)
  torch_weights.load(theirs, net.params, net.batch_stats)
  z = np.random.default_rng(0).normal(size=(3, 4)).astype("f4")
  with torch.no_grad():
    image = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
    _, mu, logvar = theirs.posterior(theirs.encoder(image))
    x_hat = theirs.decoder(torch.from_numpy(z)).permute(0, 2, 3, 1)
  got = (mu[:, 0].numpy(), logvar[:, 0].numpy(), x_hat.numpy())
  assert_close(got, jax.device_get(ours(x, jnp.asarray(z))), 1e-4)


def test_a_mismatch_is_not_timed(monkeypatch):
  check, baseline = torch_modules()
  monkeypatch.setitem(check.LIMITS, "gradients", 0.0)
  monkeypatch.setattr(check, "STEPS", 1)
  with pytest.raises(check.MismatchError, match=r"gradients .*limit 0\.0"):
    check.compare(
      small(model__norm="none", data__batch_size=2, **FLAT), baseline.Options()
    )


FLAT = dict(
  data__image_size=4,
  model__encoder_features=(4,),
  model__decoder_features=(1,),
)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(objective__name="elbo"), "objective.name must be gamix, not elbo"),
    (dict(optim__disc__clip=1.0), "optim.disc.clip must be 0.0"),
    (dict(model__encoder="mlp"), "model.encoder must be resnet, not mlp"),
    (dict(model__decoder="conv"), "model.decoder must be resnet, not conv"),
  ],
)
def test_unsupported_configs_are_refused(changes, words):
  _, baseline = torch_modules()
  with pytest.raises(Exception, match=words):
    baseline.check(small(**changes))


def run(program, *flags, module="step"):
  return subprocess.run(
    program.argv(*flags, module=f"benchmarks.{module}"),
    env=program.env(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )


TINY = "--config=configs/digits.py:tiny"


@pytest.mark.parametrize(
  ("flag", "word"), [("--nocached", "Compiling"), ("--cached", "Loading")]
)
def test_table_of_the_step(program, tmp_path, flag, word):
  """The results are consistent with each other and with the analytic count."""
  path = tmp_path / "found.json"
  quick = {
    "data.image_size": 4,
    "model.norm": "none",
    "model.encoder_features": "(4,)",
    "model.decoder_features": "(1,)",
  }
  ran = run(
    program,
    *(TINY, "--batch=4", "--steps=1", "--nofirst", f"--json={path}"),
    flag,
    *(f"--config.{k}={v}" for k, v in quick.items()),
  )
  assert ran.returncode == 0, ran.stderr
  found = json.loads(path.read_text())
  (row,) = found["rows"].values()
  assert 0 < row["low"] <= row["median"] <= row["high"]
  assert row["images_per_second"] == pytest.approx(4 / row["median"])
  per_image = found["flop_per_image"]
  assert row["flop_per_second"] == pytest.approx(4 * per_image / row["median"])
  assert row["flop_per_second"] < found["ceilings"]["product"]
  c = complete_config_of("digits", "tiny")
  c.data.image_size = 4
  c.model.encoder_features, c.model.decoder_features = (4,), (1,)
  assert per_image == flops.per_image(c)["total"]
  memory = found["memory"]
  assert 0 < memory["program"] < memory["resident_high"]
  assert found["compile"]["cached"] == (flag == "--cached")
  for words in ("gamix_jax ", "images/s", "Ceilings", word, "Memory"):
    assert words in ran.stdout
  assert f"{row['images_per_second']:.4g}" in ran.stdout


def test_mistakes(program):
  refused = [
    ((TINY, "--bach=3"), "bach"),
    ((TINY, "--against=tensorflow"), "against"),
    ((TINY, "--only=torch"), "--against=torch"),
    ((TINY, "--cached", "--against=eager-jax"), "--only=ours"),
    ((TINY, "--config.objective.nam=x"), "name"),
  ]
  ran = [program.pool.submit(run, program, *flags) for flags, _ in refused]
  for job, (_, word) in zip(ran, refused, strict=True):
    assert_refused(job.result(), word)


# ------------------------------------------------------ several modalities


def mmvm(**changes):
  """A small config of MMVM on two views, of patches of 2x2 pixels."""
  c = complete_config_of("polymnist")
  c.data.modalities = ("m0 12x8x3 l1", "m1 8x8x1 l2 7.5")
  c.data.batch_size = 3
  c.model.update(encoder="conv", decoder="conv", patch=2, latent=5)
  c.model.encoder_features, c.model.decoder_features = (4,), (3,)
  c.optim.vae.warmup, c.optim.vae.schedule = 0, "constant"
  for key, value in changes.items():
    config.put(c, key.replace("__", "."), value)
  return c


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(
      model__encoder="mlp",
      model__decoder="mlp",
      model__patch=1,
      model__encoder_features=(4, 6),
    ),
    dict(
      model__patch=1,
      model__encoder_features=(4, 6),
      model__decoder_features=(3, 5),
      objective__mmvm__alpha=0.3,
      weights__kl=0.5,
      weights__recon=2.0,
    ),
  ],
)
def test_torch_computes_the_same_of_several_modalities(changes):
  torch_modules()
  from benchmarks import torch_multimodal

  off = torch_multimodal.compare(mmvm(**changes))
  assert set(off) == {"terms", "gradients", "update1", "update3"}


def test_a_mismatch_of_several_modalities_is_not_timed(monkeypatch):
  check, _ = torch_modules()
  from benchmarks import torch_multimodal

  plain = torch_multimodal.MMVM._kl
  monkeypatch.setattr(
    torch_multimodal.MMVM, "_kl", lambda *args: 1.001 * plain(*args)
  )
  with pytest.raises(check.MismatchError, match=r"terms .*kl .*limit"):
    torch_multimodal.compare(mmvm())


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(objective__mmvm__estimate="exact"), "estimate must be surrogate"),
    (dict(model__norm="group"), "model.norm must be none"),
    (dict(data__modalities=("x 25 l1",)), "must be images"),
    (dict(data__modalities=("m0 8x8x3 bernoulli",)), "likelihood l1 or l2"),
  ],
)
def test_unsupported_configs_of_several_modalities(changes, words):
  torch_modules()
  from benchmarks import torch_multimodal
  from gamix_jax import modality

  c = mmvm(**changes)
  with pytest.raises(UserError, match=words):
    torch_multimodal.check(c, modality.of_config(c))


def test_table_of_several_modalities(program, tmp_path):
  """Both have the same parameters; the ratio is that of the shown times."""
  torch_modules()
  path = tmp_path / "found.json"
  ran = run(
    program,
    *("--batch=4", "--steps=1", f"--json={path}", "--config.model.latent=3"),
    "--config.model.encoder_features=(2,)",
    "--config.model.decoder_features=(2,)",
    module="multimodal_step",
  )
  assert ran.returncode == 0, ran.stderr
  found = json.loads(path.read_text())
  rows = found["rows"]
  assert rows.keys() == {
    *("gamix_jax", "PyTorch, channels-last", "PyTorch, contiguous"),
  }
  for name, row in rows.items():
    assert 0 < row["low"] <= row["median"] <= row["high"]
    assert row["steps_per_second"] == pytest.approx(1 / row["median"])
    assert f"{row['steps_per_second']:.3g}" in ran.stdout
    assert name in ran.stdout
  theirs = [v["median"] for k, v in rows.items() if k != "gamix_jax"]
  assert rows[found["fastest"]]["median"] == min(theirs)
  ratio = min(theirs) / rows["gamix_jax"]["median"]
  assert found["ratio"] == pytest.approx(ratio)
  assert f"{found['config']['parameters']:,} parameters" in ran.stdout
  assert f"{ratio:.3g} times as fast" in ran.stdout


def test_scaling_refuses_an_unknown_axis(program):
  assert_refused(
    run(program, "--axes=depth", module="scaling"), "depth", "size"
  )


def test_scaling_changes_one_thing():
  from benchmarks import scaling

  c = complete_config_of("digits")
  for axis, wanted in {
    "size": {"data.image_size"},
    "batch": {"data.batch_size"},
    "components": {"posterior.name", "posterior.components"},
    "latent": {"model.latent"},
    "devices": set(),
  }.items():
    new, value = scaling.changed(c, axis, 2)
    assert set(config.differences(c, new)) == wanted
    doubled = {
      "size": 2 * c.data.image_size,
      "batch": 2 * c.data.batch_size,
      "latent": 2 * c.model.latent,
    }
    assert value == doubled.get(axis, 2)
  for kind in ("mlp", "conv"):
    c.model.encoder = c.model.decoder = kind
    new, _ = scaling.changed(c, "latent", 2)
    assert set(config.differences(c, new)) == {"model.latent"}
  with pytest.raises(UserError, match=r"model.encoder='linear'"):
    c.model.encoder = "linear"
    scaling.changed(c, "latent", 2)
  rows = [
    dict(value=v, ms=3.0 * v, hand=2.0 * v, mebibytes=1.0 + v)
    for v in (1, 2, 4)
  ]
  assert scaling.law("batch", rows) == (
    "batch: time ~ batch^1.00, FLOPs ~ batch^1.00; "
    "memory 1 + 1 MiB per image, error at most 0%"
  )
