"""Numbers of an evaluation: a value, or the reason why there is none."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from gamix_jax.errors import UserError
from gamix_jax.metrics.specs import find

FORMAT = 1
DIGITS = 7  # kept of a number: float32 has no more

Number = dict[str, Any]


class Results:
  """What is written to metrics.json.

  Attributes:
    protocol: what holds for all numbers.
    found: {name: number}, in the order they came.
  """

  def __init__(self, protocol: dict[str, Any]):
    """`protocol` is that of all numbers."""
    self.protocol = protocol
    self.found: dict[str, Number] = {}

  def add(
    self,
    name: str,
    value: float | tuple[float, float | None],
    **own: Any,
  ) -> None:
    """A number, or a pair of it and its standard error.

    Args:
      name: of the number, in the table of `metrics.specs`, which has its unit.
      value: see above; what is not finite has no value.
      **own: its protocol, besides what holds for all.
    """
    value, error = value if isinstance(value, tuple) else (value, None)
    unit = find(name).unit
    number = {"value": _kept(value), "unit": unit, "protocol": own}
    if error is not None:
      number["error"] = _kept(error)
    if number["value"] is None:
      number["reason"] = f"it came out as {float(value)}"
    self.found[name] = number

  def missing(self, names: Sequence[str], reason: str, **own: Any) -> None:
    """Numbers that have no value."""
    for name in names:
      self.found[name] = {"value": None, "reason": reason, "protocol": own}

  def attempt(
    self, names: Sequence[str], measure: Callable[[], None], **own: Any
  ) -> None:
    """Measures; what is refused has the refusal for a reason."""
    try:
      measure()
    except UserError as e:
      left = [name for name in names if name not in self.found]
      self.missing(left, str(e), **own)

  @property
  def values(self) -> dict[str, float]:
    """{name: value} of those that have one."""
    return {
      name: number["value"]
      for name, number in self.found.items()
      if number["value"] is not None
    }

  def to_json(self) -> str:
    """Sorted by name; every number has its whole protocol."""
    numbers = {
      name: number | {"protocol": self.protocol | number["protocol"]}
      for name, number in self.found.items()
    }
    out = {"format": FORMAT, "protocol": self.protocol, "numbers": numbers}
    return json.dumps(out, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _kept(value: float) -> float | None:
  """So many digits; None of what is not finite."""
  value = float(value)
  return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
