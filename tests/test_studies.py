"""The command that runs many comparisons in parts, and its tables."""

import json
import struct

import numpy as np
import pytest
from program import ROOT

from benchmarks import studies
from gamix_jax.compare.families import folder_name


def write(root, study, part, family, seed, **numbers):
  folder = root / study / part / folder_name(family) / f"seed{seed}"
  folder.mkdir(parents=True)
  (folder / "results.json").write_text(json.dumps({"numbers": numbers}))


def cells(text):
  lines = [x.strip("|").split("|") for x in text.splitlines()]
  return [[c.strip() for c in line] for line in lines]


def test_parts_are_different_runs():
  for study, make in studies.STUDIES.items():
    parts = make()
    assert study in studies.COLUMNS and study in studies.STEPS
    runs = [(p.row, p.seed, f) for p in parts.values() for f in p.families]
    assert len(runs) == len(set(runs))
  assert len(studies.anomalies()) == 30
  seeds = {p.seed for p in studies.anomalies().values()}
  assert seeds == {0, 1, 2}


def test_tables_are_means_over_seeds(tmp_path):
  family = "mixture:4/selbo"
  for seed, value in enumerate((1.0, 2.0, 6.0)):
    part = f"mnist_half_k4_s{seed}"
    write(tmp_path, "occlusion", part, family, seed, completion_mae=value)
  found = studies.results(tmp_path, "occlusion")
  head, _, row = cells(studies.table(found, "occlusion"))
  got = dict(zip(head, row, strict=True))
  assert got["run"] == "mnist, half, mixture:4/selbo"
  assert got["completion_mae"] == "3.000 ± 2.646"  # sqrt((4 + 1 + 9) / 2)
  assert got["completion_mae_best"] == "-"
  assert got["seeds"] == "3"


def test_the_mean_over_classes_has_the_spread_of_seeds(tmp_path):
  family = "gaussian/elbo"
  rng = np.random.default_rng(0)
  scores = rng.uniform(0.4, 1, (10, 2))
  for c, seed in np.ndindex(10, 2):
    numbers = dict(auroc_elbo=scores[c, seed], auroc_reconstruction=0.5, mae=1)
    part = f"class{c}_s{seed}"
    write(tmp_path, "anomalies", part, family, seed, **numbers)
  found = studies.results(tmp_path, "anomalies")
  head, _, *rows = cells(studies.table(found, "anomalies"))
  assert len(rows) == 11
  of = {r[0]: dict(zip(head, r, strict=True)) for r in rows}
  mean, sd = map(
    float, of["mean of classes, gaussian/elbo"]["auroc_elbo"].split(" ± ")
  )
  assert mean == pytest.approx(scores.mean(), abs=6e-5)
  assert sd == pytest.approx(scores.mean(axis=0).std(ddof=1), abs=6e-5)


@pytest.mark.slow
def test_a_part_from_start_to_table(program, tmp_path):
  """Classes 0 to 9 in idx files; class 2 is left out of the training."""
  folder = tmp_path / "mnist"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for split, n in (("train", 120), ("t10k", 60)):
    labels = (np.arange(n) % 10).astype(np.uint8)
    images = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)
    for name, v in (("images-idx3", images), ("labels-idx1", labels)):
      head = bytes([0, 0, 8, v.ndim]) + struct.pack(f">{v.ndim}I", *v.shape)
      (folder / f"{split}-{name}-ubyte").write_bytes(head + v.tobytes())
  flags = ("--study=anomalies", f"--out={tmp_path}", f"--mnist={folder}")
  module = "benchmarks.studies"
  words = (*flags, "--part=class2_s0", "--tiny")
  ran = program.run(*words, module=module, cwd=ROOT)
  assert ran.returncode == 0, ran.stderr
  ran = program.run(*flags, "--tables", module=module, cwd=ROOT)
  assert ran.returncode == 0, ran.stderr
  head, _, *rows = cells((tmp_path / "anomalies.md").read_text())
  for row in rows:
    value = dict(zip(head, row, strict=True))["auroc_elbo"]
    assert 0 <= float(value) <= 1
  wrong = program.run(*flags, "--part=class10_s0", module=module, cwd=ROOT)
  assert wrong.returncode == 2
  assert "--part" in wrong.stderr
