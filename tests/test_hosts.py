"""Several processes of one run act as one, even if one of them fails.

Two processes with four emulated devices each, on this machine, started through
`main` as on a pod.
"""

import collections
import functools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import audited
import jax
import numpy as np
import pytest
from program import ANY_LENGTH, ROOT, SMALL, noise, numbers, rows, save
from test_resume import EVERY, RICH, arrays

import gamix_jax
from gamix_jax import cli, config, data, hardware
from gamix_jax.data.index_sampler import IndexSampler, local_rows
from gamix_jax.errors import UserError
from gamix_jax.files import PART
from gamix_jax.parallel import distributed
from gamix_jax.training import validation

STEPS = 20
# A line of gloo's, or the end of one that another thread split.
GLOO = re.compile(r"\[Gloo\]|\d*\n$|.*connected peer ranks is : \d*\n$")
TIMEOUT = 240  # seconds, on a busy machine; a run takes ten


def free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def start(program, *flags, count=2, devices=4, command=None):
  """Starts the processes of a run; `command` returns the words before flags."""
  address = f"localhost:{free_port()}"
  return [
    subprocess.Popen(
      [
        *(program.argv() if command is None else command(i)),
        *map(str, flags),
        f"--coordinator={address}",
        f"--num_processes={count}",
        f"--process_id={i}",
      ],
      env=program.env(devices),
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for i in range(count)
  ]


def ended(processes):
  """Returns [(exit code, stdout, stderr without gloo's lines)]."""
  found = []
  try:
    for p in processes:
      out, err = p.communicate(timeout=TIMEOUT)
      out, err = (
        "".join(x for x in t.splitlines(True) if not GLOO.match(x))
        for t in (out, err)
      )
      found.append((p.returncode, out, err))
  finally:
    for p in processes:
      p.kill()
  return found


def wait_for(path, processes):
  """Waits until a file exists."""
  begin = time.monotonic()
  while not path.exists():
    assert time.monotonic() - begin < TIMEOUT, path
    for p in processes:
      assert p.poll() is None, p.communicate()
    time.sleep(0.02)


FLAGS = (
  *RICH,
  f"--config.steps={STEPS}",
  f"--config.checkpoint.every={STEPS // 2}",
  f"--config.eval_every={STEPS}",
  # Wide enough for eight devices to shard.
  "--config.model.encoder_features=(8,8)",
  "--config.model.decoder_features=(8,1)",
  "--config.model.discriminator_features=(8,1)",
  "--config.mesh.fsdp_min_size=64",
  # The published rate; at digits' 1e-3, rounding has grown to 3e-4 by step 14.
  "--config.optim.vae.learning_rate=1e-4",
  "--config.optim.disc.learning_rate=1e-4",
)
# Two hosts of four devices, by `mesh.fsdp`: a replica per device, four replicas
# on two devices each, one over both hosts.
LAYOUTS = (1, 2, 8)
ACROSS = max(LAYOUTS)


@pytest.fixture(scope="module")
def both(program, tmp_path_factory):
  """Runs the same steps on two processes of four devices, and on one device.

  A function of `mesh.fsdp`, or None for one process: the workdir, and the
  output of each. Runs on first use.
  """
  root = tmp_path_factory.mktemp("both")

  @functools.cache
  def run(fsdp):
    flags = (*FLAGS, f"--workdir={root}/{fsdp}")
    if fsdp is None:
      program.done(*flags)
      return root / "None", None
    two = ended(start(program, *flags, f"--config.mesh.fsdp={fsdp}"))
    assert [code for code, _, _ in two] == [0, 0], two
    return root / str(fsdp), two

  return run


def assert_one_run(ours, theirs, after=0):
  """Asserts that two workdirs agree: metrics from a step on, and arrays."""
  ours_said, theirs_said = (
    [r for r in numbers(k) if r["step"] > after] for k in (ours, theirs)
  )
  assert [r["step"] for r in ours_said] == [r["step"] for r in theirs_said]
  assert len(ours_said) > STEPS - after  # and the validation rows
  for a, b in zip(ours_said, theirs_said, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      # Rounding may put a unit on the other side of its kink: the gradient
      # jumps, the loss does not.
      rtol = 2e-3 if "grad" in name else 2e-4
      np.testing.assert_allclose(
        a[name], b[name], rtol=rtol, atol=1e-5, err_msg=f"{a['step']} {name}"
      )
  ours, theirs = (arrays(k, STEPS) for k in (ours, theirs))
  assert ours.keys() == theirs.keys()
  for name, x in ours.items():
    y = np.asarray(theirs[name], np.float64)
    off = np.max(np.abs(np.asarray(x, np.float64) - y), initial=0)
    # And one of Adam's 20 steps, 1e-4, if rounding decides a gradient's sign.
    assert off <= 2e-4 * np.max(np.abs(y), initial=0) + 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", LAYOUTS)
def test_two_hosts_are_one_device(both, fsdp):
  """20 steps: components, batch statistics, moments, discriminator, noise."""
  assert_one_run(both(fsdp)[0], both(None)[0])


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", LAYOUTS)
def test_only_the_first_process_prints_and_writes(both, fsdp):
  run, two = both(fsdp)
  (_, first, _), (_, second, _) = two
  where = "8 x cpu in 2 processes"
  if fsdp > 1:
    where += f", each copy of the state sharded over {fsdp}"
  assert f"Devices    {where};" in first
  assert "Done: step 20 of 20" in first
  assert second == ""
  assert all(err == "" for _, _, err in two), two
  steps = [r["step"] for r in rows(run) if "vae/loss" in r]
  assert steps == list(range(1, STEPS + 1))
  assert len(list((run / "tensorboard").iterdir())) == 1
  assert (run / "images" / f"samples_{STEPS:07d}.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("saved", "devices", "fsdp"),
  [(1, 1, 1), (1, 4, 2), (2, 1, 1), (ACROSS, 1, 1), (ACROSS, 4, 1)],
)
def test_continued_on_other_devices(
  both, program, tmp_path, saved, devices, fsdp
):
  """One device resumes what two hosts have saved, and matches the full run."""
  run = shutil.copytree(both(saved)[0], tmp_path / "run")
  shutil.rmtree(run / "checkpoints" / str(STEPS))
  flags = (*FLAGS, f"--config.mesh.fsdp={fsdp}", f"--workdir={run}")
  out = program.done(*flags, devices=devices)
  assert f"Continuing at step {STEPS // 2}." in out
  assert_one_run(run, both(None)[0], after=STEPS // 2)


@pytest.mark.slow
def test_two_hosts_continue_what_one_device_has_saved(both, program, tmp_path):
  """And shard it over both."""
  run = shutil.copytree(both(None)[0], tmp_path / "run")
  shutil.rmtree(run / "checkpoints" / str(STEPS))
  flags = (*FLAGS, f"--config.mesh.fsdp={ACROSS}", f"--workdir={run}")
  two = ended(start(program, *flags))
  assert [code for code, _, _ in two] == [0, 0], two
  assert f"Continuing at step {STEPS // 2}." in two[0][1]
  assert_one_run(run, both(None)[0], after=STEPS // 2)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["ema", "raw"])
def test_loaded_on_one_device(both, which):
  """Loads a model whose arrays were sharded over two hosts."""
  assert jax.device_count() == 1
  across, one = (gamix_jax.load(both(k)[0], which) for k in (ACROSS, None))
  x = np.random.default_rng(0).uniform(-1, 1, (5, *one.spec.image.shape))
  x = x.astype("f4")
  assert across.step == one.step == STEPS
  np.testing.assert_allclose(
    across.reconstruct(x), one.reconstruct(x), rtol=2e-4, atol=1e-4
  )


@pytest.mark.slow
def test_a_host_reads_its_rows_and_one_writes(program, tmp_path):
  """Checked by the files that Python opens in each of two processes."""
  images, run = tmp_path / "images", tmp_path / "run"
  images.mkdir()
  for i in range(400):
    save(images / f"{i:03d}.png", noise(i, 8, 8))
  logs = [tmp_path / f"{i}.jsonl" for i in range(2)]
  two = ended(
    start(
      program,
      *SMALL,
      f"--config.data.source=folder:{images}",
      f"--workdir={run}",
      command=lambda i: [sys.executable, audited.__file__, logs[i]],
    )
  )
  assert [code for code, _, _ in two] == [0, 0], two
  first, second = (
    [json.loads(line) for line in log.read_text().splitlines()] for log in logs
  )
  for i, events in enumerate((first, second)):
    assert_read_its_rows(events, images, run, i)

  def written(events):
    places = [Path(p) for kind, p in events if kind != "read"]
    return {p.relative_to(run).parts[0] for p in places if run in p.parents}

  ours = {"metrics.jsonl", "tensorboard", "images", "parameters.txt"}
  assert ours <= {
    re.sub(rf"^{re.escape(PART)}\d+-", "", name) for name in written(first)
  }
  assert written(second) <= {"checkpoints"}


def assert_read_its_rows(events, images, run, host):
  """Checks that training rows are its own, and held-out ones are needed."""
  c = config.from_json((run / "config.json").read_text())
  size = c.data.batch_size
  train, test = (
    data.open_dataset(c.data, k, c.seed) for k in ("train", "test")
  )
  assert len(train) + len(test) == 400
  opened = collections.Counter(
    Path(p).name for kind, p in events if kind == "read" and p.endswith(".png")
  )
  # Every file's header was read once, to check that it is an image.
  assert len(opened) == 400
  often = min(opened.values())
  read = {name for name, times in opened.items() if times > often}
  # Three steps, and a few prefetched ones.
  order = IndexSampler(len(train), size, c.seed, shuffle=True, flip=False)
  rows_of = local_rows(size, host, 2)
  mine = [
    {train.source.name(k) for k in order.rows(t)[rows_of]} for t in range(9)
  ]
  of_test = [test.source.name(k) for k in range(len(test))]
  trained = read - set(of_test)
  assert set.union(*mine[:3]) <= trained <= set.union(*mine)
  # Those in pictures, which every process draws, and its rows for the metrics.
  shown = set(of_test[: validation.NUM_PICTURED])
  looked_at = range(min(c.eval_images, len(test)))
  assert shown <= read
  assert read & set(of_test) <= shown | {
    of_test[k] for k in looked_at if k % size // (size // 2) == host
  }


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, ACROSS])
def test_one_host_asked_to_stop_stops_all(program, tmp_path, fsdp):
  """SIGTERM to the second; then one process alone finishes the run."""
  flags = (*SMALL, EVERY, *ANY_LENGTH)
  flags += ("--config.steps=5000", f"--workdir={tmp_path}/run")
  spread = (f"--config.mesh.fsdp={fsdp}", "--config.mesh.fsdp_min_size=64")
  two = start(program, *flags, *spread)
  wait_for(tmp_path / "run" / "checkpoints" / "3", two)
  two[1].send_signal(signal.SIGTERM)
  (code, out, err), second = ended(two)
  assert (code, second[0]) == (0, 0), (out, err, second)
  assert "Asked to stop: saving step" in out
  stopped = rows(tmp_path / "run")[-1]["step"]
  saved = [int(p.name) for p in (tmp_path / "run/checkpoints").iterdir()]
  assert max(saved) >= stopped
  last = max(saved) + 2
  text = program.done(*flags[:-2], f"--config.steps={last}", flags[-1])
  assert f"Continuing at step {max(saved)}." in text
  assert f"Done: step {last} of {last}" in text


@pytest.mark.slow
def test_a_killed_host_ends_the_other(program, tmp_path):
  """Within the heartbeat limit, with a message, and not as a success.

  In a step, it is our message and code; in a wait for the others, JAX's own
  (which ends the process outside Python, with SIGABRT).
  """
  flags = (*SMALL, EVERY, *ANY_LENGTH)
  flags += ("--config.steps=5000", f"--workdir={tmp_path}/run")
  two = start(program, *flags, devices=1)
  wait_for(tmp_path / "run" / "checkpoints" / "3", two)
  two[1].kill()
  began = time.monotonic()
  (code, _, err), _ = ended(two)
  assert time.monotonic() - began < 3 * distributed.HEARTBEAT
  assert code in (distributed.LOST, -signal.SIGABRT), err
  words = {
    distributed.LOST: "lost the others",
    -signal.SIGABRT: "another task died",
  }
  assert words[code] in err
  saved = [int(p.name) for p in (tmp_path / "run/checkpoints").glob("[0-9]*")]
  last = max(saved) + 4
  text = program.done(*flags[:-2], f"--config.steps={last}", flags[-1])
  assert "Continuing at step" in text


@pytest.mark.parametrize(
  ("error", "wanted"),
  [
    (jax.errors.JaxRuntimeError("Gloo failed"), distributed.LOST),
    (ValueError("UNKNOWN: Gloo AllGather failed"), distributed.LOST),
    (UserError("a mistake"), 2),
    (ValueError("a defect"), 1),
  ],
)
def test_codes_of_one_of_several(monkeypatch, capsys, error, wanted):
  """It exits at once, and with 2 only for a user error."""

  def main():
    raise error

  def end(code):
    raise SystemExit(code)

  monkeypatch.setattr(distributed, "is_multiprocess", lambda: True)
  monkeypatch.setattr("os._exit", end)
  with pytest.raises(SystemExit) as ended_with:
    cli.run(main, ["x"])
  assert ended_with.value.code == wanted
  begins = "Traceback" if wanted == 1 else "gamix_jax: "
  assert capsys.readouterr().err.startswith(begins)


def test_every_process_reports_a_mistake(program, tmp_path):
  """A mistake that the first process finds: all exit with 2."""
  (tmp_path / "checkpoints").mkdir()
  two = ended(start(program, *SMALL, f"--workdir={tmp_path}"))
  for code, _, err in two:
    assert code == 2, err
    assert "has checkpoints but no config.json" in err


ALONE = """
from gamix_jax.parallel import distributed
distributed.EXPLAIN, distributed.GIVE_UP = 1, 2
distributed.initialize(
  coordinator="localhost:{}", num_processes=2, process_id={}
)
"""


@pytest.mark.parametrize("index", [0, 1])
def test_a_host_alone_says_so(program, index):
  ran = subprocess.run(
    [sys.executable, "-c", ALONE.format(free_port(), index)],
    env=program.env(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=TIMEOUT,
    check=False,
  )
  assert ran.returncode == distributed.LOST, ran.stderr
  assert "waiting for the run's other processes" in ran.stderr
  assert "every host of a pod" in ran.stderr
  assert "Check failure" not in ran.stderr


# ------------------------------------------------------------ how they meet


@pytest.fixture
def initialize_calls(monkeypatch):
  """Records what JAX would be passed."""
  calls = []
  monkeypatch.setattr(
    "jax.distributed.initialize", lambda *args, **_: calls.append(args)
  )
  for name in (
    "SLURM_STEP_NODELIST",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JOB_COMPLETION_INDEX",
  ):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(hardware, "has_tpu", lambda: False)
  return calls


def test_a_single_process_waits_for_nobody(initialize_calls):
  distributed.initialize()
  assert initialize_calls == []


def test_flags(initialize_calls):
  distributed.initialize(coordinator="a:1", num_processes=4, process_id=3)
  assert initialize_calls == [("a:1", 4, 3)]


def test_found_in_a_job_set(initialize_calls, monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a-0.a:8476")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
  distributed.initialize()
  assert initialize_calls == [("a-0.a:8476", 4, 2)]


def test_found_in_a_slurm_step_and_on_a_tpu(initialize_calls, monkeypatch):
  monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2]")
  monkeypatch.setenv("SLURM_NTASKS", "1")
  distributed.initialize()
  assert initialize_calls == []
  monkeypatch.setenv("SLURM_NTASKS", "2")
  distributed.initialize()
  monkeypatch.setattr(hardware, "has_tpu", lambda: True)
  monkeypatch.setenv("SLURM_NTASKS", "1")
  distributed.initialize()
  assert initialize_calls == [(None, None, None)] * 2


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (dict(coordinator="a:1"), "give all three"),
    (dict(num_processes=2, process_id=0), "give all three"),
    (dict(coordinator="a", num_processes=2, process_id=0), "must be HOST:PORT"),
    (dict(coordinator="a:1", num_processes=2, process_id=2), "from 0 to 1"),
  ],
)
def test_refused(initialize_calls, given, message):
  with pytest.raises(UserError, match=message):
    distributed.initialize(**given)
  assert initialize_calls == []


SLURM = """
import json, jax
from gamix_jax.parallel import distributed
distributed.initialize()
found = jax.process_index(), jax.process_count(), distributed.is_multiprocess()
print(json.dumps(found))
"""


def test_slurm_for_real(program):
  """Two processes in the environment that `srun` sets."""
  job = str(time.time_ns() // 10**6 % 4000)  # the port is derived from it
  two = [
    subprocess.Popen(
      [sys.executable, "-c", SLURM],
      env=program.env()
      | {
        "SLURM_JOB_ID": job,
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(i),
        "SLURM_LOCALID": str(i),
      },
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for i in range(2)
  ]
  outputs = [json.loads(out.splitlines()[-1]) for _, out, _ in ended(two)]
  assert outputs == [[0, 2, True], [1, 2, True]]
