"""What all figures have in common: words as they are, files whole."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gamix_jax import marks

LONGEST = 48  # letters of a name that are shown


@contextlib.contextmanager
def literal() -> Iterator[None]:
  """Around (or above, as a decorator) what makes a figure and writes it.

  A class called `$x_1$` is drawn like that, and not as a formula. A letter
  that the font lacks is drawn as a box, without a warning.
  """
  with (
    rc_context({"text.parse_math": False, "text.usetex": False}),
    warnings.catch_warnings(),
  ):
    warnings.filterwarnings("ignore", r"Glyph .* missing from")
    yield


def named(name: str, longest: int = LONGEST) -> str:
  r"""A user's name of something in a line of its own, at most so long.

  What cannot be printed (a line's end, a byte that is not UTF-8) is written as
  in Python: `\n`, `\udce9`.
  """
  shown = "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in name
  )
  return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def save(fig: Figure, path: Path) -> None:
  """Writes a figure as PNG, whole or not at all.

  Raises:
    OSError: it cannot be written.
  """
  FigureCanvasAgg(fig)
  temporary = path.with_name(f".{path.name}.part")
  try:
    # Without the library's version in it, the file is a function of the data.
    fig.savefig(temporary, format="png", metadata=marks.METADATA)
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
