"""The notebooks of launch/, run as a user runs them, and their helpers.

A real kernel runs every cell with nbclient, in the fast mode: three tiny steps.
"""

import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import conftest
import jupyter_client.manager
import nbclient
import nbformat
import numpy as np
import pytest
from outputs import images, text
from PIL import Image
from program import ROOT, SMALL, rows

import gamix_jax
from gamix_jax import build, notebook, pictures, plots
from gamix_jax.errors import UserError
from gamix_jax.inference import Model
from gamix_jax.notebook import panels
from gamix_jax.training import progress

NAMES = ("colab_train", "colab_explore")
TIMEOUT = 180  # seconds per notebook; one needs about ten


def read(name):
  return nbformat.read(ROOT / "launch" / f"{name}.ipynb", as_version=4)


def cells(book, kind="code"):
  return {c.id: c for c in book.cells if c.cell_type == kind}


# ------------------------------------------------------------ as committed


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_clean(name):
  book = read(name)
  nbformat.validate(book)
  for cell in cells(book).values():
    assert cell.outputs == [] and cell.execution_count is None, cell.id
    assert set(cell.metadata) <= {"cellView"}, cell.id
  assert book.metadata.accelerator == "GPU"
  assert book.metadata.kernelspec.name == "python3"
  assert set(book.metadata) == {
    "accelerator",
    "colab",
    "kernelspec",
    "language_info",
  }
  kinds = [c.cell_type for c in book.cells]
  for i, kind in enumerate(kinds):  # each begins with an explanation
    assert kind == "markdown" or kinds[i - 1] == "markdown"
  install = cells(book)["install"].source
  (version,) = re.findall(r'VERSION = "(.*)"', install)
  assert version == gamix_jax.__version__
  assert "@v{VERSION}" in install


def test_notebooks_share_their_first_cells():
  one, other = (cells(read(name)) for name in NAMES)
  for cell in ("install", "place"):
    assert one[cell].source == other[cell].source


def test_every_public_name_has_its_example():
  source = {n: "\n".join(c.source for c in read(n).cells) for n in NAMES}
  public = [
    name
    for name, what in inspect.getmembers(Model)
    if not name.startswith("_")
    and (inspect.isfunction(what) or isinstance(what, property))
  ]
  assert len(public) > 10
  for name in public:
    assert f"model.{name}" in source["colab_explore"], name
  for name in notebook.__all__:
    if name.islower():
      assert f"notebook.{name}(" in "".join(source.values()), name


# ------------------------------------------------------------ executed


def jupyter_env(program, folder):
  """Returns a kernel's extra environment, all inside `folder`."""
  return program.env(
    GAMIX_NB_FAST="1",
    IPYTHONDIR=str(folder / "ipython"),
    MPLBACKEND="module://matplotlib_inline.backend_inline",
  )


@pytest.fixture(scope="module")
def executed(program, tmp_path_factory):
  """Runs all cells of both notebooks; returns them and the folder."""
  folder = tmp_path_factory.mktemp("notebooks")
  books = {}
  for name in NAMES:
    book = read(name)
    client = nbclient.NotebookClient(
      book, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=jupyter_env(program, folder))
    books[name] = cells(book)
  return folder, books


def test_training_is_watched_and_continued(executed):
  folder, books = executed
  book, run = books["colab_train"], folder / "runs" / "digits"
  assert (run / "checkpoints" / "3").is_dir()
  assert rows(run)[-1]["step"] == 3
  assert "1 x cpu (cpu" in text(book["machine"])
  assert "Done: step 3 of 3" in text(book["train"])
  assert "Continuing at step 3." in text(book["resume"])
  for cell in ("train", "resume"):
    (panel,) = images(book[cell])  # one, redrawn
    height, width = plots.PROGRESS_SIZE[::-1]
    assert panel.shape[:2] == (
      int(height * plots.PROGRESS_DPI),
      int(width * plots.PROGRESS_DPI),
    )
  (last,) = images(book["end"])
  wanted = Image.open(run / "images" / "interpolation_0000003.png")
  np.testing.assert_array_equal(last, np.asarray(wanted))


def test_exploring_shows_everything(executed):
  folder, books = executed
  book = books["colab_explore"]
  shown = {name: len(images(cell)) for name, cell in book.items()}
  assert shown == dict.fromkeys(book, 1) | {
    "install": 0,
    "place": 0,
    "images": 0,
    "sources": 3,  # prior, population, gmm
    "sliders": 0,
    "bounds": 0,
  }
  (panel,) = book["sliders"].outputs
  assert "application/vnd.jupyter.widget-view+json" in panel.data
  assert "vamp: source='vamp' does not work" in text(book["sources"])
  assert (folder / "runs/digits/samplers/ema_3.npz").is_file()
  (weights,) = re.findall(r"\[(.*)\]", text(book["components"]))
  assert sum(map(float, weights.split())) == pytest.approx(1, abs=2e-3)


# ------------------------------------------------------------ a run


