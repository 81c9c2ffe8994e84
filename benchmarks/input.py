"""Measures input throughput in images/s, by source, cache and workers.

  python -m benchmarks.input [--source=folder,npz] [--batch=128] [--rounds=3]

Batches are loaded as the trainer loads them (`data.batches`, shuffled and
mirrored, uint8 [b, h, w, c]) with nothing else running, so the result is an
upper bound for training. Without `--folder`, images are generated: of CelebA's
size (178x218), smooth with some texture, JPEG quality 90. Every round measures
all rows in turn; the table shows medians. The row of `hf` needs
`pip install '.[hf]'`.
"""

import argparse
import gzip
import importlib.util
import io
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from gamix_jax import data

SOURCES = (
  *("digits", "synthetic", "npz", "idx"),
  *("folder", "zip", "tar", "hf", "tfds"),
)
CACHES = ("none", "memory", "folder")
WARMUP_BATCHES = 3  # warm-up batches, not timed
CELEBA_SIZE = (218, 178)  # height, width
SHARD = 500  # images in a tar file


def picture(i: int, size: tuple[int, int]) -> np.ndarray:
  """Returns image i, uint8 [h, w, 3], about as smooth as a photograph."""
  h, w = size
  rng = np.random.default_rng(i)
  small = rng.integers(0, 256, (h // 24 + 2, w // 24 + 2, 3), np.uint8)
  image = Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC)
  grain = rng.integers(-6, 7, (h, w, 3))
  return (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)


def jpeg(i: int) -> bytes:
  """Returns picture i as an encoded JPEG."""
  out = io.BytesIO()
  Image.fromarray(picture(i, CELEBA_SIZE)).save(out, "JPEG", quality=90)
  return out.getvalue()


def write_folder(place: Path, n: int) -> str:
  """Writes n files; returns the value of data.source that reads them."""
  folder = place / "images"
  folder.mkdir()
  for i in range(n):
    (folder / f"{i:06d}.jpg").write_bytes(jpeg(i))
  return f"folder:{folder}"


def write_zip(place: Path, n: int) -> str:
  """Writes n compressed members; returns the value of data.source."""
  with zipfile.ZipFile(
    place / "images.zip", "w", zipfile.ZIP_DEFLATED
  ) as archive:
    for i in range(n):
      archive.writestr(f"images/{i:06d}.jpg", jpeg(i))
  return f"zip:{place / 'images.zip'}"


def write_tar(place: Path, n: int) -> str:
  """Writes n images with labels in shards; returns the value of data.source."""
  for k in range(0, n, SHARD):
    with tarfile.open(place / f"{k:06d}.tar", "w") as archive:
      for i in range(k, min(k + SHARD, n)):
        for suffix, content in (("jpg", jpeg(i)), ("cls", b"%d" % (i % 10))):
          member = tarfile.TarInfo(f"{i:06d}.{suffix}")
          member.size = len(content)
          archive.addfile(member, io.BytesIO(content))
  return f"tar:{place}/*.tar"


def write_hf(place: Path, n: int) -> str:
  """Saves n rows by the datasets library; returns the value of data.source."""
  import datasets  # noqa: PLC0415  (optional)

  rows = {"image": [{"bytes": jpeg(i), "path": None} for i in range(n)]}
  features = datasets.Features({"image": datasets.Image()})
  datasets.disable_progress_bars()
  table = datasets.Dataset.from_dict(rows, features=features)
  table.save_to_disk(place / "hf")
  return f"hf:{place / 'hf'}"


def write_npz(place: Path, n: int, size: int) -> str:
  """Writes n arrays of the given size; returns the value of data.source."""
  images = np.stack([picture(i, (size, size)) for i in range(n)])
  np.savez(place / "images.npz", images=images)
  return f"npz:{place / 'images.npz'}"


def write_idx(place: Path, n: int, size: int) -> str:
  """Writes n grey images as MNIST's; returns the value of data.source."""
  folder = place / "idx"
  folder.mkdir()
  images = np.stack([picture(i, (size, size))[..., 0] for i in range(n)])
  header = np.array([0x0803, *images.shape], ">u4").tobytes()
  with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
    file.write(header + images.tobytes())
  return f"idx:{folder}"


def write_tfds(place: Path, n: int) -> str:
  """Writes n records with a TFDS builder; returns the value of data.source."""
  os.environ["TFDS_DATA_DIR"] = str(place / "tfds")
  import tensorflow_datasets as tfds  # noqa: PLC0415

  class GamixBench(tfds.core.GeneratorBasedBuilder):
    """The same pictures as in the folder."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      image = tfds.features.Image(shape=(None, None, 3))
      features = tfds.features.FeaturesDict({"image": image})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      del dl_manager
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(n):
        yield i, {"image": io.BytesIO(jpeg(i))}

  tfds.disable_progress_bar()
  builder = GamixBench(data_dir=str(place / "tfds"))
  builder.download_and_prepare(file_format="array_record")
  # Worker processes find it by its folder.
  return "tfds:gamix_bench"


def write(name: str, place: Path, options: argparse.Namespace) -> str:
  """Writes what a source reads; returns the value of data.source."""
  if name == "folder" and options.folder:
    return f"folder:{options.folder}"
  makers: dict[str, Callable[[], str]] = {
    "digits": lambda: "digits",
    "synthetic": lambda: f"synthetic:{options.number}",
    "npz": lambda: write_npz(place, options.number, options.size),
    "idx": lambda: write_idx(place, options.number, options.size),
    "folder": lambda: write_folder(place, options.number),
    "zip": lambda: write_zip(place, options.number),
    "tar": lambda: write_tar(place, options.number),
    "hf": lambda: write_hf(place, options.number),
    "tfds": lambda: write_tfds(place, options.number),
  }
  return makers[name]()


def rate(dataset: data.Dataset, workers: int, options) -> float:
  """Returns the images/s over `options.seconds`, after `WARM` batches."""
  stream = data.batches(
    dataset, batch_size=options.batch, seed=0, flip=True, workers=workers
  )
  try:
    for _ in range(WARMUP_BATCHES + 2 * workers):
      next(stream)
    start = time.perf_counter()
    count, spent = 0, 0.0
    while spent < options.seconds:
      count += len(next(stream)["image"])
      spent = time.perf_counter() - start
    return count / spent
  finally:
    stream.close()


def measure(options: argparse.Namespace) -> dict[tuple, list[float]]:
  """Returns {(source, cache, workers): images/s of each round}."""
  rows: dict[tuple, tuple[data.Dataset, int]] = {}
  with tempfile.TemporaryDirectory() as folder:
    place = Path(folder)
    for name in options.source.split(","):
      source = write(name, place, options)
      for cache in CACHES:
        dataset = data.open_dataset(
          dict(
            source=source,
            image_size=options.size,
            channels=3,
            batch_size=options.batch,
            cache=str(place / "cache") if cache == "folder" else cache,
          ),
          "train",
        )
        # A cached data set starts no workers.
        for workers in options.workers if cache == "none" else [0]:
          rows[name, cache, workers] = dataset, workers
    rates: dict[tuple, list[float]] = {key: [] for key in rows}
    for _ in range(options.rounds):
      for key, (dataset, workers) in rows.items():
        rates[key].append(rate(dataset, workers, options))
  return rates


def table(rates: dict[tuple, list[float]]) -> str:
  """Returns the Markdown table."""
  lines = [
    "| source | cache | workers | images/s | lowest, highest |",
    "|---|---|---|---|---|",
  ]
  for (source, cache, workers), values in rates.items():
    words = (
      *(source, cache, workers, f"{statistics.median(values):,.0f}"),
      f"{min(values):,.0f}, {max(values):,.0f}",
    )
    lines.append("| " + " | ".join(map(str, words)) + " |")
  return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
  """Returns the options."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  installed = [
    name
    for name in SOURCES
    if name != "hf" or importlib.util.find_spec("datasets")
  ]
  add("--source", default=",".join(installed), help="comma-separated names")
  add("--folder", help="images for --source=folder; default: generated")
  add(
    "--size", type=int, default=64, help="height and width of the output images"
  )
  add("--batch", type=int, default=128)
  add("--number", type=int, default=2000, help="images generated per source")
  add("--workers", default="0,1,2", help="comma-separated numbers")
  add("--rounds", type=int, default=3)
  add("--seconds", type=float, default=1.0, help="length of a measurement")
  options = parser.parse_args(argv)
  options.workers = [int(w) for w in options.workers.split(",")]
  if unknown := set(options.source.split(",")) - set(SOURCES):
    parser.error(f"--source: {', '.join(unknown)} must be one of {SOURCES}")
  return options


def main() -> None:
  """Runs the measurements that the flags ask for and prints the table."""
  options = parse(sys.argv[1:])
  print(
    f"Python {platform.python_version()}, {os.cpu_count()} cores, "
    f"{options.size}x{options.size}x3, batch {options.batch}, "
    f"{options.rounds} rounds of {options.seconds:g} s"
  )
  print(table(measure(options)))


if __name__ == "__main__":
  main()
