"""The optimisers of `config.optim`: Adam, and Keras' variant of it.

They can skip a step: `update(..., keep=False)` leaves their state as it is.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gamix_jax.errors import UserError

Keep = jax.Array | bool


def scale_by_adam(
  b1: float, b2: float, eps: float, keras: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Adam, whose state stays as it is where the argument `keep` is False.

      u = sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps')
      eps' = eps sqrt(1 - b2^t), or eps as in Keras

  Up to rounding, the first is optax's `scale_by_adam` with its state. The
  second is the form at the end of section 2 of Kingma & Ba, arXiv:1412.6980,
  with their eps-hat, and differs in the first steps. As in Keras, the decays
  are then rounded to float32 before they are raised to the power t.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: see above.
    keras: whether to compute Keras' form.
  """

  def init(params):
    mu, nu = (optax.tree.zeros_like(params) for _ in range(2))
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

  def update(grads, state, params=None, *, keep: Keep = True, **extra):
    del params, extra
    count = optax.safe_increment(state.count)
    # The update is computed from the moments that are kept. From the new ones,
    # with the choice made afterwards, XLA's CPU backend would compute them
    # twice and copy the old ones, which takes longer; see benchmarks/LOG.md.
    mu = _select(
      keep, optax.tree.update_moment(grads, state.mu, b1, 1), state.mu
    )
    nu = _select(
      keep, optax.tree.update_moment(grads, state.nu, b2, 2), state.nu
    )
    dtype = jnp.result_type(*jax.tree.leaves(grads))
    t = count.astype(dtype)
    correction1, correction2 = (
      1 - jnp.asarray(np.float32(b) if keras else b, dtype) ** t
      for b in (b1, b2)
    )
    root = jnp.sqrt(correction2)
    rate, shift = root / correction1, eps if keras else eps * root
    updates = jax.tree.map(
      lambda m, v: rate * m / (jnp.sqrt(v) + shift), mu, nu
    )
    count = jnp.where(keep, count, state.count)
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformationExtraArgs(init, update)


def _guarded(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
  """`inner`, whose state stays as it is where the argument `keep` is False."""

  def update(updates, state, params=None, *, keep: Keep = True, **extra):
    del extra
    updates, new = inner.update(updates, state, params)
    return updates, _select(keep, new, state)

  return optax.GradientTransformationExtraArgs(inner.init, update)


def _select(keep: Keep, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda n, o: jnp.where(keep, n, o), new, old)


SCALES = {
  "adam": scale_by_adam,
  "keras_adam": partial(scale_by_adam, keras=True),
}
SCHEDULES = ("constant", "cosine")


def optimizer(  # noqa: PLR0913 (the section, key by key)
  steps: int,
  *,
  name: str,
  learning_rate: float,
  b1: float,
  b2: float,
  eps: float,
  clip: float,
  warmup: int,
  schedule: str,
) -> optax.GradientTransformationExtraArgs:
  """Creates the optimiser of a section of `config.optim`.

  Its `update` has the argument `keep`: False keeps the state as it is. The
  updates that it returns then mean nothing.

  Args:
    steps: length of the run.
    name: key of `SCALES`.
    learning_rate: its maximum, after warm-up.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: see the optimiser.
    clip: maximum global norm of the gradient; 0: no clipping.
    warmup: steps of linear warm-up.
    schedule: one of `SCHEDULES`.

  Raises:
    UserError: unknown name or schedule.
  """
  if name not in SCALES:
    raise UserError(
      f"optim.*.name={name!r} is not an optimiser; "
      f"use one of: {', '.join(SCALES)}."
    )
  if schedule not in SCHEDULES:
    raise UserError(
      f"optim.*.schedule={schedule!r} is not a schedule; "
      f"use one of: {', '.join(SCHEDULES)}."
    )
  rate = learning_rate
  if schedule == "cosine":
    rate = optax.cosine_decay_schedule(learning_rate, max(steps - warmup, 1))
  if warmup:
    ramp = optax.linear_schedule(0.0, learning_rate, warmup)
    after = rate if callable(rate) else optax.constant_schedule(rate)
    rate = optax.join_schedules([ramp, after], [warmup])
  chain = [
    SCALES[name](b1, b2, eps),
    _guarded(optax.scale_by_learning_rate(rate)),
  ]
  if clip:
    chain.insert(0, optax.clip_by_global_norm(clip))
  return optax.chain(*chain)
