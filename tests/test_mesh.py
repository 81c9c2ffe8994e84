"""The mesh: shardings of batch and state, and what a step communicates."""

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import alone, flat, run_of
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from program import ROOT

from benchmarks import collectives, communication, resource_estimate
from gamix_jax.errors import UserError
from gamix_jax.parallel import mesh

# ---------------------------------------------------------- many devices


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
  """Steps on one device, by population form, and on eight in another process.

  The number of devices is fixed when a process starts.
  """
  out = tmp_path_factory.mktemp("eight") / "eight.npz"
  devices = f"--xla_force_host_platform_device_count={eight_devices.DEVICES}"
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": devices,
    "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
  }
  with subprocess.Popen(
    [sys.executable, eight_devices.__file__, str(out)], env=env, cwd=ROOT
  ) as other:
    one = {
      form: eight_devices.history(form=form)[0]
      for form in dict.fromkeys(form for _, form in eight_devices.RUNS)
    }
  assert other.returncode == 0
  with np.load(out) as file:
    eight = dict(file)
  assert eight["devices"] == eight_devices.DEVICES
  return one, eight


@pytest.mark.parametrize(("fsdp", "form"), eight_devices.RUNS)
def test_one_device_equals_eight(ran, fsdp, form):
  """Loss, moments, moving statistics and weights, over four steps."""
  one, eight = ran[0][form], ran[1]
  theirs = {
    name.removeprefix(f"{fsdp} {form} "): value
    for name, value in eight.items()
    if name.startswith(f"{fsdp} {form} ")
  }
  assert one.keys() == theirs.keys()
  kinds = ("params", "batch_stats", "ema", "population", "vae/", "disc/")
  compared = dict.fromkeys(kinds, 0)
  for name, value in one.items():
    kind = next((k for k in kinds if k in name), None)
    if kind is None or ".opt_state" in name:
      continue
    off = np.max(np.abs(value - theirs[name]))
    limit = 2e-4 * np.max(np.abs(value)) + 1e-6
    assert off <= limit, (name, off, limit)
    compared[kind] += 1
  assert all(compared.values())


@pytest.mark.parametrize(("fsdp", "form"), eight_devices.RUNS)
def test_a_step_sends_one_gradient(ran, fsdp, form):
  """Plus moments, statistics and codes; no activation, nothing twice."""
  _, eight = ran
  text = str(eight[f"text {fsdp} {form}"])
  law = communication.CommCost(*map(int, eight[f"law {fsdp} {form}"]))
  found = collectives.read(text, eight_devices.DEVICES)
  assert all(o.times == 1 for o in found)
  sums = communication.total(found, "all-reduce")
  sums += communication.total(found, "reduce-scatter")
  assert sums <= law.reduced + communication.METRIC_BYTES, (sums, law)
  assert sums > law.gradient + law.parts
  assert communication.total(found, "all-gather") == law.gathered
  assert (law.codes > 0) == (form == "kernel")
  assert {o.kind for o in found} <= {
    *("all-reduce", "reduce-scatter", "all-gather")
  }
  assert (law.spread > 0) == (fsdp > 1)
  assert law.spread > law.gradient / 2 or fsdp == 1
  assert (law.parts > 0) == (1 < fsdp < eight_devices.DEVICES)


def test_codes_are_gathered_only_for_an_objective_that_compares_them():
  c = flat(objective__population="kernel")
  assert communication.codes(c) == 4 * c.data.batch_size * 2 * c.model.latent
  c.objective.name = "elbo"
  assert communication.codes(c) == 0


# ---------------------------------------------------------- a program's text


HLO = """
HloModule jit_f, entry_computation_layout={()->f32[]}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ar.1 = f32[8]{0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
}

%unknown (p: f32[8]) -> f32[8] {
  ROOT %cp = bf16[8]{0} collective-permute(%x), source_target_pairs={{0,1}}
}

ENTRY %main (p: f32[8]) -> f32[] {
  %w.1 = (s32[], f32[8]) while(%t), condition=%add, body=%body, """ + (
  """backend_config={"known_trip_count":{"n":"50"}}
  %w.2 = f32[8] while(%t), condition=%add, body=%unknown
  %ag = pred[2,3]{1,0} all-gather(%x), replica_groups={{0,2},{1,3}}
  %rs = f32[2]{0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=4], """
  """device_ids=([4,2]T(1,0)) {'b'}, to_apply=%add
  %a2 = (f32[3]{0}, /*index=1*/f32[]) all-reduce(%x, %y), """
  """replica_groups=mesh['a'=8] {'a':(1)2}, metadata={op_name="jit(f)/sum"}
}
"""
)


