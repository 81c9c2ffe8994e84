"""The optimisers of `config.optim`: from optax, and Keras' variant of Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gamix_jax.errors import UserError


def scale_by_keras_adam(
  b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
  """Adam with eps added to the uncorrected sqrt(v), as in Keras.

      u = sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

  This is the form at the end of section 2 of Kingma & Ba, arXiv:1412.6980, with
  their eps-hat. optax's `adam` adds eps after the bias correction, which
  differs in the first steps. As in Keras, the decays are rounded to float32
  before they are raised to the power t.
  """

  def init(params):
    mu, nu = (optax.tree.zeros_like(params) for _ in range(2))
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

  def update(grads, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(grads, state.mu, b1, 1)
    nu = optax.tree.update_moment(grads, state.nu, b2, 2)
    dtype = jnp.result_type(*jax.tree.leaves(grads))
    t = count.astype(dtype)
    power1, power2 = (jnp.asarray(np.float32(b), dtype) ** t for b in (b1, b2))
    rate = jnp.sqrt(1 - power2) / (1 - power1)
    updates = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + eps), mu, nu)
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


SCALES = {
  "adam": optax.scale_by_adam,
  "keras_adam": scale_by_keras_adam,
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
) -> optax.GradientTransformation:
  """Creates the optimiser of a section of `config.optim`.

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
  chain = [SCALES[name](b1, b2, eps), optax.scale_by_learning_rate(rate)]
  if clip:
    chain.insert(0, optax.clip_by_global_norm(clip))
  return optax.chain(*chain)
