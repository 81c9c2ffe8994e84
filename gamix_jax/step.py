"""THE PAPER, 4: one training step.

One forward pass; two pullbacks of it at the same, old weights, one of the
VAE's loss and one of the discriminator's; two updates. The published step.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from gamix_jax import train_metrics
from gamix_jax.modality import IMAGE, Modalities, Modality, to_float
from gamix_jax.networks import VAEOutput
from gamix_jax.objectives import (
  AdversarialLoss,
  Objective,
  TermWeights,
  weighted_sum,
)
from gamix_jax.parallel.mesh import ShardingPlan, replicated

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@struct.dataclass
class NetworkState:
  """One network's arrays."""

  params: Any
  batch_stats: Any
  opt_state: Any


@struct.dataclass
class TrainState:
  """Everything a run is at a step, arrays only: it is the checkpoint.

  Attributes:
    step: int32, steps done.
    vae: encoder, posterior head and decoder.
    disc: the discriminator; empty where there is none.
    objective: the objective's own state; most have none.
    ema: the exponential average of the VAE's parameters.
    nonfinite: int32 [2]: updates skipped for a non-finite number, in all and
      in a row until now.
  """

  step: jax.Array
  vae: NetworkState
  disc: NetworkState
  objective: Any
  ema: Any
  nonfinite: jax.Array


@dataclasses.dataclass(frozen=True)
class TrainSpec:
  """What does not change in a run.

  Attributes:
    modalities: what is observed, by the keys of a batch.
    vae: a module that returns a `VAEOutput`; see `networks.VAE`.
    disc: the discriminator of images, or None.
    vae_optimizer: of the VAE.
    disc_optimizer: of the discriminator.
    objective: the VAE's terms.
    adversarial: the discriminator's terms; None where there is none.
    weights: of all terms.
    disc_start: the discriminator's first step.
    ema_decay: of the averaged parameters.
    dtype: of parameters and of images as floats.
    seed: of initial weights and of all draws.
  """

  modalities: Modalities
  vae: nn.Module
  disc: nn.Module | None
  vae_optimizer: optax.GradientTransformation
  disc_optimizer: optax.GradientTransformation
  objective: Objective
  adversarial: AdversarialLoss | None
  weights: TermWeights
  disc_start: int
  ema_decay: float
  dtype: Any
  seed: int

  @property
  def image(self) -> Modality:
    """The modality that is shown, and that a discriminator looks at."""
    return self.modalities[IMAGE]

  def key(self, step: jax.Array | int) -> jax.Array:
    """The key of all draws of a step: a function of (seed, step)."""
    return jax.random.fold_in(jax.random.key(self.seed), step)

  def observations(self, batch: Batch) -> dict[str, jax.Array]:
    """A batch's entries that are modalities, as floats."""
    return {k: to_float(batch[k], self.dtype) for k in self.modalities}


def init(spec: TrainSpec) -> TrainState:
  """The state before step 0, a function of the spec's seed."""
  keys = jax.random.split(jax.random.key(spec.seed), 3)
  x = {
    k: jnp.zeros((1, *m.shape), spec.dtype) for k, m in spec.modalities.items()
  }
  variables = spec.vae.init(keys[0], x, keys[2])
  vae = NetworkState(
    variables["params"],
    variables.get("batch_stats", {}),
    spec.vae_optimizer.init(variables["params"]),
  )
  disc = NetworkState({}, {}, ())
  if spec.disc is not None:
    variables = spec.disc.init(keys[1], x[IMAGE])
    disc = NetworkState(
      variables["params"],
      variables.get("batch_stats", {}),
      spec.disc_optimizer.init(variables["params"]),
    )
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    vae=vae,
    disc=disc,
    objective=spec.objective.init(),
    ema=jax.tree.map(jnp.copy, vae.params),
    nonfinite=jnp.zeros(2, jnp.int32),
  )


def _apply(module: nn.Module, params: Any, net: NetworkState, *args, **kwargs):
  """A network in training: its output and its new batch statistics."""
  out, new = module.apply(
    {"params": params, "batch_stats": net.batch_stats},
    *args,
    train=True,
    mutable=["batch_stats"],
    **kwargs,
  )
  return out, new.get("batch_stats", {})


