"""`benchmarks.compile`: what it reads from a program, and what it refuses."""

import importlib.util
import json
import subprocess

import jax
import jax.numpy as jnp
import pytest
from program import ROOT, assert_refused

from benchmarks import communication, compile, products, targets, traffic
from gamix_jax.errors import UserError

# ---------------------------------------------------------- targets


@pytest.mark.parametrize(
  ("name", "chips", "platform"),
  [
    ("v5e:16x16", 256, "tpu"),
    ("v5p:2x2x1", 4, "tpu"),
    ("v6e:1x1", 1, "tpu"),
    ("h100:8", 8, "cuda"),
  ],
)
def test_targets(name, chips, platform):
  target = targets.parse(name)
  assert (target.chips, target.chip.platform) == (chips, platform)


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("v5e:3x3", "must be one of v5e:1x1, 2x2, 2x4"),
    ("v5p:2x2", "must be one of v5p:1x1x1, 2x2x1"),
    ("h100:3", "must be one of h100:1, 2, 4, 8"),
    ("v7", "must be one of v5e:1x1.*v5p:.*v6e:.*h100:"),
  ],
)
def test_unknown_targets(name, words):
  with pytest.raises(UserError, match=words):
    targets.parse(name)


@pytest.mark.parametrize(
  ("name", "extra"), [("v5e:2x2", ".[tpu]"), ("h100:1", ".[cuda]")]
)
def test_a_missing_compiler(monkeypatch, name, extra):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError) as error:
    targets.setup(targets.parse(name))
  assert f"pip install -e '{extra}'" in str(error.value)


def test_mistakes(program):
  flags = ("--config=configs/digits.py:tiny", "--topology=v5e:2x3")
  ran = program.run(*flags, module="benchmarks.compile", cwd=ROOT)
  assert_refused(ran, "--topology=v5e:2x3 must be one of")


# ---------------------------------------------------------- programs


TEXT = """
HloModule jit_f

%fused (a: bf16[2,8,8,4], k: bf16[3,3,4,4]) -> bf16[2,8,8,4] {
  %a = bf16[2,8,8,4]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %k = bf16[3,3,4,4]{3,2,1,0:T(4,128)(2,1)} parameter(1)
  ROOT %c.1 = bf16[2,8,8,4]{3,0,2,1:T(8,128)(2,1)} convolution(%a, %k), """ + (
  """dim_labels=b01f_01io->b01f, """
  """metadata={op_name="jit(f)/conv_general_dilated"}
}

ENTRY %main (p: bf16[2,8,8,4], q: bf16[3,3,4,4], r: f32[2,4]) -> f32[2,2] {
  %p = bf16[2,8,8,4]{3,0,2,1} parameter(0)
  %q = bf16[3,3,4,4]{3,2,1,0} parameter(1)
  %r = f32[2,4]{1,0} parameter(2)
  %f = bf16[2,8,8,4]{3,0,2,1} fusion(%p, %q), kind=kOutput, calls=%fused
  %g = f32[3,3,4,4]{3,2,1,0} convolution(%p, /*index=1*/%f), """
  """dim_labels=f01b_i01o->01bf, """
  """metadata={op_name="jit(f)/transpose(jvp(VAE))/conv_general_dilated"}
  %w = (bf16[3,3,4,4]{3,2,1,0}, u8[9]{0}) custom-call(%p, %f), """
  """custom_call_target="__cudnn$convBackwardFilter"
  %d.1 = f32[2,2]{1,0} convolution(%r, %r), dim_labels=bf_oi->bf, """
  """metadata={op_name="jit(f)/bk,bkd->bd/dot_general"}
  ROOT %d.2 = f32[2,2]{1,0} dot(%r, %r), lhs_contracting_dims={1}
}
"""
)


def test_convolutions_and_products_by_type():
  """A convolution that the traced program calls a product is one."""
  assert products.read(TEXT) == {
    ("convolution", "bf16", "bf16"): 2,
    ("convolution", "bf16", "f32"): 1,
    ("product", "f32", "f32"): 2,
  }


def test_traffic():
  """A fusion counts as one kernel; its inside moves nothing."""
  image, kernel = 2 * 8 * 8 * 4 * 2, 3 * 3 * 4 * 4 * 2
  of_fusion = 2 * image + kernel
  to_float32 = 2 * image + 2 * kernel
  of_library = kernel + 9 + 2 * image
  products = 2 * (4 * 4 + 2 * 2 * 4 * 4)
  want = of_fusion + to_float32 + of_library + products
  assert traffic.read(TEXT) == want


def test_traffic_of_a_real_program():
  """Of a loop: as often as it runs. XLA's own count of both is near."""

  def twice(x, w):
    return jnp.tanh(x @ w) @ w

  def loop(x, w):
    return jax.lax.fori_loop(0, 5, lambda _, x: twice(x, w), x)

  x, w = jnp.ones((64, 128)), jnp.ones((128, 128))
  once, five = (jax.jit(f).lower(x, w).compile() for f in (twice, loop))
  got = traffic.read(once.as_text())
  assert got == pytest.approx(once.cost_analysis()["bytes accessed"], rel=0.1)
  assert got >= 4 * (2 * 64 * 128 + 2 * (64 * 128 + 128 * 128) + 2 * 64 * 128)
  assert 5 * got <= traffic.read(five.as_text()) <= 6 * got


