"""config.track: names, packages that are missing, and real runs of both.

Runs of wandb are offline, and read from its file; those of mlflow are in a
local store, and read by its own client. Without the packages these are skipped.
"""

import importlib.util
import json
import math
import struct

import numpy as np
import pytest
from PIL import Image
from program import ANY_LENGTH, SMALL, assert_refused, rows

from gamix_jax import config
from gamix_jax.errors import UserError
from gamix_jax.training import trackers
from gamix_jax.training.mlflow_run import Mlflow
from gamix_jax.training.tensorboard import TensorBoard
from gamix_jax.training.tracker import Tracker
from gamix_jax.training.wandb_run import Wandb
from gamix_jax.training.writer import MultiWriter, Writer


def tracked(value):
  c = config.base()
  c.track = value
  return c


def test_names():
  for value, classes in {
    "tensorboard": (TensorBoard,),
    "tensorboard, wandb,mlflow": (TensorBoard, Wandb, Mlflow),
    ("mlflow", "mlflow", "tensorboard"): (Mlflow, TensorBoard),
    "none": (),
    (): (),
  }.items():
    assert trackers.chosen(tracked(value)) == classes
  assert trackers.chosen(config.base()) == (TensorBoard,)
  for value, words in {
    "wanb": "track='wanb' must be one of tensorboard, wandb, mlflow",
    "": "track=''",
    "none,wandb": "track='none'",
    3.0: "track=3.0 must be names",
    (1,): r"track=\(1,\) must be names",
  }.items():
    with pytest.raises(UserError, match=words):
      trackers.chosen(tracked(value))


class Missing(Tracker):
  """Needs a package that nobody has."""

  name = "missing"
  needs = ("gamix_jax_no_such_package", "none")

  def __init__(self, folder, step, config):
    """Only imports it."""
    self.module()


def test_a_missing_package(tmp_path):
  trackers.TRACKERS.register("missing", Missing)
  c = tracked("tensorboard,missing")
  words = r"track=missing needs the package gamix_jax_no_such_package, which "
  with pytest.raises(UserError, match=f"{words}is not installed.*pip install"):
    trackers.check_installed(c)
  with pytest.raises(UserError, match=f"{words}cannot be imported"):
    trackers.open_writer(tmp_path, 0, c)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line_before_training(program, tmp_path, name):
  if importlib.util.find_spec(name):
    pytest.skip(f"{name} is installed")
  ran = program.forked(
    *SMALL, f"--config.track=tensorboard,{name}", f"--workdir={tmp_path}/run"
  )
  assert_refused(ran, f"track={name}", f"pip install 'gamix_jax[{name}]'")
  assert not (tmp_path / "run").exists()


class Mine(Tracker):
  """Fails when it is told to."""

  name = "mine"
  fails = False

  def __init__(self, folder, step, config):
    """Keeps an id."""
    self.folder, self.seen, self.closed = folder, [], False
    self.run = self.saved_id(folder) or f"run{step}"
    self.save_id(folder, self.run)

  def scalars(self, step, values):
    """Sends them."""
    self.send(self._send, step, values)

  def _send(self, step, values):
    if self.fails:
      raise ConnectionError("the server is away.\nmore")
    self.seen.append((step, values))

  def close(self):
    """Remembers it."""
    self.closed = True


def test_a_run_keeps_its_id(tmp_path):
  for step in (0, 7):
    assert Mine(tmp_path, step, None).run == "run0"
  assert json.loads((tmp_path / "trackers.json").read_text()) == {
    "mine": "run0"
  }
  for text in ("{", "[]", '{"mine": 3}'):
    (tmp_path / "trackers.json").write_text(text)
    with pytest.raises(UserError, match=r"trackers\.json cannot be read"):
      Mine(tmp_path, 0, None)


def test_a_server_that_is_away_does_not_end_a_training(tmp_path, caplog):
  trackers.TRACKERS.register("mine", Mine)
  writer = trackers.open_writer(tmp_path, 0, tracked("mine,tensorboard"))
  mine = writer._writers[1]
  writer.scalars(1, {"a": 1.0})
  mine.fails = True
  writer.scalars(2, {"a": 2.0})
  mine.fails = False
  writer.scalars(3, {"a": 3.0})
  writer.close()
  assert mine.seen == [(1, {"a": 1.0}), (3, {"a": 3.0})]
  assert [r["step"] for r in rows(tmp_path)] == [1, 2, 3]
  assert "track=mine could not send values (ConnectionError: the server is" in (
    caplog.text
  )