def _discriminate(spec, params, net, x, x_hat, key):
  """Logits of x [b, ...] and of x_hat [s, b, ...].

  From one pass, or from one of each where no norm looks at both: the VAE's
  pullback then goes through the fake images alone, and does not propagate
  zeros to the real ones.

  Draws lie beside their image along the batch, not behind all images, so that
  on a mesh every device looks at its own images.
  """

  def rows(each):
    return einops.rearrange(each, "s b ... -> (b s) ...")

  def by_draw(logits):
    return einops.rearrange(logits, "(b s) ... -> s b ...", b=len(x))

  def of(images, key):
    return _apply(spec.disc, params, net, images, rngs={"dropout": key})

  if spec.disc.joint:
    logits, stats = of(rows(jnp.concatenate([x[None], x_hat])), key)
    logits = by_draw(logits)
    return logits[0], logits[1:], stats
  of_real, of_fake = jax.random.split(key)  # no mask is used twice
  real, stats = of(x, of_real)
  fake, _ = of(rows(x_hat), of_fake)  # such norms have no statistics
  return real, by_draw(fake), stats


def losses(
  spec: TrainSpec, state: TrainState, batch: Batch, params: tuple[Any, Any]
) -> tuple[tuple[jax.Array, jax.Array], Any]:
  """The forward pass: ((VAE's loss, discriminator's loss), all else).

  Args:
    spec: see there.
    state: its parameters are not looked at, `params` are.
    batch: of every modality [b, ...], such as "image" [b, h, w, c], uint8 or in
      [-1, 1]; optionally "eps", the standard noise to use (of the shape of the
      posterior's `noise_shape`).
    params: the VAE's and the discriminator's.
  """
  noise, dropout = jax.random.split(spec.key(state.step))
  output, vae_stats = _apply(
    spec.vae,
    params[0],
    state.vae,
    spec.observations(batch),
    noise,
    spec.objective.num_samples,
    eps=batch.get("eps"),
    step=state.step,
  )
  terms, info, objective_state = spec.objective(output, state.objective)
  metrics = train_metrics.posterior(output.q) | info
  metrics |= train_metrics.code(output, spec.modalities)
  disc_stats, disc_terms = {}, {}
  if spec.disc is not None:
    x_hat = spec.image.likelihood.mean(output.x_hat[IMAGE])
    real, fake, disc_stats = _discriminate(
      spec, params[1], state.disc, output.x[IMAGE], x_hat, dropout
    )
    disc_terms = spec.adversarial(real, fake, output.w)
    terms["adversarial"] = disc_terms.pop("adversarial")
    metrics |= train_metrics.logits(real, fake, output.w)
  vae_loss = weighted_sum(terms, spec.weights.vae_at(state.step))
  disc_loss = weighted_sum(disc_terms, spec.weights.disc)
  disc_loss = jnp.asarray(disc_loss, vae_loss.dtype)
  metrics |= {f"vae/{k}": v for k, v in terms.items()}
  metrics |= {f"disc/{k}": v for k, v in disc_terms.items()}
  metrics |= {"vae/loss": vae_loss, "disc/loss": disc_loss}
  states = (vae_stats, disc_stats, jax.lax.stop_gradient(objective_state))
  return (vae_loss, disc_loss), (metrics, states)


def gradients(
  spec: TrainSpec,
  state: TrainState,
  batch: Batch,
  layout: ShardingPlan | None = None,
):
  """Gradients of each loss for its own network, and what else came of it.

  Two pullbacks of one forward pass. The discriminator's share of the first
  and the VAE's of the second are dropped, so XLA does not compute them.
  """
  params = (state.vae.params, state.disc.params)
  if layout is not None:
    params = layout.replicate(params)
  (vae_loss, disc_loss), pullback, aux = jax.vjp(
    partial(losses, spec, state, batch), params, has_aux=True
  )
  one, zero = jnp.ones_like(vae_loss), jnp.zeros_like(vae_loss)
  vae_grads = pullback((one, zero))[0][0]
  disc_grads = pullback((zero, one))[0][1]
  grads = (vae_grads, disc_grads)
  if layout is not None:
    grads = layout.shard(grads)
  return (vae_loss, disc_loss), grads, aux


def _update(
  net: NetworkState, optimizer, grads, stats, keep: jax.Array
) -> NetworkState:
  """The network after the update, or as it was where keep is False."""
  updates, opt_state = optimizer.update(grads, net.opt_state, net.params)
  new = NetworkState(optax.apply_updates(net.params, updates), stats, opt_state)
  return _select(keep, new, net)


def _select(keep: jax.Array, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda n, o: jnp.where(keep, n, o), new, old)


def _average(spec: TrainSpec, state: TrainState, params: Any) -> Any:
  """ema + (1 - d)(params - ema), d = min(decay, (1 + t) / (10 + t))."""
  t = state.step.astype(jnp.float32)
  decay = jnp.minimum(spec.ema_decay, (1 + t) / (10 + t))
  return jax.tree.map(
    lambda e, p: e + (1 - decay).astype(e.dtype) * (p - e), state.ema, params
  )


