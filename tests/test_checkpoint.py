"""Checkpoints: bitwise round trips, detected damage, no partial steps.

The checksums are verified independently with coreutils' sha256sum; after a
kill, with digests that the process printed before it was killed.
"""

import asyncio
import errno
import gc
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from typing import Any

import checkpoint_child
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from gamix_jax.checkpoint import (
  Checkpoints,
  Preemption,
  integrity,
  leaves,
  preemption,
)
from gamix_jax.errors import UserError

KILLS = 12
CHILD = pathlib.Path(__file__).with_name("checkpoint_child.py")


@flax.struct.dataclass
class Net:
  params: Any
  batch_stats: Any
  opt_state: Any


@flax.struct.dataclass
class State:
  step: Any
  vae: Any
  disc: Any
  ema: Any
  key: Any


def make(seed=0):
  """A state with every kind of leaf: no discriminator, no statistics."""
  w = jax.random.normal(jax.random.key(seed), (7, 5))
  params = {
    "Conv_0": {"kernel": w, "bias": w[0].astype(jnp.bfloat16)},
    "odd": {"nan": jnp.array([jnp.nan, -0.0, jnp.inf]), "none": w[:0]},
  }
  optimiser = optax.chain(optax.clip(1.0), optax.adam(1e-3))
  net = Net(params, {}, optimiser.init(params))
  return State(jnp.int32(seed), net, None, params, jax.random.key(seed))


ABSTRACT = jax.eval_shape(make)


def equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  a, b = leaves.flatten(a), leaves.flatten(b)
  assert [n for n in a if not leaves.bitwise_equal(a[n], b[n])] == []


@pytest.fixture
def store(tmp_path):
  with Checkpoints(tmp_path / "checkpoints", keep=3) as checkpoints:
    yield checkpoints


@pytest.fixture(scope="module")
def three(tmp_path_factory):
  """Steps 1, 2 and 3, to be copied."""
  directory = tmp_path_factory.mktemp("three") / "checkpoints"
  with Checkpoints(directory, keep=3) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, make(step))
  return directory


@pytest.fixture
def copy(three, tmp_path):
  directory = tmp_path / "copy"
  shutil.copytree(three, directory)
  return directory


def files_of(step):
  return sorted(p for p in pathlib.Path(step).rglob("*") if p.is_file())


def flip(path, seed=0):
  data = bytearray(path.read_bytes())
  bit = random.Random(seed).randrange(8 * len(data))
  data[bit // 8] ^= 1 << bit % 8
  path.write_bytes(data)


def run(what, *arguments, devices=1, **kwargs):
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONWARNINGS": "error",
  }
  return subprocess.Popen(
    [sys.executable, CHILD, what, *map(str, arguments)],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **kwargs,
  )


def finish(process, timeout=120):
  try:
    out, err = process.communicate(timeout=timeout)
  except BaseException:
    process.kill()
    process.communicate()
    raise
  return process.returncode, out, err


# --- bits in, bits out -----------------------------------------------------


def test_round_trip_is_bit_for_bit(store):
  assert store.restore(ABSTRACT) is None
  assert store.latest() is None
  store.save(5, make(5), {"eval/elbo": -3.5, "vae/recon": float("nan")})
  step, state = store.restore(ABSTRACT)
  assert step == 5
  equal(state, make(5))
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
  metadata = store.metadata(5)
  assert metadata["metrics"] == {"eval/elbo": -3.5, "vae/recon": "nan"}
  assert metadata["versions"]["jax"] == jax.__version__
  assert store.saved_bytes() == sum(
    p.stat().st_size for p in files_of(store.directory / "5")
  )


def test_numbers_and_numpy_arrays(store):
  state = {"n": 3, "x": np.arange(4.0, dtype=np.float32), "t": (1.5, True)}
  store.save(1, state)
  _, back = store.restore(jax.eval_shape(lambda: state))
  jax.tree.map(np.testing.assert_array_equal, back, state)
  assert back["n"].dtype == jnp.int32
  assert back["t"][1].dtype == bool