def test_collectives_of_a_text():
  """Loops, tuples, all group formats, complete arrays and bytes sent."""
  by_name = {(o.kind, o.arrays): o for o in collectives.read(HLO, 8)}
  got = {k: (o.group, o.times, o.bytes, o.sent) for k, o in by_name.items()}
  assert got == {
    ("all-reduce", 1): (4, 50, 32, 48.0),
    ("collective-permute", 1): (8, None, 16, 16.0),
    ("all-gather", 1): (2, 1, 6, 3.0),
    ("reduce-scatter", 1): (4, 1, 32, 24.0),
    ("all-reduce", 2): (2, 1, 16, 16.0),
  }
  assert by_name["all-reduce", 2].sources == ("jit(f)/sum", "", "")
  assert [
    r[:3] for r in communication.rows([o for o in by_name.values() if o.times])
  ] == [
    ("all-reduce", 4, 50),
    ("all-reduce", 2, 1),
    ("all-gather", 2, 1),
    ("reduce-scatter", 4, 1),
  ]


def test_text_that_cannot_be_read():
  with pytest.raises(ValueError, match="groups of an unknown form"):
    collectives.read(HLO.replace("{{0,2},{1,3}}", "new[8]"), 8)


# As XLA compiles for a TPU, where a gather overlaps with several fusions, and
# for a GPU, where it is a pair.
ASYNCHRONOUS = """
HloModule jit_f

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%nothing (q: f32[8,8]) -> (f32[3], f32[3]) {
}

%first (p: bf16[2,8]) -> bf16[8,8] {
  ROOT %ag.1 = bf16[8,8]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=4, """ + (
  """replica_groups=[1,4]<=[4], dimensions={0}, """
  """frontend_attributes={chain_id="0"}
}

%async_collective_fusion.1 (p: bf16[2,8]) -> bf16[8,8] {
  ROOT %ag.2 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=4, """
  """replica_groups=[1,4]<=[4], dimensions={0}, """
  """frontend_attributes={chain_id="0"}
}

%all-reduce-scatter.1 (p: f32[8,8]) -> f32[2,8] {
  %ar.3 = f32[8,8]{1,0:T(8,128)} all-reduce(%p), channel_id=5, """
  """replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %slice = f32[2,8] dynamic-slice(%ar.3, %zero, %zero)
}

ENTRY %main (p: bf16[2,8], q: f32[8,8]) -> bf16[8,8] {
  %f.1 = bf16[8,8]{1,0:T(8,128)(2,1)} fusion(%p), calls=%first
  %f.2 = bf16[8,8]{1,0:T(8,128)(2,1)} fusion(%p), """
  """calls=%async_collective_fusion.1
  %f.3 = f32[2,8]{1,0:T(8,128)} fusion(%q), calls=%all-reduce-scatter.1
  %start = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), channel_id=6, """
  """replica_groups=[1,4]<=[4], metadata={op_name="jit(f)/gather"}
  %done = f32[8]{0} all-gather-done(%start)
  %start.2 = f32[8]{0} all-reduce-start(%b), channel_id=7, """
  """replica_groups=[1,4]<=[4], to_apply=%add, """
  """metadata={op_name="jit(f)/transpose(jvp(VAE))/reduce_sum"}
  %done.2 = f32[8]{0} all-reduce-done(%start.2)
  %m = (f32[3]{0}, f32[3]{0}) fusion(%q), calls=%nothing, """
  """metadata={op_name="jit(f)/jvp(VAE)/reduce_sum"}
  %m.1 = f32[3]{0} get-tuple-element(%m), index=1
  %ar.4 = (f32[8]{0}, f32[3]{0}) all-reduce(%done.2, %m.1), channel_id=7, """
  """replica_groups=[1,4]<=[4], to_apply=%add, """
  """metadata={op_name="jit(f)/transpose(jvp(VAE))/reduce_sum"}
}
"""
)


def test_collectives_that_overlap_are_counted_once():
  found = collectives.read(ASYNCHRONOUS, 4)
  assert [(o.kind, o.dtype, o.bytes, o.group, o.what) for o in found] == [
    ("all-gather", "bf16", 128, 4, "parameters, codes"),
    ("reduce-scatter", "f32", 256, 4, "gradients"),
    ("all-gather", "f32", 32, 4, "parameters, codes"),
    ("all-reduce", "f32", 32, 4, "gradients"),
    ("all-reduce", "f32", 44, 4, "gradients, moments, statistics, metrics"),
  ]
  assert all(o.times == 1 for o in found)
  # The compiler says of a reduce-scatter that it is an all-reduce and a slice;
  # it sends half of that.
  assert [o.sent for o in found] == [96, 192, 24, 48, 66]


