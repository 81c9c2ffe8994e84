"""Errors of a user's environment: a message and exit code 2, no traceback."""

import errno
import os
import subprocess

import jax
import pytest
from program import ROOT, SMALL, assert_refused

from gamix_jax import cli, situations


def ended(error):
  def main():
    raise error

  return cli.run(main, ["x"])


@pytest.mark.parametrize(
  ("error", "words"),
  [
    *(
      (OSError(getattr(errno, name), "it says", "a/file"), ["a/file: it says."])
      for name in (
        *("ENOSPC", "EDQUOT", "EACCES", "EROFS", "ENAMETOOLONG", "ELOOP"),
        *("ENOTEMPTY", "ESTALE", "EIO", "EMFILE", "ENFILE", "ENOENT"),
        *("EFBIG", "ETIMEDOUT", "EINVAL", "ENODEV", "EBUSY", "ENOMEM"),
      )
    ),
    (MemoryError("Unable to allocate 9 GiB"), ["memory", "9 GiB", "batch"]),
    (MemoryError(), ["this machine's memory.", "batch_size"]),
    (
      jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"),
      ["device's memory (RESOURCE_EXHAUSTED: Out of memory)."],
    ),
    (RuntimeError("can't start new thread"), ["threads", "ulimit"]),
    (
      UnicodeEncodeError("utf-8", "runs/\udce9", 5, 6, "surrogates"),
      [r"'runs/\udce9'", "not UTF-8", "rename"],
    ),
  ],
  ids=lambda v: "" if isinstance(v, list) else f"{type(v).__name__} {v!s:.30}",
)
def test_a_situation(capsys, error, words):
  assert ended(error) == 2
  message = capsys.readouterr().err
  assert message.startswith("gamix_jax: ") and message.count("\n") <= 2
  for word in words:
    assert word in message


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.EBADF, "Bad file descriptor"),
    OSError("an error without a number"),
    UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range"),
    RuntimeError("something else"),
    RecursionError("maximum recursion depth exceeded"),
    jax.errors.JaxRuntimeError("INTERNAL: a defect"),
    KeyError("x"),
    AssertionError(),
  ],
  ids=lambda e: f"{type(e).__name__} {e!s:.30}",
)
def test_a_bug_shows_its_traceback(error):
  with pytest.raises(type(error)) as raised:
    ended(error)
  assert raised.value is error


def test_an_error_of_an_available_device_is_a_bug():
  """On any named platform: its error is a bug."""
  assert jax.devices()
  assert situations.told(ValueError("x")) is None


COMMANDS = {
  "main": SMALL,
  "evaluate": (),
  "generate": ("--what=samples", "--out={}/a.png"),
  "explore": (),
  "compare": ("--families=gaussian/elbo", "--seeds=1", *SMALL),
  "export": ("--what=decoder", "--format=safetensors", "--out={}/out"),
}


@pytest.fixture(scope="module")
def run(program, tmp_path_factory):
  folder = tmp_path_factory.mktemp("situations") / "run"
  program.done(*SMALL, f"--workdir={folder}")
  return folder


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_unavailable_platform(program, run, tmp_path, command, platform):
  if platform == "cuda" and os.path.exists("/dev/nvidiactl"):
    pytest.skip("there is one here")
  workdir = tmp_path / "new" if command in ("main", "compare") else run
  flags = [flag.format(tmp_path) for flag in COMMANDS[command]]
  ran = subprocess.run(
    program.argv(*flags, f"--workdir={workdir}", module=f"gamix_jax.{command}"),
    env=program.env(JAX_PLATFORMS=platform),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  if "pip install" in ran.stderr:  # Gradio's absence, reported first
    pytest.skip("explore is not installed")
  assert_refused(ran, f"JAX_PLATFORMS={platform}", "Available: cpu.")
