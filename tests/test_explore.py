"""The explore page: its pictures, its server, and a real browser."""

import base64
import contextlib
import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import types
import urllib.parse

import conftest
import jax
import numpy as np
import pytest
from PIL import Image
from program import ROOT, assert_refused, noise

import gamix_jax
from gamix_jax import build, cli
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.explore import __main__ as command
from gamix_jax.explore import app, multimodal_view, view
from gamix_jax.likelihood import LIKELIHOODS
from gamix_jax.modality import Modality

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  config = conftest.small(data__source="digits")
  folder = tmp_path_factory.mktemp("runs") / "run"
  conftest.save_run(folder, config, conftest.state_of(build.train_spec(config)))
  return folder


@pytest.fixture(scope="module")
def shown(run):
  model = gamix_jax.load(run)
  return view.View(model, view.held_out(model)[:40])


def grey(x):
  """Converts [-1, 1] to the picture's pixels: 8x8, enlarged 32 times."""
  x = np.rint((np.clip(x[..., 0], -1, 1) + 1) * 127.5).astype(np.uint8)
  return np.kron(x, np.ones((32, 32), np.uint8))


# ------------------------------------------------------------- pictures


def test_sliders_move_the_most_active_latents_by_standard_deviations(shown):
  mu = np.asarray(shown.model.encode(shown.images).mean())
  spread = np.std(mu, axis=0)
  assert list(shown.active) == list(np.argsort(-spread))
  z = shown.code(shown.images[3])
  np.testing.assert_allclose(z, mu[3], rtol=1e-4, atol=1e-5)
  moved = shown.moved(z, [2, 0, -1, 0])
  wanted = mu[3].astype("f8")
  wanted[shown.active[0]] += 2 * spread[shown.active[0]]
  wanted[shown.active[2]] -= spread[shown.active[2]]
  np.testing.assert_allclose(moved, wanted, rtol=1e-4, atol=1e-5)
  x_hat = shown.model.decode(moved)
  np.testing.assert_array_equal(shown.picture(moved), grey(x_hat))
  still = shown.moved(z, [0] * 4)
  np.testing.assert_array_equal(still, z)


def test_the_map_decodes_the_place_that_is_clicked(shown):
  for at in ((100, 200), (639, 0), (320, 511)):
    assert np.abs(np.subtract(shown.place(shown.at(*at)), at)).max() <= 1
  # The plane is spanned by the first two principal directions, by NumPy's SVD.
  centre = shown.mu.mean(axis=0)
  _, _, v = np.linalg.svd(shown.mu - centre)
  off = shown.at(17, 400) - centre
  np.testing.assert_allclose(v[2:] @ off, 0, atol=1e-9)
  plain, marked = shown.map(), shown.map((50, 60))
  assert plain.shape == (view.MAP_SIDE, view.MAP_SIDE, 3)
  y, x = np.nonzero(np.any(plain != marked, axis=-1))
  assert (x.mean(), y.mean()) == pytest.approx((50, 60), abs=1)
  # Every image is on the map at its code.
  x, y = shown.place(shown.mu[39])
  assert np.any(plain[y - 5 : y + 5, x - 5 : x + 5] != 255)


def test_mixing_and_samples(shown):
  z0, z1 = shown.mu[:2]
  np.testing.assert_array_equal(shown.mixed(z0, z1, 0), shown.picture(z0))
  np.testing.assert_array_equal(shown.mixed(z0, z1, 1), shown.picture(z1))
  half = shown.model.decode((z0 + z1) / 2)
  np.testing.assert_array_equal(shown.mixed(z0, z1, 0.5), grey(half))
  one = shown.samples(7, 1.0)
  np.testing.assert_array_equal(one, shown.samples(7, 1.0))
  assert np.any(one != shown.samples(8, 1.0))
  assert np.any(one != shown.samples(7, 0.5))
  new = shown.model.sample(jax.random.key(7), 16)
  corner = np.kron(grey(new[0])[::32, ::32], np.ones((8, 8), np.uint8))
  np.testing.assert_array_equal(one[2:66, 2:66], corner)
  for seed, temperature in ((-1, 1), (2**32, 1), (0, -1)):
    with pytest.raises(UserError):
      shown.samples(seed, temperature)


