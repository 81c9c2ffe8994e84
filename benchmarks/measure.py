"""Takes the measurements of `benchmarks.step` and formats its table."""

import os
import platform
import resource
import sys
import time

import jax

from benchmarks import first_step, flops, jax_step, timing, traffic
from gamix_jax import cli
from gamix_jax.config import ConfigDict, image_shape
from gamix_jax.cpu import malloc
from gamix_jax.networks import layer_bytes
from gamix_jax.training.compiled_steps import program_memory

MATMUL_SIDE = {"cpu": 2048}  # for the matmul ceiling
COPY_MEGABYTES = {"cpu": 128}  # for the copy ceiling
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
  """Measures a config's step; see `table`.

  Args:
    config: a checked config.
    steps: the number to time.
    against: None, "torch", "eager-jax".
    torch_compile: whether to compile PyTorch's networks.
    torch_layout: memory layout of PyTorch's images.
    only: None, "ours", "torch": which of the two to time; the two steps'
      results are compared if both are timed.
    cached: whether our step is loaded from the compilation cache. On a CPU, the
      memory that a compiler leaves behind slows down the steps after it.
  """
  malloc.keep_freed_on_cpu(layer_bytes(config))
  if cached:
    cli.use_compilation_cache()
    say("filling the compilation cache")
    first_step.start(config, os.environ)
  else:
    # Compile everything anew.
    jax.config.update("jax_enable_compilation_cache", False)
  device = jax.devices()[0]
  batch = config.data.batch_size
  results = {
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
      config, results, torch_compile, torch_layout, agree=only is None
    )
  if only != "torch":
    say("loading the step" if cached else "compiling the step")
    ours = jax_step.JaxStep(config)
    before = ours.device_peak()
    ours.begin()
    ours.compile()
    if cached and not ours.from_cache:
      raise RuntimeError("the step is missing from the compilation cache.")
    runners = {OURS: ours.run} | runners
  if against == "eager-jax":
    runners[EAGER] = jax_step.Eager(ours).run
  say("timing")
  spreads = timing.in_turns(runners, steps)
  for name, spread in spreads.items():
    results["rows"][name] = spread._asdict() | {
      "images_per_second": batch / spread.median,
      "flop_per_second": results["flop_per_image"] * batch / spread.median,
    }
  if only != "torch":
    results["compile"] = ours.seconds | {"cached": ours.from_cache}
    results["memory"] = program_memory(ours.compiled)
    peak = ours.device_peak()
    # It does not rise if the comparison with PyTorch used more.
    if peak > before:
      results["memory"]["device_peak"] = peak
    cost = ours.compiled.cost_analysis() or {}
    results["program_flop"] = cost.get("flops")
    results["program_bytes"] = cost.get("bytes accessed")
    if device.platform == "gpu":  # XLA does not count cuDNN's convolutions
      results["program_bytes"] = traffic.read(ours.compiled.as_text())
  if "torch" in results and device.platform == "gpu":
    results["torch"]["peak"] = f"{_torch_peak() / 2**20:.0f} MiB"
  results["memory"] = results.get("memory", {}) | {
    "resident_high": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  }
  say("measuring what the machine can do")
  backend = jax.default_backend()
  results["ceilings"] = {
    "product": timing.product_ceiling(
      config.dtype, MATMUL_SIDE.get(backend, 8192)
    ),
    "copy": timing.copy_ceiling(COPY_MEGABYTES.get(backend, 2048)),
  }
  return results


def _torch(config, results: dict, compiled: bool, layout: str, agree: bool):
  """Returns a function that runs n steps of PyTorch; compares results first."""
  import torch  # noqa: PLC0415 (an extra)

  from benchmarks import torch_baseline, torch_check  # noqa: PLC0415

  device = torch_baseline.same_device()
  plain = torch_baseline.Options(device, layout)
  if agree:
    say("comparing with PyTorch, in float64")
    results["agreement"] = torch_check.compare(config, plain)
  results["machine"]["torch"] = torch.__version__
  results["machine"]["torch_threads"] = torch.get_num_threads()
  options = torch_baseline.Options(
    device, layout, "modules" if compiled else "none"
  )
  say("making PyTorch's step")
  results["torch"] = {"layout": layout, "compile": options.compile}
  return torch_baseline.runner(config, options, results["torch"])