@pytest.mark.slow
def test_the_command(tmp_path):
  """Prints a table and the expected cost, and writes both."""
  out = tmp_path / "table.md"
  ran = subprocess.run(
    [
      *(sys.executable, "-m", "benchmarks.communication"),
      *("--config=configs/digits.py:tiny", "--devices=4", "--fsdp=2"),
      *("--config.mesh.fsdp_min_size=64", f"--out={out}"),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert ran.returncode == 0, ran.stderr
  assert "| all-gather | 2 |" in ran.stdout
  summed = re.search(r"Summed: .*\(off by ([+-][\d,]+)\)", ran.stdout)
  assert int(summed[1].replace(",", "")) <= communication.METRIC_BYTES
  gathered, law = re.search(
    r"Gathered: ([\d,]+) bytes; expected: ([\d,]+)\.", ran.stdout
  ).groups()
  assert gathered == law != "0"
  assert out.read_text().strip() == ran.stdout.strip()


def test_resource_estimate():
  """The bytes of a state, computed by hand; residuals grow with the batch."""
  c = alone(flat, mesh__fsdp_min_size=64)
  found = resource_estimate.needs(c)
  state = run_of(c).state
  params = sum(x.nbytes for x in jax.tree.leaves(state.vae.params))
  assert found.gradient == params
  # Plus two slots and the average; three counts and two counts of skipped
  # steps.
  assert found.state - 4 * params == sum(
    x.nbytes for x in jax.tree.leaves(state) if x.dtype == jnp.int32
  )
  assert 0 < found.large < found.state
  assert resource_estimate.residuals(c, 16) == found.fixed + 16 * found.image
  kept = 4 * c.data.channels * 4 * 4  # x_hat at least
  assert found.image > kept


# ---------------------------------------------------------- state shardings


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((3, 3, 128, 128), (None, None, "fsdp")),  # c_in: whole lanes
    ((3, 3, 64, 128), (None, None, None, "fsdp")),
    ((1024, 128), ("fsdp",)),
    ((512, 1024), (None, "fsdp")),
    ((3, 3, 3, 4096), (None, None, None, "fsdp")),
    ((65_536,), ("fsdp",)),
    ((65_535,), ()),  # small
    ((3, 3, 3, 5001), ()),  # not divisible
    ((), ()),
  ],
)
def test_which_axis_of_an_array_is_sharded(shape, spec):
  """On a mesh without FSDP, nothing is sharded."""
  grid = AbstractMesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
  layout = mesh.ShardingPlan(grid, 2**16)
  assert layout.shardings({"a": leaf})["a"].spec == PartitionSpec(*spec)
  one = mesh.ShardingPlan(AbstractMesh((8, 1), ("data", "fsdp")), 1)
  assert one.shardings({"a": leaf})["a"].spec == PartitionSpec()


def devices(hosts, each):
  """Of several hosts, out of order."""
  found = [
    SimpleNamespace(process_index=h, id=h * each + i)
    for h in range(hosts)
    for i in range(each)
  ]
  return found[::-1]


@pytest.mark.parametrize(
  ("batch", "fsdp", "message"),
  [
    (12, 1, r"batch_size=12 must be a multiple .* devices, 8; use 8 or 16\."),
    (4, 1, r"use 8\."),
    (16, 3, r"mesh\.fsdp=3 must divide .* devices, 8; use 1 or 2 or 4 or"),
    (16, 16, r"use 1 or 2 or 4 or 8\."),
  ],
)
def test_refused(batch, fsdp, message):
  with pytest.raises(UserError, match=message):
    mesh.create_mesh(batch, fsdp, devices=devices(2, 4))


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_a_replica_stays_within_a_host(monkeypatch, fsdp):
  """As far as possible; and the rows of a batch are grouped by host."""
  seen = []
  monkeypatch.setattr(jax, "devices", lambda: devices(2, 4))
  monkeypatch.setattr(mesh, "Mesh", lambda grid, *_, **__: seen.append(grid))
  mesh.create_mesh(16, fsdp)
  (grid,) = seen
  assert grid.shape == (8 // fsdp, fsdp)
  assert [d.id for d in grid.flat] == list(range(8))
  for copy in grid:
    assert len({d.process_index for d in copy}) == max(1, fsdp // 4)
