"""A trace of a run's steps: written at the given place, for those steps."""

import gzip
import json

from program import SMALL, complete_config_of

from gamix_jax import config
from gamix_jax.files import Lock
from gamix_jax.training import workdir


def test_a_run_leaves_a_trace_of_its_steps(program, tmp_path):
  run = tmp_path / "run"
  out = program.done(*SMALL, "--config.profile=2:3", f"--workdir={run}")
  assert "The trace of steps 2:3 is written." in out
  (folder,) = (run / "profile" / "plugins" / "profile").iterdir()
  (path,) = folder.glob("*.trace.json.gz")
  (xplane,) = folder.glob("*.xplane.pb")
  assert xplane.stat().st_size > 10_000
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  found = [
    int(e["args"]["step_num"]) for e in events if e.get("name") == "train"
  ]
  assert sorted(found) == [2, 3]

  # The run may be resumed with another setting, or with none.
  c = config.from_json((run / "config.json").read_text())
  assert c.profile == "2:3"
  c.profile = "1:1"
  with Lock(run) as lock:
    workdir.prepare(run, c, lock, c.data.fingerprint)


def test_without_one_there_is_none(tmp_path):
  c = complete_config_of("digits", "tiny")
  assert list(config.profiled(c)) == []
  c.profile = "2:3"
  assert list(config.profiled(c)) == [2, 3]
