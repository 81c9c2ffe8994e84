"""Damaged steps are never taken for complete ones.

Most tests recompute the checksums after the damage: what checksums detect is
covered by `test_checkpoint`.
"""

import shutil
import threading

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from damage import damages
from etils import epath
from test_checkpoint import equal, files_of

from gamix_jax.checkpoint import Checkpoints, integrity, store
from gamix_jax.errors import UserError

COPIES = 500


def make(seed):
  """Some arrays are large enough for files of their own, others are small."""
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    "params": {
      "w": jax.random.normal(keys[0], (64, 64)),
      "v": jax.random.normal(keys[1], (200,)),
      "bias": jnp.zeros(3),
    },
    "step": jnp.int32(seed),
  }


ABSTRACT = jax.eval_shape(lambda: make(0))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
  """Steps 1 and 2, to be copied."""
  directory = tmp_path_factory.mktemp("two") / "checkpoints"
  with Checkpoints(directory, keep=2) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, make(step))
  return directory


@pytest.fixture
def copy(two, tmp_path, monkeypatch):
  monkeypatch.setattr(store, "DELETION_SECONDS", 0.0)  # nobody is deleting here
  directory = tmp_path / "copy"
  shutil.copytree(two, directory)
  return directory


def largest(folder):
  return max(files_of(folder), key=lambda p: p.stat().st_size)


def remove(*names):
  def act(step):
    for name in names:
      path = step / name
      shutil.rmtree(path) if path.is_dir() else path.unlink()

  return act


def empty(step):
  for path in step.iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(step):
  path = largest(step / "state" / "ocdbt.process_0")
  path.write_bytes(path.read_bytes()[:20])


def write(name, text):
  return lambda step: (step / name).write_text(text)


LOST = {
  "all arrays": remove("state"),
  "the arrays' files": remove("state/ocdbt.process_0"),
  "one file of arrays": lambda s: largest(s / "state/ocdbt.process_0").unlink(),
  "a part of that file": cut,
  "the index": remove("state/manifest.ocdbt"),
  "the tree of the index": remove("state/d"),
  "about": remove("about"),
  "what about says": write("about/metadata", "{}"),
  "about, of another kind": write("about/metadata", "[1]"),
  "about, not text": write("about/metadata", "\0\0"),
  "everything": empty,
}


# With checksums of the damaged files, and without.
SUMS = pytest.mark.parametrize(
  "summed",
  [pytest.param(True, marks=pytest.mark.slow), False],
  ids=["summed", ""],
)


@SUMS
@pytest.mark.parametrize("what", LOST)
def test_a_step_that_lacks_something_is_set_aside(copy, caplog, what, summed):
  """With checksums that match the remaining files; the step before is used."""
  step = copy / "2"
  LOST[what](step)
  if summed and what != "everything":  # without files there are no checksums
    integrity.write_checksums(epath.Path(step))
    assert integrity.verify_files(epath.Path(step)) is None
    assert integrity.verify_arrays(epath.Path(step)) is not None
  with Checkpoints(copy, keep=3) as checkpoints:
    found, state = checkpoints.restore(ABSTRACT)
    assert found == 1
    equal(state, make(1))
    assert "step 2" in caplog.text
    assert "damaged" in caplog.text
    checkpoints.save(2, make(2))
  assert (copy / "damaged" / "2").is_dir()
  with Checkpoints(copy, keep=3) as checkpoints:
    equal(checkpoints.restore(ABSTRACT)[1], make(2))


def test_a_step_that_fails_when_it_is_read_is_set_aside(copy, monkeypatch):
  """For any reason: here one that no earlier check can detect."""
  read = ocp.Checkpointer.restore

  def fail(self, folder, **kwargs):
    if folder == epath.Path(copy / "2" / "state"):
      raise RuntimeError("the array writer's own words\nand more of them")
    return read(self, folder, **kwargs)

  monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
  with Checkpoints(copy, keep=3) as checkpoints:
    assert checkpoints.restore(ABSTRACT)[0] == 1
    with pytest.raises(UserError, match="step 2: it cannot be read"):
      checkpoints.restore(ABSTRACT, 2)


