"""The numbers of `benchmarks.step`, and the table they are shown in."""

import os
import platform
import resource
import sys
import time

import jax

from benchmarks import first_step, flops, jax_step, timing
from gamix_jax import cli
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.cpu import malloc
from gamix_jax.networks import layer_bytes

SIDES = {"cpu": 2048}  # of the matrices of the product
COPIED = {"cpu": 128}  # megabytes
OURS, THEIRS, EAGER = "gamix_jax", "PyTorch", "not fused"


def measure(
  config: ConfigDict,
  *,
  steps: int,
  against: str | None,
  torch_compile: bool = False,
  torch_layout: str = "channels_last",
  only: str | None = None,
  cached: bool = False,
) -> dict:
  """All that is to be known of a config's step; see `table`.

  Args:
    config: checked.
    steps: to be timed.
    against: None, "torch", "eager-jax".
    torch_compile: whether PyTorch's networks are compiled.
    torch_layout: of its images.
    only: None, "ours", "torch": which of the two is timed; the numbers they
      compute are compared where both are.
    cached: whether our step comes from the compilation cache. What a compiler
      leaves of its memory makes the steps after it slower on a CPU.
  """
  malloc.keep_freed_on_cpu(layer_bytes(config))
  if cached:
    cli.use_compilation_cache()
    say("filling the compilation cache")
    first_step.start(config, os.environ)
  else:
    # What is compiled here is compiled anew.
    jax.config.update("jax_enable_compilation_cache", False)
  device = jax.devices()[0]
  batch = config.data.batch_size
  found = {
    "machine": {
      "device": device.device_kind,
      "devices": jax.device_count(),
      "cores": len(os.sched_getaffinity(0)),
      "load": os.getloadavg()[0],
      "python": platform.python_version(),
      "jax": jax.__version__,
    },
    "config": {
      "image": list(image_shape(config)),
      "batch": batch,
      "dtype": config.dtype,
      "norm": config.model.norm,
      "posterior": config.posterior.name,
      "components": config.posterior.components,
      "latent": config.model.latent,
    },
    "flop_per_image": flops.per_image(config)["total"],
    "rows": {},
  }
  runners = {}
  if against == "torch" and only != "ours":
    runners[THEIRS] = _torch(
      config, found, torch_compile, torch_layout, agree=only is None
    )
  if only != "torch":
    say("reading the step" if cached else "compiling the step")
    ours = jax_step.Ours(config)
    ours.begin()
    ours.compile()
    if cached and not ours.from_cache:
      raise RuntimeError("the step was not found in the compilation cache.")
    runners = {OURS: ours.run} | runners
  if against == "eager-jax":
    runners[EAGER] = jax_step.Eager(ours).run
  say("timing")
  spreads = timing.in_turns(runners, steps)
  for name, spread in spreads.items():
    found["rows"][name] = spread._asdict() | {
      "images_per_second": batch / spread.median,
      "flop_per_second": found["flop_per_image"] * batch / spread.median,
    }
  if only != "torch":
    found["compile"] = ours.seconds | {"cached": ours.from_cache}
    found["memory"] = ours.memory()
    if against == "torch":  # the peak may be that of the comparison
      found["memory"].pop("device_peak", None)
    cost = ours.compiled.cost_analysis()
    found["program_flop"] = cost["flops"]
    found["program_bytes"] = cost["bytes accessed"]
  if "torch" in found and device.platform == "gpu":
    found["torch"]["peak"] = f"{_torch_peak() / 2**20:.0f} MiB"
  found["memory"] = found.get("memory", {}) | {
    "resident_high": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  }
  say("measuring what the machine can do")
  backend = jax.default_backend()
  found["ceilings"] = {
    "product": timing.product_ceiling(config.dtype, SIDES.get(backend, 8192)),
    "copy": timing.copy_ceiling(COPIED.get(backend, 2048)),
  }
  return found


def _torch(config, found: dict, compiled: bool, layout: str, agree: bool):
  """The twin's function of n steps, after it was found to agree."""
  import torch  # noqa: PLC0415 (an extra)

  from benchmarks import torch_baseline, torch_check  # noqa: PLC0415

  device = "cuda" if torch.cuda.is_available() else "cpu"
  if (device == "cuda") != (jax.default_backend() == "gpu"):
    raise RuntimeError(
      f"PyTorch would run on {device} and JAX on {jax.default_backend()}."
    )
  plain = torch_baseline.Options(device, layout)
  if agree:
    say("comparing with PyTorch, in float64")
    found["agreement"] = torch_check.compare(config, plain)
  found["machine"]["torch"] = torch.__version__
  found["machine"]["torch_threads"] = torch.get_num_threads()
  options = torch_baseline.Options(
    device, layout, "modules" if compiled else "none"
  )
  say("making PyTorch's step")
  found["torch"] = {"layout": layout, "compile": options.compile}
  return torch_baseline.runner(config, options, found["torch"])


