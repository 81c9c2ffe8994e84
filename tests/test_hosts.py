"""Several processes of one run: one run, whatever befalls one of them.

Two processes of four emulated devices each, on this machine, through `main` as
a pod starts it.
"""

import json
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from program import ROOT, SMALL, numbers, rows
from test_resume import EVERY, RICH, arrays

from gamix_jax import cli, hosts
from gamix_jax.errors import UserError

STEPS = 20
LIMIT = 240  # seconds, for a machine that is busy; a run takes ten


def free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def start(program, *flags, count=2, devices=4):
  """The processes of one run."""
  address = f"localhost:{free_port()}"
  return [
    subprocess.Popen(
      program.argv(
        *flags,
        f"--coordinator={address}",
        f"--num_processes={count}",
        f"--process_id={i}",
      ),
      env=program.env(devices),
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for i in range(count)
  ]


def ended(processes):
  """[(exit code, stdout, stderr without what gloo says)] of each."""
  found = []
  try:
    for p in processes:
      out, err = p.communicate(timeout=LIMIT)
      gloo = "[Gloo]"
      out, err = (
        "".join(x for x in t.splitlines(True) if not x.startswith(gloo))
        for t in (out, err)
      )
      found.append((p.returncode, out, err))
  finally:
    for p in processes:
      p.kill()
  return found


def wait_for(path, processes):
  """Until a file is there."""
  begin = time.monotonic()
  while not path.exists():
    assert time.monotonic() - begin < LIMIT, path
    for p in processes:
      assert p.poll() is None, p.communicate()
    time.sleep(0.02)


@pytest.fixture(scope="module")
def both(program, tmp_path_factory):
  """The same steps of two processes with four devices, and of one with one."""
  root = tmp_path_factory.mktemp("both")
  flags = (
    *RICH,
    f"--config.steps={STEPS}",
    f"--config.checkpoint.every={STEPS}",
    f"--config.eval_every={STEPS}",
    # The published one; at digits' 1e-3 rounding has grown to 3e-4 by step 14.
    "--config.optim.vae.learning_rate=1e-4",
    "--config.optim.disc.learning_rate=1e-4",
  )
  two = ended(start(program, *flags, f"--workdir={root}/two"))
  program.done(*flags, f"--workdir={root}/one")
  return root, two


@pytest.mark.slow
def test_two_hosts_are_one_device(both):
  """20 steps: components, batch statistics, moments, discriminator, noise."""
  root, two = both
  assert [code for code, _, _ in two] == [0, 0], two
  ours, theirs = numbers(root / "two"), numbers(root / "one")
  assert [r["step"] for r in ours] == [r["step"] for r in theirs]
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      # A unit at its kink, on the other side by rounding, is a jump of the
      # gradient and none of the loss.
      rtol = 2e-3 if "grad" in name else 2e-4
      np.testing.assert_allclose(
        a[name], b[name], rtol=rtol, atol=1e-5, err_msg=f"{a['step']} {name}"
      )
  ours, theirs = (arrays(root / k, STEPS) for k in ("two", "one"))
  for name, x in ours.items():
    y = np.asarray(theirs[name], np.float64)
    off = np.max(np.abs(np.asarray(x, np.float64) - y), initial=0)
    # And one of Adam's 20 steps, 1e-4, where a gradient's sign is rounding's.
    assert off <= 2e-4 * np.max(np.abs(y), initial=0) + 1e-4, name


@pytest.mark.slow
def test_only_the_first_speaks_and_writes(both):
  root, two = both
  (_, first, _), (_, second, _) = two
  assert "Devices    8 x cpu in 2 processes" in first
  assert "Done: step 20 of 20" in first
  assert second == ""
  assert all(err == "" for _, _, err in two), two
  steps = [r["step"] for r in rows(root / "two") if "vae/loss" in r]
  assert steps == list(range(1, STEPS + 1))
  assert len(list((root / "two" / "tensorboard").iterdir())) == 1
  assert (root / "two" / "images" / f"samples_{STEPS:07d}.png").is_file()


@pytest.mark.slow
def test_one_host_asked_to_stop_stops_all(program, tmp_path):
  """SIGTERM to the second; then one process alone brings it to its end."""
  flags = (*SMALL, EVERY, "--config.steps=5000", f"--workdir={tmp_path}/run")
  two = start(program, *flags)
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
  """Within the heartbeat's limit, with a message, and not as a success.

  In a step it is our message and code; in a wait for the others, JAX's own
  (it then ends the process outside Python, with SIGABRT).
  """
  flags = (*SMALL, EVERY, "--config.steps=5000", f"--workdir={tmp_path}/run")
  two = start(program, *flags, devices=1)
  wait_for(tmp_path / "run" / "checkpoints" / "3", two)
  two[1].kill()
  began = time.monotonic()
  (code, _, err), _ = ended(two)
  assert time.monotonic() - began < 3 * hosts.HEARTBEAT
  assert code in (hosts.LOST, -signal.SIGABRT), err
  words = {hosts.LOST: "lost the others", -signal.SIGABRT: "another task died"}
  assert words[code] in err
  saved = [int(p.name) for p in (tmp_path / "run/checkpoints").glob("[0-9]*")]
  last = max(saved) + 4
  text = program.done(*flags[:-2], f"--config.steps={last}", flags[-1])
  assert "Continuing at step" in text


@pytest.mark.parametrize(
  ("error", "wanted"),
  [
    (jax.errors.JaxRuntimeError("Gloo failed"), hosts.LOST),
    (UserError("a mistake"), 2),
  ],
)
def test_codes_of_one_of_several(monkeypatch, capsys, error, wanted):
  """It ends at once, and with 2 only for a mistake."""

  def main():
    raise error

  def end(code):
    raise SystemExit(code)

  monkeypatch.setattr(hosts, "several", lambda: True)
  monkeypatch.setattr("os._exit", end)
  with pytest.raises(SystemExit) as ended_with:
    cli.run(main, ["x"])
  assert ended_with.value.code == wanted
  assert capsys.readouterr().err.startswith("gamix_jax: ")


def test_a_mistake_is_told_by_every_process(program, tmp_path):
  """Of the first, whose workdir it is: all end with 2."""
  (tmp_path / "checkpoints").mkdir()
  two = ended(start(program, *SMALL, f"--workdir={tmp_path}"))
  for code, _, err in two:
    assert code == 2, err
    assert "has checkpoints but no config.json" in err


ALONE = """
from gamix_jax import hosts
hosts.EXPLAIN, hosts.GIVE_UP = 1, 2
hosts.join(coordinator="localhost:{}", num_processes=2, process_id={})
"""


@pytest.mark.parametrize("index", [0, 1])
def test_a_host_alone_says_so(program, index):
  ran = subprocess.run(
    [sys.executable, "-c", ALONE.format(free_port(), index)],
    env=program.env(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=LIMIT,
    check=False,
  )
  assert ran.returncode == hosts.LOST, ran.stderr
  assert "waiting for the run's other processes" in ran.stderr
  assert "every host of a pod" in ran.stderr
  assert "Check failure" not in ran.stderr


# ------------------------------------------------------------ how they meet


@pytest.fixture
def meeting(monkeypatch):
  """What JAX would be told."""
  told = []
  monkeypatch.setattr(
    "jax.distributed.initialize", lambda *args, **_: told.append(args)
  )
  for name in (
    "SLURM_STEP_NODELIST",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JOB_COMPLETION_INDEX",
  ):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(hosts, "_on_tpu", lambda: False)
  return told


def test_alone_nobody_is_waited_for(meeting):
  hosts.join()
  assert meeting == []


def test_flags(meeting):
  hosts.join(coordinator="a:1", num_processes=4, process_id=3)
  assert meeting == [("a:1", 4, 3)]


def test_found_in_a_job_set(meeting, monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a-0.a:8476")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
  hosts.join()
  assert meeting == [("a-0.a:8476", 4, 2)]


def test_found_in_a_slurm_step_and_on_a_tpu(meeting, monkeypatch):
  monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-2]")
  monkeypatch.setenv("SLURM_NTASKS", "1")
  hosts.join()
  assert meeting == []
  monkeypatch.setenv("SLURM_NTASKS", "2")
  hosts.join()
  monkeypatch.setattr(hosts, "_on_tpu", lambda: True)
  monkeypatch.setenv("SLURM_NTASKS", "1")
  hosts.join()
  assert meeting == [(None, None, None)] * 2


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (dict(coordinator="a:1"), "give all three"),
    (dict(num_processes=2, process_id=0), "give all three"),
    (dict(coordinator="a", num_processes=2, process_id=0), "not HOST:PORT"),
    (dict(coordinator="a:1", num_processes=2, process_id=2), "from 0 to 1"),
  ],
)
def test_refused(meeting, given, message):
  with pytest.raises(UserError, match=message):
    hosts.join(**given)
  assert meeting == []


SLURM = """
import json, jax
from gamix_jax import hosts
hosts.join()
print(json.dumps([jax.process_index(), jax.process_count(), hosts.several()]))
"""


def test_slurm_for_real(program):
  """Two processes in the environment that `srun` makes."""
  job = str(time.time_ns() // 10**6 % 4000)  # the port comes of it
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
  told = [json.loads(out.splitlines()[-1]) for _, out, _ in ended(two)]
  assert told == [[0, 2, True], [1, 2, True]]