def wait_for_file(path, seconds=120):
  """Waits for a non-empty file."""
  end = time.monotonic() + seconds
  while not (path.is_file() and path.stat().st_size):
    assert time.monotonic() < end, f"no {path}"
    time.sleep(0.1)


def reply_to(client, request, seconds=60):
  """Returns the reply to a request; skips late replies to earlier ones.

  When a kernel starts, it is asked for its info until it answers, so several
  answers may come.
  """
  end = time.monotonic() + seconds
  while True:
    reply = client.get_shell_msg(timeout=max(0, end - time.monotonic()))
    if reply["parent_header"].get("msg_id") == request:
      return reply


def test_interrupting_the_cell_saves(program, tmp_path):
  """With Jupyter's interrupt, which signals the kernel's process group."""
  keys = dict(f.removeprefix("--config.").split("=") for f in SMALL[1:])
  keys |= {"steps": 10**6, "log_every": 1}
  code = (
    "from gamix_jax import notebook\n"
    f"notebook.train('configs/digits.py:tiny', 'run', {keys}, every=0.2)\n"
  )
  manager, client = jupyter_client.manager.start_new_kernel(
    env=jupyter_env(program, tmp_path), cwd=str(tmp_path)
  )
  try:
    asked = client.execute(code)
    wait_for_file(tmp_path / "run" / "metrics.jsonl")
    manager.interrupt_kernel()
    reply = reply_to(client, asked)
    assert reply["content"]["status"] == "ok", reply["content"]
  finally:
    client.stop_channels()
    manager.shutdown_kernel()
    manager.cleanup_resources()
  (saved,) = (p.name for p in (tmp_path / "run" / "checkpoints").glob("[0-9]*"))
  assert 0 < int(saved) < 10**6
  assert rows(tmp_path / "run")[-1]["step"] <= int(saved)


@pytest.fixture
def displayed(monkeypatch):
  """Collects what would be displayed, without a notebook."""
  from IPython import display

  shown = []

  def show(what, display_id):
    assert display_id
    shown.append(what)
    return SimpleNamespace(update=shown.append)

  monkeypatch.setattr(display, "display", show)
  return shown


def test_a_user_error_is_one_line(program, tmp_path, monkeypatch, displayed):
  monkeypatch.setattr(os, "environ", program.env())
  with pytest.raises(UserError, match="did you mean 'steps'") as e:
    notebook.train("configs/digits.py:tiny", tmp_path / "run", {"stepps": 1})
  assert not str(e.value).startswith("gamix_jax")
  assert displayed and not (tmp_path / "run").exists()


def test_one_training_a_workdir(tmp_path, capsys, displayed):
  run = notebook.Run("configs/digits.py:tiny", tmp_path / "run")
  with pytest.raises(UserError, match=f"process {run.process.pid}"):
    notebook.Run("configs/digits.py:tiny", tmp_path / "run")
  assert os.getsid(run.process.pid) != os.getsid(0)
  run.stop()
  assert run.process.returncode == -signal.SIGTERM
  run.watch()
  assert "nothing new to save" in capsys.readouterr().out


def test_another_failure_is_not_a_user_error(tmp_path, displayed):
  run = notebook.Run("configs/digits.py:tiny", tmp_path / "run")
  run.process.kill()
  with pytest.raises(RuntimeError, match="code -9"):
    run.watch()


# ------------------------------------------------------------ what it shows


def test_axes_have_every_term_shown():
  assert sorted(sum(panels.AXES.values(), ())) == sorted(
    progress.PROGRESS_SCALARS
  )