def say(line: str) -> None:
  """What is being done now, and since when, to stderr."""
  print(f"{time.strftime('%T')} {line}", file=sys.stderr, flush=True)


def _torch_peak() -> int:
  """Bytes that PyTorch's tensors had at most on the GPU, in its steps."""
  import torch  # noqa: PLC0415 (an extra)

  return torch.cuda.max_memory_allocated()


# ------------------------------------------------------------ shown


def table(found: dict) -> str:
  """For people."""
  machine, config = found["machine"], found["config"]
  h, w, c = config["image"]
  versions = f"Python {machine['python']}, jax {machine['jax']}"
  if "torch" in machine:
    versions += (
      f", torch {machine['torch']} with {machine['torch_threads']} threads"
    )
  lines = [
    f"{machine['devices']} x {machine['device']}, {machine['cores']} cores, "
    f"load {machine['load']:.1f} before; {versions}",
    f"{h}x{w}x{c}, batch {config['batch']}, {config['dtype']}, "
    f"norm {config['norm']}, latent {config['latent']}, "
    f"{config['posterior']} of {config['components']}: "
    f"{found['flop_per_image'] / 1e9:.4g} GFLOP an image by hand",
  ]
  if "agreement" in found:
    shown = ", ".join(f"{k} {v:.1g}" for k, v in found["agreement"].items())
    lines.append(f"PyTorch computes the same in float64, off by: {shown}")
  elif "torch" in found:
    lines.append("Not compared here: run without --only for that")
  if "torch" in found:
    lines.append(
      "PyTorch: " + ", ".join(f"{k} {v}" for k, v in found["torch"].items())
    )
  lines += ["", *_rows(found), ""]
  lines += _rest(found)
  return "\n".join(lines)


def _rows(found: dict) -> list[str]:
  product = found["ceilings"]["product"]
  head = f"{'':<10}  {'ms a step (quartiles)':<26}{'images/s':>9}"
  out = [f"{head} {'GFLOP/s':>9}  of a product"]
  for name, row in found["rows"].items():
    of = timing.Spread(*(row[k] for k in timing.Spread._fields))
    out.append(
      f"{name:<10}  {of.milliseconds():<26}{row['images_per_second']:>9.4g} "
      f"{row['flop_per_second'] / 1e9:>9.3g}"
      f"{row['flop_per_second'] / product:>10.0%}"
    )
  rows = list(found["rows"].values())
  for name, row in list(found["rows"].items())[1:]:
    ratio = row["median"] / rows[0]["median"]
    out.append(f"{OURS} has {ratio:.3g} times the speed of: {name}")
  out.append(
    "Samples: "
    + "; ".join(
      f"{name} {row['groups']} groups of {row['steps_in_group']}, each begun "
      "at once and waited for"
      for name, row in found["rows"].items()
    )
  )
  return out


def _rest(found: dict) -> list[str]:
  ceilings, memory = found["ceilings"], found["memory"]
  out = [
    f"Ceilings    product {ceilings['product'] / 1e9:.4g} GFLOP/s in "
    f"{found['config']['dtype']}, copy {ceilings['copy'] / 1e9:.4g} GB/s"
  ]
  if "compile" in found:
    seconds = found["compile"]
    traffic = found["program_bytes"]
    rate = traffic / found["rows"][OURS]["median"]
    out.append(
      f"Traffic     {traffic / 1e9:.3g} GB a step as XLA counts it, "
      f"{rate / 1e9:.3g} GB/s, {rate / ceilings['copy']:.0%} of a copy"
    )
    out.append(
      f"{'Reading' if seconds['cached'] else 'Compiling':<12}"
      f"{seconds['compile']:.1f} s after {seconds['trace']:.1f} s of tracing"
    )
  if "program" in memory:
    mega = {k: v / 2**20 for k, v in memory.items()}
    if "device_peak" in memory:
      out.append(
        f"Memory      {mega['device_peak']:.0f} MiB, the device's peak"
      )
    out.append(
      f"Memory      {mega['program']:.0f} MiB by the program: "
      f"{mega['arguments']:.0f} in, {mega['temporary']:.0f} between, "
      f"{mega['outputs'] - mega['reused']:.0f} new out"
    )
  out.append(
    f"Memory      {memory['resident_high'] / 2**20:.0f} MiB, the process at "
    "its highest, with all it measured"
  )
  for name, marks in found.get("first_step", {}).items():
    parts = ", ".join(f"{k} {v:.1f}" for k, v in marks.items() if k != "total")
    out.append(
      f"First step  {marks['total']:.1f} s {name} after the start: {parts}"
    )
  return out