def say(line: str) -> None:
  """Prints the current stage and the time, to stderr."""
  print(f"{time.strftime('%T')} {line}", file=sys.stderr, flush=True)


def _torch_peak() -> int:
  """Returns the peak bytes of PyTorch's tensors on the GPU."""
  import torch  # noqa: PLC0415 (an extra)

  return torch.cuda.max_memory_allocated()


# ------------------------------------------------------------ shown


def table(results: dict) -> str:
  """Returns the results as text."""
  machine, config = results["machine"], results["config"]
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
    f"{results['flop_per_image'] / 1e9:.4g} GFLOP per image, analytic",
  ]
  if "agreement" in results:
    shown = ", ".join(f"{k} {v:.1g}" for k, v in results["agreement"].items())
    lines.append(f"PyTorch agrees in float64, up to: {shown}")
  elif "torch" in results:
    lines.append("Results not compared; run without --only to compare them")
  if "torch" in results:
    lines.append(
      "PyTorch: " + ", ".join(f"{k} {v}" for k, v in results["torch"].items())
    )
  lines += ["", *_rows(results), ""]
  lines += _rest(results)
  return "\n".join(lines)


def _rows(results: dict) -> list[str]:
  product = results["ceilings"]["product"]
  head = f"{'':<10}  {'ms/step (quartiles)':<26}{'images/s':>9}"
  out = [f"{head} {'GFLOP/s':>9}  vs. matmul"]
  for name, row in results["rows"].items():
    spread = timing.Spread(*(row[k] for k in timing.Spread._fields))
    out.append(
      f"{name:<10}  {spread.milliseconds():<26}"
      f"{row['images_per_second']:>9.4g} "
      f"{row['flop_per_second'] / 1e9:>9.3g}"
      f"{row['flop_per_second'] / product:>10.0%}"
    )
  rows = list(results["rows"].values())
  for name, row in list(results["rows"].items())[1:]:
    ratio = row["median"] / rows[0]["median"]
    out.append(f"{OURS} is {ratio:.3g} times as fast as: {name}")
  out.append(
    "Samples: "
    + "; ".join(
      f"{name} {row['groups']} groups of {row['steps_in_group']} steps, "
      "dispatched together and waited for"
      for name, row in results["rows"].items()
    )
  )
  return out


def _rest(results: dict) -> list[str]:
  ceilings, memory = results["ceilings"], results["memory"]
  out = [
    f"Ceilings    matmul {ceilings['product'] / 1e9:.4g} GFLOP/s in "
    f"{results['config']['dtype']}, copy {ceilings['copy'] / 1e9:.4g} GB/s"
  ]
  if "compile" in results:
    seconds = results["compile"]
    if traffic := results["program_bytes"]:
      rate = traffic / results["rows"][OURS]["median"]
      out.append(
        f"Traffic     {traffic / 1e9:.3g} GB/step of the compiled program, "
        f"{rate / 1e9:.3g} GB/s, {rate / ceilings['copy']:.0%} of the ceiling"
      )
    out.append(
      f"{'Loading' if seconds['cached'] else 'Compiling':<12}"
      f"{seconds['compile']:.1f} s after {seconds['trace']:.1f} s of tracing"
    )
  if "program" in memory:
    mega = {k: v / 2**20 for k, v in memory.items()}
    if "device_peak" in memory:
      out.append(f"Memory      {mega['device_peak']:.0f} MiB, device peak")
    out.append(
      f"Memory      {mega['program']:.0f} MiB in the program: "
      f"{mega['arguments']:.0f} arguments, {mega['temporary']:.0f} temporary, "
      f"{mega['outputs'] - mega['reused']:.0f} new outputs"
    )
  out.append(
    f"Memory      {memory['resident_high'] / 2**20:.0f} MiB, peak of the "
    "process, including all measurements"
  )
  for name, marks in results.get("first_step", {}).items():
    parts = ", ".join(f"{k} {v:.1f}" for k, v in marks.items() if k != "total")
    out.append(
      f"First step  {marks['total']:.1f} s {name} after the start: {parts}"
    )
  return out
