"""The peer: pythae's default fully connected VAE, in PyTorch.

  python -m benchmarks.quality.peer ARRAYS.npz OUT --budgets=120,600 ...

is the training process that `run` starts. Its budget covers the CPU-seconds of
the training loop only, not imports, data or writing the results, which is in
its favour. Adam's rate is constant, so one run is evaluated at every budget on
the way.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import child
from benchmarks.quality.rows import Images, Task

LEARNING_RATE = 1e-3
PACKAGES = ("torch", "pythae")
# Threads that wait for each other must sleep. By default PyTorch's spin, and
# that time would count: nine tenths of the budget on two busy cores.
THREAD_WAITING = "passive"
DECODE_BATCH = 500  # images decoded at once
PROGRESS_LINES = 10  # how often a run prints its progress


def missing() -> str:
  """Returns why the peer cannot run here, or an empty string if it can."""
  missing_packages = [
    name for name in PACKAGES if not importlib.util.find_spec(name)
  ]
  if not missing_packages:
    return ""
  return (
    f"{' and '.join(missing_packages)} not installed: pip install -e '.[bench]'"
  )


def versions() -> dict[str, str]:
  """Returns the versions of the peer's packages."""
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def run(
  folders: dict[int, Path], task: Task, seed: int, images: Images
) -> dict[int, dict[str, Any]]:
  """Trains the budgets that are not finished.

  Args:
    folders: {budget in CPU-seconds: the row's folder}.
    task: has latent size, loss and batch size.
    seed: of weights, batches and noise.
    images: to train on and to reconstruct.

  Returns:
    {budget: {"cpu_seconds", "wall_seconds", "steps", "images": number trained
    on, "parameters", "settings"}}. Reconstructions and samples are stored in
    the row's folder.

  Raises:
    UserError: if a finished run has other settings.
  """
  settings = {
    "latent": task.latent,
    "loss": task.loss,
    "batch": task.batch,
    "learning_rate": LEARNING_RATE,
    "threads": child.cores(),
    "waiting": THREAD_WAITING,
    "images": images.sha256,
    **versions(),
  }
  name = f"peer_s{seed}"
  found = {
    seconds: child.finished(
      folder / f"{name}.json", settings | {"seconds": seconds}
    )
    for seconds, folder in folders.items()
  }
  budgets = [seconds for seconds, saved in found.items() if not saved]
  if not budgets:
    return found
  rows = ", ".join(folders[seconds].name for seconds in budgets)
  child.say(f"{rows} {name}: {max(budgets)} CPU-seconds")
  with tempfile.TemporaryDirectory() as place:
    images.save(Path(place) / "arrays.npz")
    flags = [f"{place}/arrays.npz", place, f"--seed={seed}"]
    flags += [f"--budgets={','.join(map(str, budgets))}"]
    keys = ("latent", "loss", "batch", "threads")
    flags += [f"--{k}={settings[k]}" for k in keys]
    log = folders[max(budgets)] / f"{name}.log"
    child.run(
      "benchmarks.quality.peer", flags, log, OMP_WAIT_POLICY=THREAD_WAITING
    )
    for seconds in budgets:
      facts = json.loads((Path(place) / f"{seconds}.json").read_text())
      facts["settings"] = settings | {"seconds": seconds}
      with np.load(Path(place) / f"{seconds}.npz") as arrays:
        np.savez(folders[seconds] / f"{name}.npz", **arrays)
      text = json.dumps(facts, indent=1) + "\n"
      (folders[seconds] / f"{name}.json").write_text(text)
      found[seconds] = facts
  return found


# ------------------------------------------------ the process that trains


def train(given: argparse.Namespace) -> None:
  """Trains for the longest budget; writes images and facts at each budget."""
  import torch  # noqa: PLC0415 (an extra)
  from pythae.models import VAE, VAEConfig  # noqa: PLC0415

  torch.manual_seed(given.seed)
  torch.set_num_threads(given.threads)
  with np.load(given.arrays) as arrays:
    train, test = (_pixels(torch, arrays[k]) for k in ("train", "test"))
  model = VAE(
    VAEConfig(
      input_dim=tuple(train.shape[1:]),
      latent_dim=given.latent,
      reconstruction_loss=given.loss,
    )
  )
  optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
  rows = torch.Generator().manual_seed(given.seed)
  used, steps, wall = 0.0, 0, time.monotonic()
  longest = max(given.budgets)
  last_print = 0.0
  for budget in sorted(given.budgets):
    start = time.process_time() - used  # exclude the time of writing
    model.train()
    while used < budget:
      batch = torch.randint(0, len(train), (given.batch,), generator=rows)
      loss = model({"data": train[batch]}).loss
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      steps += 1
      used = time.process_time() - start
      if used >= last_print + longest / PROGRESS_LINES:
        last_print = used
        print(f"step {steps}, {used:.1f} s: loss {loss.item():.5g}", flush=True)
    model.eval()
    with torch.no_grad():
      _write(torch, model, test, given, budget)
    facts = {
      "cpu_seconds": used,
      "wall_seconds": time.monotonic() - wall,
      "steps": steps,
      "images": steps * given.batch,
      "parameters": sum(p.numel() for p in model.parameters()),
    }
    (given.out / f"{budget}.json").write_text(json.dumps(facts))


def _pixels(torch, images: np.ndarray):
  """uint8 [n, h, w, c] -> float32 [n, c, h, w] in [0, 1]."""
  x = np.ascontiguousarray(np.moveaxis(images, -1, 1), np.float32)
  return torch.from_numpy(x / 255)


def _write(torch, model, test, given, budget: int) -> None:
  """Writes reconstructions of means and samples from N(0, I), as uint8."""
  noise = torch.Generator().manual_seed(given.seed)
  draws = torch.randn(len(test), given.latent, generator=noise)
  means = torch.cat(
    [model.encoder(x).embedding for x in test.split(DECODE_BATCH)]
  )
  arrays = {}
  for name, z in (("reconstructions", means), ("samples", draws)):
    parts = [model.decoder(v).reconstruction for v in z.split(DECODE_BATCH)]
    x = torch.cat(parts).reshape(test.shape).clamp(0, 1) * 255
    arrays[name] = np.moveaxis(x.round().to(torch.uint8).numpy(), 1, -1)
  np.savez(given.out / f"{budget}.npz", **arrays)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Parses the options of the training process."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add("arrays", type=Path, help="npz of train and test, uint8 [n, h, w, c]")
  add("out", type=Path, help="folder for <budget>.npz and <budget>.json")
  add("--budgets", required=True, help="CPU-seconds, comma-separated")
  add("--latent", type=int, required=True)
  add("--loss", choices=("bce", "mse"), required=True)
  add("--batch", type=int, required=True)
  add("--threads", type=int, required=True)
  add("--seed", type=int, default=0)
  given = parser.parse_args(argv)
  given.budgets = [int(v) for v in given.budgets.split(",")]
  return given


if __name__ == "__main__":
  train(parse())
