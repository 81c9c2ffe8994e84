"""The optimisers of `config.optim`: optax's, and Adam as Keras writes it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gamix_jax.errors import UserError


def scale_by_keras_adam(
  b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
  """Adam with epsilon on the uncorrected sqrt(v), as Keras has it.

      u = sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

  Kingma & Ba, arXiv:1412.6980, end of section 2, with their eps-hat. optax's
  `adam` puts eps behind the correction, which differs at the first steps.
  Keras rounds the decays to float32 before it raises them to t; so does this.
  """

  def init(params):
    mu, nu = (optax.tree.zeros_like(params) for _ in range(2))
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

  def update(grads, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(grads, state.mu, b1, 1)
    nu = optax.tree.update_moment(grads, state.nu, b2, 2)
    kind = jnp.result_type(*jax.tree.leaves(grads))
    t = count.astype(kind)
    power1, power2 = (jnp.asarray(np.float32(b), kind) ** t for b in (b1, b2))
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
  """Of one section of `config.optim`; `steps` is the run's length.

  Raises:
    UserError: unknown name or schedule.
  """
  if name not in SCALES:
    raise UserError(
      f"optim.*.name={name!r} is not an optimiser; "
      f"there are: {', '.join(SCALES)}."
    )
  if schedule not in SCHEDULES:
    raise UserError(
      f"optim.*.schedule={schedule!r} is not a schedule; "
      f"there are: {', '.join(SCHEDULES)}."
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