def test_a_donated_state_is_saved_as_it_was(store):
  update = jax.jit(lambda x: x * 0.5 + 1, donate_argnums=0)
  x = jax.random.normal(jax.random.key(0), (1 << 21,))
  before = np.array(x)
  store.save(1, {"x": x})
  for _ in range(20):
    x = update(x)
  _, back = store.restore({"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})
  assert np.array_equal(back["x"], before)


def test_a_part_is_read_without_the_rest(copy):
  want = {"vae": {"params": ABSTRACT.vae.params}, "ema": ABSTRACT.ema}
  store = Checkpoints(copy, keep=3)
  step, part = store.restore_part(want)
  assert step == 3
  equal(part, {"vae": {"params": make(3).vae.params}, "ema": make(3).ema})
  bare = ABSTRACT.replace(vae=ABSTRACT.vae.replace(opt_state=None))
  equal(store.restore_part(bare, step=2)[1].vae.params, make(2).vae.params)
  with pytest.raises(UserError, match=r"disc\.params float32\[2\] is not in"):
    store.restore_part({"disc": {"params": jnp.zeros(2)}})


def test_eight_devices_to_one_and_back(tmp_path):
  state = checkpoint_child.sharded(checkpoint_child.mesh(1))
  with Checkpoints(tmp_path / "one", keep=1) as store:
    store.save(1, state)
  code, out, err = finish(
    run("eight", tmp_path / "eight", tmp_path / "one", devices=8)
  )
  assert code == 0, err
  assert out == "done\n"
  abstract = jax.eval_shape(lambda: state)
  with Checkpoints(tmp_path / "eight", keep=1) as store:
    step, back = store.restore(abstract)
  assert step == 1
  equal(back, state)
  assert all(len(x.devices()) == 1 for x in jax.tree.leaves(back))


def test_two_processes_to_one(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  directory = tmp_path / "checkpoints"
  both = [run("host", directory, port, n, devices=4) for n in (0, 1)]
  ends = []
  for code, out, err in [finish(process) for process in both]:
    assert code == 0, err
    ends.append(out.splitlines()[-1])  # after gloo's messages
  assert ends[0].startswith("stopped ")
  assert ends[0] == ends[1]
  abstract = {
    "w": jax.ShapeDtypeStruct((16, 5), jnp.float32),
    "b": jax.ShapeDtypeStruct((5,), jnp.bfloat16),
  }
  step, back = Checkpoints(directory, keep=1).restore_part(abstract)
  assert step == 3
  w = jax.random.bits(jax.random.key(1), (16, 5), "uint16").astype("float32")
  equal(back, {"w": w, "b": w[0].astype(jnp.bfloat16)})


# --- damage ----------------------------------------------------------------


def test_checksums_are_those_of_sha256sum(three):
  for step in "123":
    subprocess.run(
      ["sha256sum", "--strict", "--quiet", "-c", integrity.CHECKSUMS],
      cwd=three / step,
      check=True,
    )
    listed = (three / step / integrity.CHECKSUMS).read_text().split()[1::2]
    found = [str(p.relative_to(three / step)) for p in files_of(three / step)]
    assert sorted([*listed, integrity.CHECKSUMS]) == found


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
def test_damage_to_any_file_is_noticed(copy, caplog, damage):
  for path in files_of(copy / "3"):
    before = path.read_bytes()
    damage(path)
    caplog.clear()
    step, state = Checkpoints(copy, keep=3).restore(ABSTRACT)
    assert step == 2, path
    (line,) = caplog.messages
    assert "step 3" in line
    name = str(path.relative_to(copy / "3"))
    # A changed checksum list may also report the file it names.
    assert name in line or path.name == integrity.CHECKSUMS
    path.write_bytes(before)
  equal(state, make(2))
  assert Checkpoints(copy, keep=3).restore(ABSTRACT)[0] == 3


def test_every_bit_of_the_checksums_counts(copy):
  path = copy / "3" / integrity.CHECKSUMS
  before = path.read_bytes()
  at = random.Random(0).sample(range(8 * len(before)), 300)
  for bit in at:
    data = bytearray(before)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    assert integrity.verify_files(copy / "3"), bit
  for end in range(0, len(before), 7):
    path.write_bytes(before[:end])
    assert integrity.verify_files(copy / "3"), end
  path.write_bytes(before)
  assert integrity.verify_files(copy / "3") is None
  (copy / "3" / "state" / "more").write_text("")
  fault = integrity.verify_files(copy / "3")
  assert fault == f"state/more is not in {integrity.CHECKSUMS}"


def test_falls_back_step_by_step_and_reports_it(copy, caplog):
  flip(copy / "3" / "state" / "_METADATA")
  (copy / "2" / "about" / "metadata").unlink()
  store = Checkpoints(copy, keep=3)
  step, state = store.restore(ABSTRACT)
  assert step == 1
  equal(state, make(1))
  assert [m.split(" in ")[0] for m in caplog.messages] == [
    "The checkpoint of step 3",
    "The checkpoint of step 2",
  ]
  assert store.steps() == [1]
  shutil.rmtree(copy / "1" / "state")
  with pytest.raises(UserError) as error:
    Checkpoints(copy, keep=3).restore(ABSTRACT)
  for words in (
    "step 3: state/_METADATA has changed",
    "step 2: about/metadata is missing",
    "step 1: state/",
    str(copy),
  ):
    assert words in str(error.value)
  assert (copy / "3").exists()  # reading moves nothing


def test_a_damaged_step_is_saved_again(copy, caplog):
  flip(copy / "3" / "state" / "_METADATA")
  flip(copy / "2" / "_CHECKPOINT_METADATA")
  with Checkpoints(copy, keep=2) as store:
    assert store.restore(ABSTRACT)[0] == 1
    caplog.clear()
    store.save(2, make(2))
    assert sorted(p.name for p in (copy / "damaged").iterdir()) == ["2", "3"]
    assert "Moved the damaged checkpoint of step 2" in caplog.text
    store.save(3, make(3))
    store.wait()
    assert store.steps() == [2, 3]
    flip(copy / "3" / "state" / "_METADATA")  # and once more, while open
    assert store.restore(ABSTRACT)[0] == 2
    store.save(3, make(3))
    store.wait()
  step, state = Checkpoints(copy, keep=2).restore(ABSTRACT)
  assert step == 3
  equal(state, make(3))


def test_damage_to_unused_steps_does_not_matter(copy):
  # A resumed run does not verify steps before the newest.
  for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
    (copy / "1" / name).write_bytes(b"\xff\x00")
    (copy / "2" / name).unlink()
  with Checkpoints(copy, keep=2) as store:
    assert store.restore(ABSTRACT)[0] == 3
    store.save(4, make(4))
    store.save(5, make(5))
    store.wait()
    assert store.steps() == [4, 5]


def test_a_step_is_complete_from_the_commit_on(store):
  # As if killed between Orbax's rename and the last two checksums.
  store.save(1, make(1))
  deadline = time.monotonic() + 30
  while not (store.directory / "1").exists() and time.monotonic() < deadline:
    time.sleep(0.001)
  other = Checkpoints(store.directory, keep=3)
  step, state = other.restore(ABSTRACT)
  assert step == 1
  equal(state, make(1))


# --- which steps -----------------------------------------------------------


def test_keeps_the_newest_and_the_best(tmp_path):
  values = [1.0, 9.0, float("nan"), 8.0, None, 2.0, 3.0]
  for mode, best in (("max", [2, 4]), ("min", [1, 6])):
    directory = tmp_path / mode
    store = Checkpoints(
      directory, keep=1, keep_best=2, best_metric="m", best_mode=mode
    )
    for i, value in enumerate(values, 1):
      if i == 4:  # the metrics survive the process
        store.close()
      store.save(
        i, {"x": jnp.zeros(2)}, None if value is None else {"m": value}
      )
      store.wait()
      assert store.latest() == i
    store.close()
    assert store.steps() == [*best, 7]
  with pytest.raises(UserError, match="keep"):
    Checkpoints(tmp_path, keep=0)
  with pytest.raises(UserError, match="max or min"):
    Checkpoints(tmp_path, keep=1, best_mode="mx")


def test_the_old_go_only_when_the_new_is_complete(tmp_path, monkeypatch):
  with Checkpoints(tmp_path, keep=1) as store:
    store.save(1, make(1))
    store.wait()

    def full(directory):
      raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
      patch.setattr(integrity, "write_checksums", full)
      store.save(2, make(2))
      with pytest.raises(UserError) as error:
        store.wait()
    assert "No space left on device" in str(error.value)
    assert "step 2" in str(error.value)
    assert "last complete one is step 1" in str(error.value)
    assert os.listdir(tmp_path) == ["1"]
    assert store.restore(ABSTRACT)[0] == 1
    store.save(2, make(2))  # fixed
    store.wait()
    assert os.listdir(tmp_path) == ["2"]


def test_writes_that_outlive_a_failed_save(tmp_path, monkeypatch):
  """Orbax does not wait for them; their files are deleted nevertheless."""
  kind = type(epath.Path(tmp_path))
  rmtree, calls = kind.rmtree, []

  def full(directory):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def with_late_writes(path, *args):
    rmtree(path, *args)
    calls.append(path)
    if len(calls) < 3:
      path.mkdir()
      (path / "late").write_bytes(b"1")
    if len(calls) == 1:  # as `os.rmdir` reports the new file
      raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

  monkeypatch.setattr(integrity, "write_checksums", full)
  monkeypatch.setattr(kind, "rmtree", with_late_writes)
  store = Checkpoints(tmp_path, keep=1)
  store.save(1, make(1))
  with pytest.raises(UserError, match="No space left"):
    store.close()
  assert [p.name for p in calls] == ["1.orbax-checkpoint-tmp"] * 3
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  ("message", "shown"),
  [
    ('NOT_FOUND: Error writing "w" in "/run/1.orbax-checkpoint-tmp/state/"', 0),
    ("Error writing: No space left on device", 0),
    ("another error", 1),
  ],
)
def test_messages_of_writes_that_outlive_a_failed_save(caplog, message, shown):
  async def unheard():
    asyncio.get_running_loop().create_future().set_exception(
      ValueError(message)
    )

  with caplog.at_level("ERROR", "asyncio"):
    asyncio.run(unheard())
    gc.collect()
  assert len(caplog.records) == shown


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
  def broken(directory):
    raise ZeroDivisionError

  monkeypatch.setattr(integrity, "write_checksums", broken)
  store = Checkpoints(tmp_path, keep=1)
  store.save(1, make(1))
  with pytest.raises(ZeroDivisionError):
    store.close()
  assert store.restore(ABSTRACT) is None


def test_an_existing_step(store):
  state = make(3)
  store.save(3, state)
  store.save(3, state)  # the same arrays
  store.save(3, make(3))  # the same bits
  with pytest.raises(UserError, match=r"another state \(step, vae\.params"):
    store.save(3, make(4))
  with pytest.raises(UserError, match="another model"):
    store.save(3, {"x": jnp.zeros(2)})
  with pytest.raises(UserError, match="holds step 3 already, so step 2"):
    store.save(2, make(2))
  store.save(4, make(4))
  store.wait()
  assert store.steps() == [3, 4]
  with pytest.raises(UserError, match="no checkpoint of step 7"):
    store.restore(ABSTRACT, step=7)
  equal(store.restore(ABSTRACT, step=3)[1], make(3))


def test_leftovers_are_ignored_then_removed(store):
  store.save(1, make(1))
  store.close()
  left = store.directory / "2.orbax-checkpoint-tmp"
  shutil.copytree(store.directory / "1", left)
  assert store.restore(ABSTRACT)[0] == 1
  store.save(2, make(2))
  store.close()
  assert sorted(p.name for p in store.directory.iterdir()) == ["1", "2"]


def test_the_next_run_finalizes_what_a_killed_one_did_not(copy):
  names = {p.name for p in (copy / "3").iterdir()}
  path = copy / "3" / integrity.CHECKSUMS
  original = path.read_text()
  lines = original.splitlines(keepends=True)
  late = ("_CHECKPOINT_METADATA", "commit_success.txt")
  kept = [line for line in lines if line.split()[1] not in late]
  path.write_text("".join(kept))
  assert path.read_text() != original
  (copy / "3" / "SHA256SUMS.tmp").write_text("half of")
  with Checkpoints(copy, keep=3) as store:
    assert store.restore(ABSTRACT)[0] == 3
    assert path.read_text() != original  # reading changes nothing
    store.save(4, make(4))
  assert path.read_text() == original
  assert {p.name for p in (copy / "3").iterdir()} == names


def test_only_leftovers_is_no_checkpoint(tmp_path):
  (tmp_path / "1.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  with Checkpoints(tmp_path, keep=1) as store:
    assert store.restore(ABSTRACT) is None


def test_another_model_is_refused_by_name(copy):
  store = Checkpoints(copy, keep=3)
  other = ABSTRACT.replace(
    step=jax.ShapeDtypeStruct((), jnp.float32),
    ema={**ABSTRACT.ema, "new": jax.ShapeDtypeStruct((3,), jnp.float32)},
    key=None,
  )
  with pytest.raises(UserError) as error:
    store.restore(other)
  message = str(error.value)
  for words in (
    "step is int32[] in it, float32[] here",
    "ema.new float32[3] is not in it",
    "key key<fry>[] is in it only",
    "another workdir",
  ):
    assert words in message
  assert len(message.splitlines()) == 2


def test_a_newer_format_is_refused(copy):
  path = copy / "3" / "about" / "metadata"
  about = json.loads(path.read_text())
  about["format"] += 1
  path.write_text(json.dumps(about))
  integrity.write_checksums(copy / "3")
  with pytest.raises(UserError, match="format 2, this program knows 1"):
    Checkpoints(copy, keep=3).restore(ABSTRACT)


# --- kills and full disks --------------------------------------------------


def wait_for_save(directory, step):
  """Waits until the step's temporary folder or the complete step exists."""
  deadline = time.monotonic() + 30
  while time.monotonic() < deadline:
    names = os.listdir(directory) if directory.exists() else []
    if any(name.split(".")[0] == str(step) for name in names):
      return
    time.sleep(0.0005)
  raise AssertionError(f"step {step} was never saved")


def test_kills_lose_nothing_complete(tmp_path):
  """Half of the kills hit the start of a save, half any time around one."""
  chance = random.Random(7)
  directory = tmp_path / "checkpoints"
  saved, complete, newest, kept, cut = {}, 0, 0, 0, 0
  for i in range(KILLS):
    process = run("train", directory)
    first = process.stdout.readline().split()
    if not first:
      raise AssertionError(finish(process)[2])
    restored = int(first[1])
    # Exactly a saved state, and not older than the newest complete one.
    assert restored >= complete
    assert restored == newest
    if restored:
      assert saved[restored] == first[2]
    kept += restored > complete
    complete = restored
    last = restored + chance.randint(1, 3)
    for line in process.stdout:
      words = line.split()
      if words[0] == "begin":
        saved[int(words[1])] = words[2]
        if int(words[1]) == last:
          break
      else:
        complete = max(complete, int(words[1]))
    if i % 2:
      time.sleep(chance.uniform(0, 0.25))
    else:
      wait_for_save(directory, last)
    process.send_signal(signal.SIGKILL)
    process.wait()
    names = os.listdir(directory)
    newest = max([int(n) for n in names if n.isdecimal()], default=0)
    cut += any("tmp" in name for name in names)
    for line in finish(process)[1].splitlines():
      words = line.split()
      if words[0] == "begin" and len(words) == 3:
        saved[int(words[1])] = words[2]
      elif words[0] == "complete" and len(words) == 2:
        complete = max(complete, int(words[1]))
  assert complete > 0
  print(f"{cut} of {KILLS} kills cut a save, {kept} found one just complete")
  assert cut >= KILLS // 4


def test_killed_at_every_stage_of_a_save(tmp_path):
  # Before the checksums; between the commit and the last two checksums; halfway
  # through deleting step 1.
  at = {"write_checksums": 1, "finalize_checksums": 2, "delete": 2}
  children = {where: run("die", tmp_path / where, where) for where in at}
  state = checkpoint_child.sharded(checkpoint_child.mesh(1))
  for where, child in children.items():
    code, out, err = finish(child)
    assert (code, out) == (-signal.SIGKILL, ""), err
    with Checkpoints(tmp_path / where, keep=1) as store:
      assert store.latest() == at[where]
      step, back = store.restore(jax.eval_shape(lambda: state))
      assert step == at[where]
      equal(back, state)
      store.save(step + 1, state)
    assert os.listdir(tmp_path / where) == [str(step + 1)]


def test_full_disk(tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)]
  mounted = (
    os.geteuid() == 0
    and shutil.which("mount") is not None
    and subprocess.run(mount, capture_output=True, check=False).returncode == 0
  )
  try:
    code, out, err = finish(
      run("fill", disk / "checkpoints", 0 if mounted else 1 << 21)
    )
    assert code == 0, err
    failed, advice, steps = out.splitlines()
    step = int(failed.split()[1])
    assert step > 1
    reason = "No space left on device" if mounted else "File too large"
    assert f"{reason} while saving the checkpoint of step {step} " in failed
    assert f"last complete one is step {step - 1}." in failed
    assert "continues" in advice
    assert int(steps.split()[-1]) == step - 1
    names = os.listdir(disk / "checkpoints")
    assert sorted(names) == sorted(steps.split()[1:])
    assert "Traceback" not in err
    abstract = {"w": jax.ShapeDtypeStruct((step - 1, 1 << 18), jnp.float32)}
    found, _ = Checkpoints(disk / "checkpoints", keep=1).restore(abstract)
    assert found == step - 1
  finally:
    if mounted:
      subprocess.run(["umount", str(disk)], check=True)


def test_directory_made_read_only(tmp_path):
  directory = tmp_path / "checkpoints"
  if os.geteuid() == 0:
    # The child drops to `nobody`, who needs access to the directory.
    for parent in directory.parents:
      if str(parent).startswith(("/tmp/", str(tmp_path.anchor) + "tmp/")):
        parent.chmod(0o755)
  try:
    code, out, err = finish(run("readonly", directory))
  finally:
    directory.chmod(0o755)
  assert code == 0, err
  assert "Permission denied while saving the checkpoint of step 2" in out
  assert "last complete one is step 1." in out
  assert out.endswith("restored 1\n")
  assert "Traceback" not in err
  assert os.listdir(directory) == ["1"]


def test_the_directory_is_a_file(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  store = Checkpoints(tmp_path / "checkpoints", keep=1)
  with pytest.raises(UserError, match="cannot be listed: Not a directory"):
    store.save(1, make(1))


# --- preemption ------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_kills(number, monkeypatch):
  now = 100.0
  monkeypatch.setattr(preemption.time, "monotonic", lambda: now)
  acted = []
  before = signal.signal(number, lambda n, frame: acted.append(n))
  try:
    with Preemption() as asked:
      assert not asked.reached(1)
      os.kill(os.getpid(), number)
      assert asked.requested
      assert asked.reached(2)
      assert asked.received == number
      assert acted == []
      os.kill(os.getpid(), number)  # as `timeout` does, to the group
      assert acted == []
      now += 2
      os.kill(os.getpid(), number)
      assert acted == [number]
    with Preemption() as asked:
      assert not asked.requested
    os.kill(os.getpid(), number)
    assert acted == [number, number]
  finally:
    signal.signal(number, before)


def test_nothing_is_logged_or_warned_by_a_save(store, caplog):
  caplog.set_level(logging.WARNING)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    store.save(1, make(1))
    store.save(2, make(2), {"eval/elbo": 1.0})
    store.wait()
    store.restore(ABSTRACT)
  assert caplog.messages == []