def train_step(
  spec: TrainSpec,
  state: TrainState,
  batch: Batch,
  layout: ShardingPlan | None = None,
) -> tuple[TrainState, Metrics]:
  """One step: a state in, a state out. Jit it with `state` donated.

  A non-finite loss or gradient leaves its network as it was and is counted.

  Args:
    spec: networks, optimisers, weights; static.
    state: donated.
    batch: see `losses`; the global batch.
    layout: of a state whose arrays lie in parts on several devices; static.

  Returns:
    The next state; metrics `vae/<term>`, `disc/<term>` (unweighted, nats),
    gradient norms, the posterior's and the logits' health; scalars but for
    `population/mean` and `population/var`, which are [d].
  """
  (vae_loss, disc_loss), grads, aux = gradients(spec, state, batch, layout)
  metrics, (vae_stats, disc_stats, objective_state) = aux
  vae_norm, disc_norm = (optax.tree.norm(g) for g in grads)
  vae_ok = jnp.isfinite(vae_loss) & jnp.isfinite(vae_norm)
  disc_ok = jnp.isfinite(disc_loss) & jnp.isfinite(disc_norm)

  vae = _update(state.vae, spec.vae_optimizer, grads[0], vae_stats, vae_ok)
  disc = state.disc
  if spec.disc is not None:
    started = state.step >= spec.disc_start
    disc = _update(
      disc, spec.disc_optimizer, grads[1], disc_stats, disc_ok & started
    )
  bad = ~(vae_ok & disc_ok)
  nonfinite = jnp.stack(
    [state.nonfinite[0] + bad, jnp.where(bad, state.nonfinite[1] + 1, 0)]
  )
  metrics |= {"vae/grad_norm": vae_norm, "nonfinite/total": nonfinite[0]}
  metrics["nonfinite/consecutive"] = nonfinite[1]
  if spec.disc is not None:
    metrics["disc/grad_norm"] = disc_norm
    metrics["disc/grad_ratio"] = disc_norm / (vae_norm + 1e-12)
  state = TrainState(
    step=state.step + 1,
    vae=vae,
    disc=disc,
    objective=_select(vae_ok, objective_state, state.objective),
    ema=_average(spec, state, vae.params),
    nonfinite=nonfinite,
  )
  return state, metrics


def jit_train_step(
  spec: TrainSpec, layout: ShardingPlan, **options: Any
) -> Callable:
  """`train_step` compiled for a layout: (state, batch) -> (state, metrics).

  The state is donated, and the next one has its shardings; every device has the
  complete metrics.

  Args:
    spec: see `train_step`.
    layout: that of the state.
    **options: of `jax.jit`.
  """
  shardings = layout.shardings(jax.eval_shape(partial(init, spec)))
  return jax.jit(
    partial(train_step, spec, layout=layout),
    donate_argnums=0,
    out_shardings=(shardings, replicated(layout.mesh)),
    **options,
  )


def init_sharded(spec: TrainSpec, shardings: Any) -> TrainState:
  """`init`, compiled, with these shardings (of `ShardingPlan.shardings`)."""
  # On a CPU the optimising passes take longer than what they speed up.
  cpu = jax.default_backend() == "cpu"
  return jax.jit(
    partial(init, spec),
    out_shardings=shardings,
    compiler_options={"xla_backend_optimization_level": 0} if cpu else None,
  )()


def finite(state: TrainState) -> jax.Array:
  """bool []: whether every number of it is."""
  return jnp.stack(
    [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)]
  ).all()


def eval_step(
  spec: TrainSpec, draws: int, params: Any, batch_stats: Any, batch: Batch
) -> Metrics:
  """Held-out numbers, one an image: see `train_metrics.held_out`.

  Args:
    spec: the run's.
    draws: of z per image (and component), for the two bounds.
    params: of the VAE, raw or averaged.
    batch_stats: of the VAE.
    batch: "image" as in `losses`; "step", the key's; and what else there is,
      which is handed through.

  Returns:
    Those numbers, and "posterior", q(z | x) of the images.
  """
  x = spec.observations(batch)
  key = jax.random.fold_in(spec.key(batch["step"]), 1)
  bound = spec.vae.bind({"params": params, "batch_stats": batch_stats})
  posterior = bound.encode(x)
  q = bound.with_prior(posterior)
  z, w = q.sample(key, draws)
  # The mean and the draws through the decoder at once: one network to compile.
  x_hat = bound.decode(jnp.concatenate([q.mean()[None], z]))
  of_mean = {k: v[0] for k, v in x_hat.items()}
  of_draws = {k: v[1:] for k, v in x_hat.items()}
  rest = {k: v for k, v in batch.items() if k not in (*x, "step")}
  rest["posterior"] = posterior
  return rest | train_metrics.held_out(
    VAEOutput(x, q, z, w, of_draws),
    of_mean,
    spec.modalities,
    spec.weights.vae["recon"],
  )