# -------------------------------------------------------------- uploads


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
def test_uploads_of_any_mode_are_made_as_the_data_are(shown, tmp_path, mode):
  grid = np.zeros((40, 60), np.uint8)
  grid[:, 30:] = 255
  image = Image.fromarray(grid)
  if mode == "I;16":
    image = Image.fromarray(grid.astype(np.uint16) * 257)
  else:
    image = image.convert("RGB").convert(mode) if mode != "L" else image
  path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
  image.save(path)
  x = shown.open(path)
  assert x.shape == (8, 8, 1) and x.dtype == np.uint8
  # The central square, black left of its middle and white right of it.
  assert x[:, :4].max() <= 8 and x[:, 4:].min() >= 247


def test_uploads_that_are_refused(shown, tmp_path, monkeypatch):
  path = tmp_path / "x.png"

  def refused(words):
    with pytest.raises(UserError, match=words) as caught:
      shown.open(path)
    assert len(str(caught.value).splitlines()) == 1

  path.write_text("hello")
  refused("not a readable image")
  buffer = io.BytesIO()
  Image.fromarray(noise(0, 50, 50, 3)).save(buffer, "png")
  path.write_bytes(buffer.getvalue()[:4000])
  refused("is broken")
  path.write_bytes(buffer.getvalue())
  shown.open(path)
  monkeypatch.setattr(view, "MAX_PIXELS", 2000)
  refused("50 x 50 pixels")
  monkeypatch.setattr(view, "MAX_BYTES", 50)
  refused("MB; up to")


# ---------------------------------------------------------- several modalities


@pytest.fixture(scope="module")
def several(quick):
  model = gamix_jax.load("pretrained:polydigits")
  x = multimodal_view.held_out(model)
  assert len(x["m0"]) == multimodal_view.OBSERVATIONS
  return multimodal_view.MultimodalView(model, {k: v[:9] for k, v in x.items()})


def colours(x):
  return np.rint((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)


def test_translations(several):
  assert len(several) == 9
  seen = several.observation(4)
  for name in ("m0", "m1", "m2", "m3", "m4"):
    np.testing.assert_array_equal(
      seen[name].image, several.observations[name][4]
    )
  made = several.translations(4, ["m1", "m3"])
  x = {k: several.observations[k][4:5] for k in ("m1", "m3")}
  z = several.model.encode(x).mean()  # of all latents, given these two
  wanted = several.model.decode(z)
  assert made.keys() == seen.keys()
  for name, shown_ in made.items():
    off = shown_.image.astype(int) - colours(wanted[name][0])
    assert np.abs(off).max() <= 1
  draws = [several.translations(4, ["m0"], s)["m2"].image for s in (0, 0, 1)]
  np.testing.assert_array_equal(draws[0], draws[1])
  assert np.any(draws[0] != draws[2])
  for given, seed, words in (
    ([], None, "at least one"),
    (["m0"], -1, "seed -1"),
    (["m0"], 2**32, "seed"),
  ):
    with pytest.raises(UserError, match=words):
      several.translations(0, given, seed)


def test_what_is_missing_is_not_given(several):
  x = dict(several.observations)
  x["mask"] = x["mask"].copy()
  x["mask"][2, 1] = 0
  view_ = multimodal_view.MultimodalView(several.model, x)
  assert view_.observation(2)["m1"].words == "missing"
  assert view_.observation(2)["m1"].image is None
  assert view_.observation(3)["m1"].image is not None
  with pytest.raises(UserError, match="no m1"):
    view_.translations(2, ["m1"])
  view_.translations(2, ["m0", "m1"])  # m0 is enough


def test_samples_of_several_modalities(several):
  assert several.has_samples
  made = several.samples(5, 0.7)
  new = several.model.sample(jax.random.key(5), 8, temperature=0.7)
  for i, sample in enumerate(made):
    for name, shown_ in sample.items():
      np.testing.assert_array_equal(shown_.image, colours(new[name][i]))


def test_classes_and_numbers_are_words():
  model = types.SimpleNamespace(
    names=("digit", "x"),
    spec=types.SimpleNamespace(
      modalities={
        "digit": Modality((3,), LIKELIHOODS["categorical"], np.float32),
        "x": Modality((2, 4), LIKELIHOODS["l2"], np.float32),
      }
    ),
  )
  x = {
    "digit": np.array([[0.1, 0.7, 0.2]]),
    "x": np.arange(8.0).reshape(1, 2, 4),
  }
  seen = multimodal_view.MultimodalView(model, x).observation(0)
  assert seen["digit"].words == "1 (0.70)"
  assert seen["x"].words == "0, 1, 2, 3, 4, 5, ..."
  page = multimodal_view.columns_html([("<a>", seen.values())])
  assert "1 (0.70)" in page and "&lt;a&gt;" in page and "<a>" not in page


def test_pages_of_models_whose_data_are_not_here(several, monkeypatch, capsys):
  """Of models by name samples stand in; of a workdir it is an error."""
  served = []
  monkeypatch.setattr(
    app, "serve", lambda view, host, port: served.append(view)
  )
  monkeypatch.setattr(app, "gradio", lambda: None)
  monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
  model = gamix_jax.load("pretrained:digits")
  model.config.data.source = "idx:/nowhere"
  monkeypatch.setattr("gamix_jax.inference.load", lambda *a, **k: model)
  given = types.SimpleNamespace(
    **dict(workdir="pretrained:digits", which="ema", step=None),
    **dict(
      host="127.0.0.1", port=1, config=ConfigDict({"data": {"source": ""}})
    ),
  )
  monkeypatch.setattr(command, "flags", types.SimpleNamespace(FLAGS=given))
  command.main()
  (page,) = served
  assert "/nowhere" in capsys.readouterr().out
  assert not page.held_out
  new = model.sample(jax.random.key(0), len(page.images))
  np.testing.assert_array_equal(page.images, colours(new))
  given.config.data.source = "idx:/nowhere"
  with pytest.raises(UserError, match="/nowhere"):
    command.main()
  given.config.data.source = ""
  monkeypatch.setattr(model, "folder", model.workdir)
  with pytest.raises(UserError, match="/nowhere"):
    command.main()
  # And of several modalities.
  x = multimodal_view.stand_ins(several.model)
  shown_ = multimodal_view.MultimodalView(several.model, x, held_out=False)
  assert shown_.translations(0, ["m0"])["m1"].image.shape == (16, 16, 3)


# --------------------------------------------------------------- server


def test_gradio_that_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "gradio", None)
  with pytest.raises(UserError, match=r"pip install.*\.\[explore\]"):
    app.gradio()