def results(**changes):
  row = communication.Row(
    *("all-reduce", 4, 1, 2, 1_000_000, 1.5e6, "f32", "gradients")
  )
  return {
    "topology": "v5e:2x2",
    "chips": 4,
    "level": "O0",
    "jax": "0.10.2",
    "image": [64, 64, 3],
    "dtype": "bfloat16",
    "batch": 32,
    "per_chip": 8,
    "fsdp": 1,
    "compile_cpu_seconds": 60.0,
    "flops": 197e9,  # 1 ms of a v5e
    "flops_by_hand": 190e9,
    "bytes": 1638e6,  # 2 ms
    "bytes_by": "compiler",
    "memory": {"peak": 2.5e9, "arguments": 1e9, "temporary": 2e9},
    "products": [
      {"what": "product", "operands": "f32", "output": "f32", "count": 3}
    ],
    "collectives": [row._asdict()],
    "law": communication.CommCost(900_000, 0, 0, 50_000, 0)._asdict(),
  } | changes


def test_the_bound_of_a_step():
  """By memory at O0; by compute where the bytes are not those of a step."""
  chip = targets.CHIPS["v5e"]
  parts = compile.bound(results(), chip)
  assert parts == pytest.approx(
    {"compute": 1e-3, "memory": 2e-3, "exchange": 1.5e6 / 200e9}
  )
  text = compile.report(results(), chip)
  assert "197 GFLOP; counted by hand 190 (+3.7%)" in text
  assert "Bound, not a measurement" in text
  assert "at most 4,000 images/s a chip, 1.6e+04 in all" in text
  assert "3 of f32 to f32" in text
  assert "2,500 MB at its peak, of 16,000" in text
  assert "| all-reduce | 4 | 1 | 2 | f32 | 1,000,000 | 1,500,000 |" in text
  assert "Summed: 1,000,000 bytes; expected: up to 950,000" in text
  at_default = compile.bound(results(level="default"), chip)
  assert "memory" not in at_default
  assert "which O0 counts" in compile.report(results(level="default"), chip)
  of_gpu = results(
    flops=None, bytes_by="kernels", collectives=[], level="default"
  )
  assert compile.bound(of_gpu, chip) == pytest.approx(
    {"compute": 190 / 197e3, "memory": 2e-3}
  )
  text = compile.report(of_gpu, chip)
  assert "counted by hand; the compiler gives no count" in text
  assert "1.638 GB, the operands and outputs of its kernels" in text
  assert "No collectives" in text


# ---------------------------------------------------------- a real compiler

SMALL = (
  "--config=configs/celeba_hq.py",
  *(
    f"--config.{key}={value}"
    for key, value in {
      "dtype": "bfloat16",
      "data.image_size": 32,
      "model.latent": 32,
      "model.encoder_features": (64, 64),
      "model.decoder_features": (64, 64),
      "model.discriminator_features": (64, 1),
      "model.discriminator_strides": (2, 1),
      "objective.population": "debiased",
      "mesh.fsdp_min_size": 1000,
    }.items()
  ),
)


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs libtpu: pip install -e '.[tpu]'",
)
@pytest.mark.parametrize("fsdp", [1, 2])
def test_a_step_for_a_tpu(program, tmp_path, fsdp):
  """Its types, FLOPs and collectives, as XLA compiles it for four chips."""
  ran = subprocess.run(
    program.argv(
      *SMALL,
      *("--topology=v5e:2x2", "--per_chip=16", "--level=O0"),
      *(f"--fsdp={fsdp}", f"--json={tmp_path}/found.json"),
      module="benchmarks.compile",
    ),
    env=program.env(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert ran.returncode == 0, ran.stderr
  found = json.loads((tmp_path / "found.json").read_text())
  law = communication.CommCost(**found["law"])
  kinds = found["products"]
  assert not [
    k for k in kinds if k["what"] == "convolution" and "f32" in k["operands"]
  ]
  assert found["flops"] == pytest.approx(found["flops_by_hand"], rel=0.05)
  rows = [communication.Row(**row) for row in found["collectives"]]
  sums = [r for r in rows if r.kind in ("all-reduce", "reduce-scatter")]
  assert {r.dtype for r in sums} == {"f32"}
  total = sum(r.bytes for r in sums)
  assert law.gradient + law.parts < total
  assert total <= 1.01 * law.reduced
  gathered = [r for r in rows if r.kind == "all-gather"]
  assert bool(gathered) == (fsdp > 1)
  # Parameters are cast to bfloat16 before they are gathered, where they can be.
  assert law.spread / 2 <= sum(r.bytes for r in gathered) <= law.spread
  assert {r.group for r in rows} == ({4} if fsdp == 1 else {2, 4})


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs libtpu: pip install -e '.[tpu]'",
)
def test_a_batch_that_does_not_divide(program):
  flags = ("--config=configs/digits.py:tiny", "--topology=v5e:4x4")
  ran = program.run(
    *(*flags, "--config.data.batch_size=8"),
    module="benchmarks.compile",
    cwd=ROOT,
  )
  assert_refused(ran, "data.batch_size=8 must be a multiple", "16; use 16")
