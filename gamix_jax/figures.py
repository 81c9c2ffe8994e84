"""Shared by all figures: names as literal text, atomic PNG files."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gamix_jax import files, marks

LONGEST = 48  # letters of a name that a figure shows


@contextlib.contextmanager
def literal() -> Iterator[None]:
  """Context manager or decorator for code that draws and saves a figure.

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
  r"""A user's name for something, in one line of at most `longest` letters.

  Unprintable characters (a newline, a byte that is not UTF-8) are escaped as
  in Python: `\n`, `\udce9`.
  """
  shown = "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in name
  )
  return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def save(fig: Figure, path: Path) -> None:
  """Writes a figure as PNG, complete or not at all.

  Raises:
    OSError: it cannot be written.
  """
  FigureCanvasAgg(fig)
  with files.atomic(path) as temporary:
    # The metadata leaves out matplotlib's version, so that the file depends on
    # the data alone.
    fig.savefig(temporary, format="png", metadata=marks.METADATA)