def test_one_that_cannot_begin_closes_the_others(tmp_path):
  seen = []

  class First(Mine):
    def __init__(self, *args):
      super().__init__(*args)
      seen.append(self)

  for name, cls in {"first": First, "missing": Missing}.items():
    trackers.TRACKERS.register(name, cls)
  with pytest.raises(UserError, match="missing"):
    trackers.open_writer(tmp_path, 0, tracked("first,missing"))
  assert [mine.closed for mine in seen] == [True]


def test_all_are_closed_though_one_fails(tmp_path):
  class Fails(Writer):
    def close(self):
      raise UserError("the disk is full")

  mine = Mine(tmp_path, 0, None)
  with pytest.raises(UserError, match="full"):
    MultiWriter([Fails(), mine]).close()
  assert mine.closed


def test_none(tmp_path):
  writer = trackers.open_writer(tmp_path, 0, tracked("none"))
  writer.scalars(1, {"a": 1.0})
  writer.close()
  assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


# --------------------------------------------------------------- real packages


def wandb_records(file):
  """Yields the records of a .wandb file: a header, and LevelDB's log format."""
  from wandb.proto.wandb_internal_pb2 import Record

  raw, at, parts = file.read_bytes(), 7, []
  assert raw[:4] == b":W&B"
  while at + 7 <= len(raw):
    if (rest := 32768 - at % 32768) < 7:
      at += rest
      continue
    size, kind = struct.unpack("<xxxxHB", raw[at : at + 7])
    parts.append(raw[at + 7 : at + 7 + size])
    at += 7 + size
    if kind in (1, 4):  # the whole of it, or its last part
      yield Record.FromString(b"".join(parts))
      parts = []


def wandb_history(file):
  """Returns {step: {name: value}}, and the run and its config."""
  history, run, settings = {}, None, {}
  for record in wandb_records(file):
    kind = record.WhichOneof("record_type")
    if kind == "history":
      items = {
        (i.key or "/".join(i.nested_key)): json.loads(i.value_json)
        for i in record.history.item
      }
      history.setdefault(record.history.step.num, {}).update(items)
    elif kind == "run":
      run = record.run
      for update in record.run.config.update:
        settings[update.key or update.nested_key[0]] = update.value_json
  return history, run, settings


def logged(path):
  """Returns {step: {name: finite value}} of metrics.jsonl."""
  out = {}
  for row in rows(path):
    values = {k: v for k, v in row.items() if k != "step" and v is not None}
    out.setdefault(row["step"], {}).update(values)
  return out