def test_flags_that_are_refused(program):
  ran = subprocess.run(
    program.argv("--port=0", module="gamix_jax.explore"),
    env=program.env(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert_refused(ran, "--port=0")


@contextlib.contextmanager
def served(workdir, program):
  """Serves the command; yields its address. SIGTERM must end it with 0."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  # Not program.argv: warnings inside Gradio are not ours.
  words = [sys.executable, "-m", "gamix_jax.explore"]
  process = subprocess.Popen(
    [*words, f"--workdir={workdir}", f"--port={port}"],
    env=program.env(),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    line = process.stdout.readline()
    assert line.startswith(f"http://127.0.0.1:{port}"), line
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


_MISSING = [
  name
  for name, there in (
    ("gradio", importlib.util.find_spec("gradio")),
    ("playwright", importlib.util.find_spec("playwright")),
    ("chromium", CHROMIUM),
  )
  if not there
]


with_a_browser = pytest.mark.skipif(
  bool(_MISSING), reason=f"not installed here: {', '.join(_MISSING)}"
)
PHONE = {"width": 390, "height": 844}


def sandbox():
  """Arguments of Chromium: root in a container has no sandbox."""
  return ["--no-sandbox"] if os.geteuid() == 0 else []


def is_as_wide_as_the_screen(tab):
  return tab.evaluate(
    "document.documentElement.scrollWidth <= innerWidth && [...document"
    ".querySelectorAll('img, input')].every(e => e.getBoundingClientRect()"
    ".right <= innerWidth)"
  )


@pytest.fixture
def server(run, program):
  with served(run, program) as address:
    yield address


@with_a_browser
def test_several_modalities_in_a_browser(several, program):
  from playwright.sync_api import expect, sync_playwright

  def picture(tab, i):
    src = tab.locator("#translations img").nth(i).get_attribute("src")
    data = base64.b64decode(src.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)), int)

  with (
    served("pretrained:polydigits", program) as address,
    sync_playwright() as play,
  ):
    browser = play.chromium.launch(executable_path=CHROMIUM, args=sandbox())
    tab = browser.new_page(viewport=PHONE)
    tab.goto(address)
    expect.set_options(timeout=30_000)
    pictures = tab.locator("#translations img")
    expect(pictures).to_have_count(10)
    assert is_as_wide_as_the_screen(tab)
    # Columns of an observation over what m0 gives, five of them in one row.
    tops = {p.bounding_box()["y"] for p in pictures.all()}
    assert len(tops) == 2
    np.testing.assert_array_equal(
      picture(tab, 2), several.observation(0)["m1"].image
    )
    wanted = several.translations(0, ["m0"])["m1"].image
    assert np.abs(picture(tab, 3) - wanted).max() <= 1
    old = pictures.nth(3).get_attribute("src")
    tab.locator("#given").get_by_label("m3").check()
    expect(pictures.nth(3)).not_to_have_attribute("src", old)
    wanted = several.translations(0, ["m0", "m3"])["m1"].image
    assert np.abs(picture(tab, 3) - wanted).max() <= 1
    tab.locator("#given").get_by_label("m0").uncheck()
    tab.locator("#given").get_by_label("m3").uncheck()
    expect(tab.locator("#message")).to_contain_text("at least one")
    tab.get_by_role("tab", name="Samples").click()
    expect(tab.locator("#samples img")).to_have_count(40)
    assert is_as_wide_as_the_screen(tab)
    browser.close()


@with_a_browser
def test_in_a_browser(server, shown, tmp_path):
  from playwright.sync_api import sync_playwright

  image = np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((20, 20), np.uint8))
  Image.fromarray(image).save(tmp_path / "eye.png")
  (tmp_path / "broken.png").write_text("no image")
  elsewhere = []

  with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=CHROMIUM, args=sandbox())
    tab = browser.new_page(viewport={"width": 1100, "height": 1000})

    def local_only(route):
      host = urllib.parse.urlsplit(route.request.url).hostname
      if host in ("127.0.0.1", None):
        route.continue_()
      else:
        elsewhere.append(route.request.url)
        route.abort()

    tab.route("**/*", local_only)
    tab.goto(server)

    def picture(name):
      tab.wait_for_selector(f"#{name} img")
      url = tab.eval_on_selector(f"#{name} img", "e => e.src")
      data = tab.request.get(url).body()
      return np.asarray(Image.open(io.BytesIO(data)).convert("L"))

    def changed(name, old):
      tab.wait_for_function(
        "([n, old]) => document.querySelector(`#${n} img`).src != old",
        arg=[name, old],
      )

    def source(name):
      return tab.eval_on_selector(f"#{name} img", "e => e.src")

    z = shown.code(shown.images[0])
    np.testing.assert_array_equal(picture("decoded"), shown.picture(z))

    old = source("decoded")
    tab.locator("input[type=file]").first.set_input_files(tmp_path / "eye.png")
    changed("decoded", old)
    x = shown.open(tmp_path / "eye.png")
    np.testing.assert_array_equal(picture("seen"), shown.shown(x))
    z = shown.code(x)
    apart = np.abs(picture("decoded").astype(int) - shown.picture(z))
    assert apart.max() <= 1  # rounding differs between processes

    old = source("decoded")
    # The server's own order: it has encoded more held-out images.
    slider = tab.locator("[id^=latent-]").first
    slider.locator("input[type=range]").fill("2")
    changed("decoded", old)
    assert np.any(picture("decoded") != shown.picture(z))

    old = source("map")
    tab.click("#map img", position={"x": 100, "y": 100})
    changed("map", old)
    assert slider.locator("input[type=range]").input_value() == "0"

    tab.get_by_role("button", name="Remove").first.or_(
      tab.get_by_label("Clear").first
    ).first.click()
    tab.locator("input[type=file]").first.set_input_files(
      tmp_path / "broken.png"
    )
    tab.wait_for_function(
      "document.querySelector('#message').innerText.includes('readable')"
    )
    np.testing.assert_array_equal(picture("seen"), shown.shown(x))
    browser.close()
  assert elsewhere == []


@with_a_browser
def test_on_a_phone(server):
  """Nothing is wider than the screen, and a tap on the map is where it is."""
  from playwright.sync_api import sync_playwright

  with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=CHROMIUM, args=sandbox())
    tab = browser.new_page(viewport=PHONE)
    tab.goto(server)
    tab.wait_for_selector("#map img")
    for name in ("Mix", "Samples", "Map"):
      tab.get_by_role("tab", name=name).click()
      assert is_as_wide_as_the_screen(tab)
    old = tab.locator("#map img").get_attribute("src")
    box = tab.locator("#map img").bounding_box()
    place = {"x": box["width"] / 4, "y": box["height"] / 2}
    tab.click("#map img", position=place)
    tab.wait_for_function(
      "old => document.querySelector('#map img').src != old", arg=old
    )
    url = tab.locator("#map img").get_attribute("src")
    data = tab.request.get(url).body()
    browser.close()
  marked = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  y, x = np.nonzero((marked == view.MARK_COLOR).all(axis=-1))
  # In the picture's own pixels, however small it is shown.
  middle = view.MAP_SIDE / 4, view.MAP_SIDE / 2
  assert (np.median(x), np.median(y)) == pytest.approx(middle, abs=4)