def test_panels_of_a_workdir_at_any_time(tmp_path):
  def drawn():
    return np.asarray(Image.open(io.BytesIO(panels.draw(tmp_path))))

  empty = drawn()
  lines = [
    {"step": 5, "vae/recon": 1.0, "disc/real": None},
    {"step": 9, "vae/recon": 0.5, "disc/real": 0.6},
    {"step": 9, "eval/mae": 0.25, "eval/elbo": None, "eval/kl": 4.5},
  ]
  torn = "".join(f"{json.dumps(x)}\n" for x in lines) + '{"step": 10, "va'
  (tmp_path / "metrics.jsonl").write_text(torn)
  found = panels.rows(tmp_path)
  assert found == lines
  terms = ("vae/recon", "disc/real", "posterior/kl")
  curves = panels._curves(found, terms)
  assert curves == {"recon": ([5, 9], [1.0, 0.5]), "real": ([9], [0.6])}
  title = panels._title(tmp_path, found)
  assert title.endswith("step 9; held out at 9: mae 0.25  kl 4.5")
  numbers = drawn()
  half = len(empty) // 2
  assert (numbers[:half] != empty[:half]).any()
  (tmp_path / "images").mkdir()
  for step, grey in ((9, 200), (10, 60)):
    path = tmp_path / "images" / f"samples_{step:07d}.png"
    pictures.save_png(path, np.full((8, 8, 1), grey, np.uint8))
  (right,) = {*np.unique(drawn()[-half // 2, -100:-40, :3])} - {255}
  assert right == 60  # the newest one, with its own grey level


def test_show_takes_what_the_model_takes_and_gives():
  x = np.random.default_rng(0).integers(0, 256, (3, 4, 64, 64, 3), np.uint8)
  wanted = pictures.grid(x.reshape(-1, 64, 64, 3) / 127.5 - 1, 4)
  for given in (x, x / 127.5 - 1, list(x)):
    shown = Image.open(io.BytesIO(notebook.show(given, 4).data))
    np.testing.assert_array_equal(np.asarray(shown), wanted)
  assert notebook.show(x[0, 0]).data


@pytest.fixture(scope="module")
def model():
  config = conftest.flat()
  spec = build.train_spec(config)
  state = conftest.state_of(spec, 0)
  vae = {"params": state.vae.params, "batch_stats": state.vae.batch_stats}
  disc = {"params": state.disc.params, "batch_stats": state.disc.batch_stats}
  return Model(config, spec, 0, vae, disc)


@pytest.fixture(scope="module")
def x():
  return np.random.default_rng(1).uniform(-1, 1, (9, 4, 4, 1)).astype("f4")


def test_sliders_move_the_latent_they_name(model, x):
  codes = np.asarray(model.encode(x).mean())
  box = notebook.sliders(model, x[0], x)
  picture, column = box.children
  named = [int(s.description.split()[1]) for s in column.children]
  assert named == list(np.argsort(-codes.std(0)))
  z = codes[0].copy()
  assert picture.value == notebook.show(model.decode(z)).data
  for slider in column.children[:2]:
    d = slider.latent
    assert slider.value == pytest.approx(z[d], abs=1e-6)
    assert slider.min == pytest.approx(codes[:, d].min())
    assert slider.max == pytest.approx(codes[:, d].max())
    slider.value = slider.max
    z[d] = slider.max
    assert picture.value == notebook.show(model.decode(z)).data


def test_without_ipywidgets_there_are_rows(model, x, monkeypatch):
  monkeypatch.setitem(sys.modules, "ipywidgets", None)
  codes = np.asarray(model.encode(x).mean())
  d = int(np.argmax(codes.std(0)))
  z = np.tile(codes[0], (7, 1))
  z[:, d] = np.linspace(codes[:, d].min(), codes[:, d].max(), 7)
  first = pictures.grid(model.decode(z), 7)
  shown = notebook.sliders(model, x[0], x).data
  shown = np.asarray(Image.open(io.BytesIO(shown)))
  rest = shown[: len(first) - pictures.LINE].astype(int)
  assert np.abs(rest - first[: len(rest), :, 0]).max() <= 1


# ------------------------------------------------------------ the machine


@pytest.mark.parametrize(
  ("platform", "capability", "memory", "dtype"),
  [
    ("cpu", None, None, "float32"),
    ("gpu", "7.5", 11 << 30, "float32"),
    ("gpu", "8.9", 17 << 30, "bfloat16"),
    ("tpu", None, 15 << 30, "bfloat16"),
  ],
)
def test_device_info(monkeypatch, platform, capability, memory, dtype):
  device = dict(platform=platform, kind="K", count=2)
  device |= dict(memory=memory, capability=capability)
  answer = SimpleNamespace(returncode=0, stdout=f"hm\n{json.dumps(device)}\n")
  monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
  monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
  found = notebook.machine()
  assert found.dtype == dtype
  line, *more = str(found).splitlines()
  size = f", {memory >> 30} GiB" if memory else ""
  assert line == f"2 x K ({platform}{size})"
  assert bool(more) == (platform == "cpu")


def test_unpack_is_all_or_nothing(tmp_path, monkeypatch):
  archive, folder = tmp_path / "images.zip", tmp_path / "a" / "images"
  with pytest.raises(UserError, match="no such zip"):
    notebook.unpack(archive, folder)
  inside = {f"faces/{i}.jpg": os.urandom(5000) for i in range(3)}
  with zipfile.ZipFile(archive, "w") as file:
    for name, content in inside.items():
      file.writestr(name, content)
  whole = archive.read_bytes()
  at = whole.index(inside["faces/1.jpg"])
  for broken in (whole[:-200], whole[:at] + b"no" + whole[at + 2 :]):
    archive.write_bytes(broken)
    with pytest.raises(UserError, match="is damaged"):
      notebook.unpack(archive, folder)
    assert list(folder.parent.glob("*")) == []
  archive.write_bytes(whole)
  with monkeypatch.context() as m:
    m.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=14_999))
    with pytest.raises(UserError, match="GB free"):
      notebook.unpack(archive, folder)
  assert list(folder.parent.glob("*")) == []
  found = notebook.unpack(archive, folder)
  assert found == folder
  assert {
    str(p.relative_to(folder)): p.read_bytes()
    for p in folder.rglob("*")
    if p.is_file()
  } == inside
  archive.unlink()
  assert notebook.unpack(archive, folder) == folder  # it exists