def client(store):
  """Returns a client of mlflow, which would rather have no local store."""
  import mlflow

  return mlflow.MlflowClient(f"file:{store}")


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
  """Trains two steps, and two more in a second process, with all trackers."""
  there = [n for n in ("wandb", "mlflow") if importlib.util.find_spec(n)]
  if not there:
    pytest.skip("needs pip install 'gamix_jax[wandb,mlflow]'")
  folder = tmp_path_factory.mktemp("tracked")
  env = program.env(
    WANDB_MODE="offline",
    WANDB_SILENT="1",
    MLFLOW_TRACKING_URI=f"file:{folder}/store",
    MLFLOW_ALLOW_FILE_STORE="true",
    MLFLOW_EXPERIMENT_NAME="faces",
  )
  for steps in (2, 4):
    ran = program.run(
      *SMALL,
      *ANY_LENGTH,
      f"--config.track={','.join(there)}",
      f"--config.steps={steps}",
      "--config.log_every=1",
      "--config.eval_every=2",
      f"--workdir={folder}/my run",
      env=env,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
  return folder / "my run"


def run_id(path, name):
  """Returns the id in the workdir."""
  return json.loads((path / "trackers.json").read_text())[name]


def test_wandb(run):
  pytest.importorskip("wandb", reason="needs pip install 'gamix_jax[wandb]'")
  files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
  assert [f.name for f in files] == [f"run-{run_id(run, 'wandb')}.wandb"] * 2
  seen = {}
  for file, steps in zip(files, ({1, 2}, {3, 4}), strict=True):
    history, record, settings = wandb_history(file)
    assert record.run_id == run_id(run, "wandb")
    assert (record.display_name, record.project) == ("my run", "gamix_jax")
    assert json.loads(settings["model.latent"]) > 0
    assert json.loads(settings["steps"]) == max(steps)
    assert set(history) == steps
    seen |= history
  for step, values in logged(run).items():
    for name, value in values.items():
      assert math.isclose(seen[step][name], value, rel_tol=1e-6), name
  kinds = {k: v for k, v in seen[2].items() if k.endswith("/_type")}
  assert kinds["population/mean/_type"] == "histogram"
  assert kinds["reconstructions/_type"] == "image-file"
  (image,) = files[0].parent.glob("files/media/images/reconstructions_2_*.png")
  np.testing.assert_array_equal(
    np.asarray(Image.open(image).convert("RGB")),
    np.asarray(
      Image.open(run / "images" / "reconstructions_0000002.png").convert("RGB")
    ),
  )


def test_mlflow(run, monkeypatch):
  pytest.importorskip("mlflow", reason="needs pip install 'gamix_jax[mlflow]'")
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  store = client(run.parent / "store")
  experiment = store.get_experiment_by_name("faces").experiment_id
  (found,) = store.search_runs([experiment])
  assert found.info.run_id == run_id(run, "mlflow")
  assert (found.info.run_name, found.info.status) == ("my run", "FINISHED")
  assert found.data.params["steps"] == "2"
  assert set(found.data.params) == set(config.flat(config.base()))
  wanted = logged(run)
  for name in wanted[2]:
    got = {
      m.step: m.value for m in store.get_metric_history(found.info.run_id, name)
    }
    assert got.keys() == {s for s, values in wanted.items() if name in values}
    for step, value in got.items():
      assert math.isclose(value, wanted[step][name], rel_tol=1e-6), name
  paths = [a.path for a in store.list_artifacts(found.info.run_id, "images")]
  for step in (2, 4):
    assert any(f"reconstructions+step+{step}+" in path for path in paths)
  files = [a.path for a in store.list_artifacts(found.info.run_id)]
  assert "config.json" in files


def test_both_write_no_event_files(run):
  assert not (run / "tensorboard").exists()
  assert (run / "images").is_dir()


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
  """The package, with a local store here and a workdir."""
  package = pytest.importorskip(
    "mlflow", reason="needs pip install 'gamix_jax[mlflow]'"
  )
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
  monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
  (tmp_path / "images").mkdir()
  (tmp_path / "config.json").write_text(config.to_json(config.base()))
  return package


def test_mlflow_marks_a_failed_run(tmp_path, mlflow):
  writer = trackers.open_writer(tmp_path, 0, tracked("mlflow"))
  with pytest.raises(ZeroDivisionError):
    try:
      writer.images(1, {"a b:c": np.zeros((4, 4, 1), np.uint8)})
      1 / 0  # noqa: B018
    finally:
      writer.close()
  status = mlflow.MlflowClient().get_run(run_id(tmp_path, "mlflow")).info.status
  assert status == "FAILED"


def test_mlflow_in_another_store(tmp_path, mlflow, monkeypatch):
  trackers.open_writer(tmp_path, 0, tracked("mlflow")).close()
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/other")
  words = f"continue the run {run_id(tmp_path, 'mlflow')}.*MLFLOW_TRACKING_URI"
  with pytest.raises(UserError, match=words):
    trackers.open_writer(tmp_path, 2, tracked("mlflow"))


def test_wandb_without_an_account(program, tmp_path):
  pytest.importorskip("wandb", reason="needs pip install 'gamix_jax[wandb]'")
  code = """if True:
    import sys
    from pathlib import Path
    from gamix_jax import config
    from gamix_jax.training import trackers
    c = config.base()
    c.track = "wandb"
    try:
      trackers.open_writer(Path(sys.argv[1]), 0, c)
    except Exception as e:
      print(type(e).__name__, e)
  """
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      program,
      "_env",
      program.env(
        WANDB_API_KEY="", HOME=str(tmp_path), WANDB_BASE_URL="http://0.0.0.0:9"
      ),
    )
    ran = program.script(code, tmp_path)
  assert "UserError track=wandb cannot begin a run" in ran.stdout, ran.stderr
  assert "`wandb login`" in ran.stdout
