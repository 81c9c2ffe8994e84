"""TFDS without TensorFlow: builders defined here, and failing downloads."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gamix_jax import data
from gamix_jax.data import tfds as ours
from gamix_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")


def picture(i):
  """Returns distinct smooth images, uint8 [20, 24, 3]."""
  x = np.add.outer(np.arange(20) * 3, np.arange(24) * 4)[..., None] + i * 5
  return np.repeat(x, 3, axis=2).astype(np.uint8)


class GamixEncoded(tfds.core.GeneratorBasedBuilder):
  """Images as encoded JPEG."""

  VERSION = tfds.core.Version("1.0.0")
  splits = (("train", 13), ("test", 6))

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(names=["even", "odd"]),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    return {k: self._generate_examples(n) for k, n in self.splits}

  def _generate_examples(self, n):
    for i in range(n):
      yield i, {"image": self.encode(picture(i)), "label": i % 2}

  def encode(self, image):
    """Returns what the builder passes to TFDS."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=95)
    out.seek(0)
    return out


class GamixTrainOnly(GamixEncoded):
  """Has no test split."""

  splits = (("train", 25),)


class GamixArrays(GamixEncoded):
  """Images as arrays, which TFDS encodes with TensorFlow."""

  def encode(self, image):
    """Returns the array."""
    return image


class GamixDownload(GamixEncoded):
  """Downloads a file from a server that does not exist."""

  def _split_generators(self, dl_manager):
    dl_manager.download("http://127.0.0.1:9/images.zip")
    raise AssertionError("nothing listens on that port")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
  """Points TFDS here, and makes failing downloads fail quickly."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
  from tensorflow_datasets.core.download import downloader

  monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
  return tmp_path / "tfds"


def opened(name, split="train", **how):
  how = {"image_size": (20, 24), "crop": "none", "channels": 3} | how
  return data.open_dataset(
    dict(source=f"tfds:{name}", batch_size=4, **how), split
  )


def test_reads_what_was_prepared(place):
  ours.prepare("gamix_encoded")
  ours.prepare("gamix_encoded")  # again: nothing to do
  train, test = opened("gamix_encoded"), opened("gamix_encoded", "test")
  assert (len(train), len(test)) == (13, 6)
  assert train.label_names == ("even", "odd")
  # TFDS shuffles; its own reader gives the order. Pillow decodes here, since
  # decoding in TFDS needs TensorFlow.
  records = tfds.builder("gamix_encoded").as_data_source(
    "train", decoders={"image": tfds.decode.SkipDecoding()}
  )
  for i, record in enumerate(records):
    want = np.asarray(Image.open(io.BytesIO(record["image"])))
    np.testing.assert_array_equal(train[i]["image"], want)
    assert train[i]["label"] == record["label"]
  assert "tensorflow" not in sys.modules
  how = {"batch_size": 8, "seed": 0, "flip": True}
  plain = data.batches(train, **how)
  with_cache = opened("gamix_encoded", cache=str(place / "cache"))
  working = data.batches(train, workers=1, **how)
  mapped = data.batches(with_cache, **how)
  for _ in range(3):
    a, b, c = next(plain), next(working), next(mapped)
    for k in a:
      np.testing.assert_array_equal(a[k], b[k])
      np.testing.assert_array_equal(a[k], c[k])
  for stream in (plain, working, mapped):
    stream.close()


def test_without_a_test_split():
  ours.prepare("gamix_train_only")
  train, test = opened("gamix_train_only"), opened("gamix_train_only", "test")
  assert len(train) + len(test) == 25 and len(test) >= 1
  seen = {d[i]["image"].tobytes() for d in (train, test) for i in range(len(d))}
  assert len(seen) == 25


def says(call, *words):
  with pytest.raises(UserError) as e:
    call()
  message = str(e.value)
  for word in words:
    assert word in message, message
  assert len(message.splitlines()) <= 2


@pytest.mark.skipif(
  ours.importlib.util.find_spec("tensorflow") is not None,
  reason="TensorFlow is installed, so preparing from arrays works",
)
def test_preparing_from_arrays_names_the_extra(place):
  says(lambda: ours.prepare("gamix_arrays"), "pip install 'gamix_jax[tfds]'")
  assert not (place / "gamix_arrays" / "1.0.0").exists()


def test_a_download_that_fails():
  says(lambda: ours.prepare("gamix_download"), "ConnectionError", "folder:")


def test_unknown_names():
  says(lambda: opened("gamix_nowhere"), "no such data set")
  says(lambda: opened("mnist:9.9.9"), "9.9.9")
  says(lambda: opened(""), "tfds:celeb_a")


def test_prepares_in_a_process_of_its_own(place):
  # CelebA-HQ needs manual downloads, so it fails without a network, too.
  code = (
    "import sys; from gamix_jax import data, errors\n"
    "if __name__ == '__main__':\n"
    "  try:\n"
    "    data.open_dataset(dict(source='tfds:celeb_a_hq/256', image_size=8,"
    " channels=3, batch_size=4), 'train')\n"
    "  except errors.UserError as e:\n"
    "    print(e)\n"
    "    sys.exit('tensorflow' in sys.modules and 3 or 2)\n"
  )
  script = place.parent / "script.py"
  script.write_text(code)
  ran = subprocess.run(
    [sys.executable, str(script)],
    check=False,
    capture_output=True,
    env=os.environ,
    text=True,
  )
  assert ran.returncode == 2, ran.stderr
  message = ran.stdout.splitlines()[-1]
  for word in ("celeb_a_hq/256", "anual", "zip:img_align_celeba.zip"):
    assert word in message
  assert "folder:" in message