def test_no_checksums_for_a_step_that_lacks_its_arrays(tmp_path, monkeypatch):
  """As when another program deletes files while they are being written."""
  verify = integrity.verify_arrays

  def write(folder):
    raise AssertionError(f"{folder} is not complete")

  def lose_first(folder):
    shutil.rmtree(folder / "state" / "ocdbt.process_0")
    return verify(folder)

  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, make(1))
    checkpoints.wait()
    with monkeypatch.context() as patch:
      patch.setattr(integrity, "verify_arrays", lose_first)
      patch.setattr(integrity, "write_checksums", write)
      checkpoints.save(2, make(2))
      with pytest.raises(UserError, match="came out incomplete"):
        checkpoints.wait()
    assert checkpoints.restore(ABSTRACT)[0] == 1
  assert [p.name for p in tmp_path.iterdir()] == ["1"]


@SUMS
def test_any_damage_ends_in_a_state_or_a_message(copy, summed):
  """Damages every file of the newest step in turn, 500 times."""
  step, changed = copy / "2", 0
  files = files_of(step)
  for i, path in enumerate(files):
    original = path.read_bytes()
    n = COPIES // len(files) + 1
    for data in damages(original, n, seed=i):
      path.write_bytes(data)
      saved = (step / integrity.CHECKSUMS).read_bytes()
      if summed and path.name != integrity.CHECKSUMS:
        integrity.write_checksums(epath.Path(step))
      with Checkpoints(copy, keep=3) as checkpoints:
        try:
          found, state = checkpoints.restore(ABSTRACT)
        except UserError:  # another model's, if `about` is damaged
          assert "about" in str(path)
        else:
          changed += found == 1
          if not summed or found == 1:
            equal(state, make(found))
      (step / integrity.CHECKSUMS).write_bytes(saved)
      path.write_bytes(original)
  assert changed > COPIES / 10


def test_a_name_is_never_a_pattern(tmp_path):
  """Folder names with glob characters: saved, cleared, restored."""
  for name in ("lr [1]", "a?b", "star*", "{x,y}", "per%20cent #1", "ä 図"):
    directory = tmp_path / name / "checkpoints"
    (directory / "7.orbax-checkpoint-tmp-3").mkdir(parents=True)
    with Checkpoints(directory, keep=1) as checkpoints:
      checkpoints.save(1, make(1))
      checkpoints.save(2, make(2))
    assert [p.name for p in directory.iterdir()] == ["2"]
    equal(Checkpoints(directory, keep=1).restore(ABSTRACT)[1], make(2))


def test_concurrent_readers_always_get_a_complete_step(tmp_path):
  """The writer keeps only its newest step, and saves all the time."""
  last, seen, failures = 60, [], []
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, make(1))
    checkpoints.wait()

    def go_on():
      try:
        for step in range(2, last + 1):
          checkpoints.save(step, make(step))
          checkpoints.wait()
      except Exception as error:
        failures.append(error)

    run = threading.Thread(target=go_on)
    run.start()
    while run.is_alive():
      step, state = Checkpoints(tmp_path, keep=1).restore(ABSTRACT)
      equal(state, make(step))
      seen.append(step)
    run.join()
  assert failures == []
  assert seen == sorted(seen)
  assert len(set(seen)) > 3
  assert Checkpoints(tmp_path, keep=1).restore(ABSTRACT)[0] == last


def test_a_step_that_is_deleted_while_it_is_read_is_no_damage(
  copy, monkeypatch, caplog
):
  """The reader moves on to the newest existing step."""
  read = ocp.Checkpointer.restore
  with Checkpoints(copy.parent / "more", keep=1) as checkpoints:
    checkpoints.save(3, make(3))

  def lose(self, folder, **kwargs):
    if folder == epath.Path(copy / "2" / "state"):
      shutil.copytree(copy.parent / "more" / "3", copy / "3")
      shutil.rmtree(copy / "2")
    return read(self, folder, **kwargs)

  monkeypatch.setattr(ocp.Checkpointer, "restore", lose)
  step, state = Checkpoints(copy, keep=1).restore(ABSTRACT)
  assert step == 3
  equal(state, make(3))
  assert caplog.text == ""


def test_steps_that_keep_vanishing_end_in_a_message(copy, monkeypatch):
  """A reader does not wait forever for a run that is faster."""
  steps = iter(range(10, 1000))

  def replace(folder):
    folder.rename(copy / str(next(steps)))
    return "gone"

  monkeypatch.setattr(integrity, "verify", replace)
  with pytest.raises(UserError, match="faster than they could be read"):
    Checkpoints(copy, keep=1).restore(ABSTRACT)
