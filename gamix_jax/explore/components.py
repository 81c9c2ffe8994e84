"""What the pages share: Gradio without telemetry, and messages of errors."""

import importlib
import os
from collections.abc import Callable
from typing import Any

from gamix_jax.errors import UserError

# Of controls that move: only the newest position is computed.
NEWEST_ONLY = dict(trigger_mode="always_last", show_progress="hidden")


def gradio() -> Any:
  """Imports gradio, with its telemetry disabled.

  Raises:
    UserError: if gradio is not installed.
  """
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
  os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
  try:
    return importlib.import_module("gradio")
  except ImportError as e:
    raise UserError(
      f"The page needs gradio, which cannot be imported ({e}); use pip install "
      "'gamix_jax[explore]', or '.[explore]' in a checkout."
    ) from e


def with_message(function: Callable, outputs: int) -> Callable:
  """Adds a message as the last output: "", or the text of a UserError.

  After an error the other outputs keep their values.
  """
  gr = gradio()

  def call(*args):
    try:
      results = function(*args)
    except UserError as e:
      return (*[gr.skip()] * outputs, f"**{e}**")
    return (*results, "")

  return call
