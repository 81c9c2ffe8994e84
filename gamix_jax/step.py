"""THE PAPER, 4: one training step.

As published: one forward pass, then two pullbacks of it at the same weights,
one for the VAE's loss and one for the discriminator's, then both updates.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from gamix_jax import occlusion, train_metrics
from gamix_jax.modality import IMAGE, MASK, Modalities, Modality, to_float
from gamix_jax.multimodal import MultimodalVAE
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
# Folded into the key of a step: for an objective's own draws, for draws of the
# prior that its discriminator sees, and for what is hidden from the encoder.
OBJECTIVE_KEY, PRIOR_KEY, HIDDEN_KEY = 2, 3, 4
CODE = "code"  # the parameters of the discriminator of codes, among its others


@struct.dataclass
class NetworkState:
  """Parameters, batch statistics and optimiser state of one network."""

  params: Any
  batch_stats: Any
  opt_state: Any


@struct.dataclass
class TrainState:
  """The complete state of a run, arrays only; a checkpoint holds all of it.

  Attributes:
    step: int32, the number of steps done.
    vae: encoder, posterior head and decoder.
    disc: the discriminator; empty if there is none. That of codes is in its
      parameters under "code".
    objective: the objective's own state; empty for most.
    ema: the exponential moving average of the VAE's parameters.
    nonfinite: int32 [2], skipped updates: in total, and in a row up to now.
  """

  step: jax.Array
  vae: NetworkState
  disc: NetworkState
  objective: Any
  ema: Any
  nonfinite: jax.Array


@dataclasses.dataclass(frozen=True)
class TrainSpec:
  """What stays constant during a run.

  Attributes:
    modalities: the observations in a batch, by key.
    vae: a module that returns a `VAEOutput`; see `networks.VAE` and
      `multimodal.MultimodalVAE`.
    disc: the discriminator of images, or None.
    vae_optimizer: updates the VAE; skips a step with `keep=False`.
    disc_optimizer: updates the discriminator.
    objective: computes the terms of the VAE's loss.
    adversarial: computes the discriminator's terms; None without one.
    weights: the weights of all terms.
    disc_start: the first step that updates the discriminator.
    ema_decay: decay of the averaged parameters.
    dtype: of parameters, and of observations as floats.
    seed: determines the initial weights and all random draws.
    code_disc: an objective's own discriminator of codes, or None.
    accumulate: parts of a batch that are processed one after the other; their
      mean gradient makes the update.
    occlude: what is hidden from the encoder: "none", "half" or "box".
    started: whether the discriminator of images is computed; see `at`.
  """

  modalities: Modalities
  vae: nn.Module
  disc: nn.Module | None
  vae_optimizer: optax.GradientTransformationExtraArgs
  disc_optimizer: optax.GradientTransformationExtraArgs
  objective: Objective
  adversarial: AdversarialLoss | None
  weights: TermWeights
  disc_start: int
  ema_decay: float
  dtype: Any
  seed: int
  code_disc: nn.Module | None = None
  accumulate: int = 1
  occlude: str = occlusion.NONE
  started: bool = True

  def at(self, step: int) -> Self:
    """What a step needs: before `disc_start`, no discriminator of images.

    It has no effect on the VAE then, and a step without it is faster. Both
    specs have the same state. With a discriminator of codes, both take part in
    every step, since the objective's terms need that one.
    """
    if step >= self.disc_start or self.disc is None or self.code_disc:
      return self
    of_vae = {k: v for k, v in self.weights.vae.items() if k != "adversarial"}
    weights = dataclasses.replace(self.weights, vae=of_vae, disc={})
    return dataclasses.replace(self, weights=weights, started=False)

  @property
  def has_discriminator(self) -> bool:
    """Whether the run has a discriminator, of images or of codes."""
    return self.disc is not None or self.code_disc is not None

  @property
  def image(self) -> Modality:
    """The modality that pictures and the discriminator use."""
    return self.modalities[IMAGE]

  def key(self, step: jax.Array | int) -> jax.Array:
    """The PRNG key of a step, a function of (seed, step)."""
    return jax.random.fold_in(jax.random.key(self.seed), step)

  @property
  def multimodal(self) -> bool:
    """Whether batches have several modalities and a mask of the observed."""
    # A single modality may be named "image", too.
    return isinstance(self.vae, MultimodalVAE)

  def observations(self, batch: Batch) -> dict[str, jax.Array]:
    """The modalities of a batch, and its mask if it has one, as floats.

    With the entry "hidden" if the batch has it.
    """
    names = [*self.modalities, *([MASK] if self.multimodal else [])]
    x = {k: to_float(batch[k], self.dtype) for k in names}
    if occlusion.HIDDEN in batch:
      x[occlusion.HIDDEN] = batch[occlusion.HIDDEN]
    return x

  def occluded(
    self,
    batch: Batch,
    number: jax.Array | int = 0,
    key: jax.Array | None = None,
  ) -> Batch:
    """The batch with the entry "hidden", if the run has it; see `occlusion`.

    Args:
      batch: with the entry "image".
      number: of the batch, among batches of the same size.
      key: of the draws; see `hidden`.
    """
    if self.occlude == occlusion.NONE:
      return batch
    size = len(batch[IMAGE])
    rows = number * size + jnp.arange(size)
    return {**batch, occlusion.HIDDEN: self.hidden(rows, key)}

  def hidden(self, rows: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """What is hidden of the images with these numbers, int [b, 4].

    Args:
      rows: int [b].
      key: of the draws; None: those that are used outside training.
    """
    key = jax.random.key(0) if key is None else key
    return occlusion.draw_rows(self.occlude, key, rows, self.image.shape)

  def batch_shapes(self, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What `observations` reads from a batch of a size."""
    shapes = {
      name: jax.ShapeDtypeStruct((size, *m.shape), m.dtype)
      for name, m in self.modalities.items()
    }
    if self.multimodal:
      shape = (size, len(self.modalities))
      shapes[MASK] = jax.ShapeDtypeStruct(shape, np.float32)
    return shapes


def init(spec: TrainSpec) -> TrainState:
  """Returns the state before step 0, a function of the spec's seed."""
  keys = jax.random.split(jax.random.key(spec.seed), 3)
  x = {
    k: jnp.zeros(v.shape, spec.dtype) for k, v in spec.batch_shapes(1).items()
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
    disc = disc.replace(
      params=variables["params"], batch_stats=variables.get("batch_stats", {})
    )
  if spec.code_disc is not None:
    z = jnp.zeros((1, spec.vae.latent), spec.dtype)
    variables = spec.code_disc.init(jax.random.fold_in(keys[1], 1), z)
    disc = disc.replace(params=disc.params | {CODE: variables["params"]})
  if disc.params:
    disc = disc.replace(opt_state=spec.disc_optimizer.init(disc.params))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    vae=vae,
    disc=disc,
    objective=spec.objective.init(),
    ema=jax.tree.map(jnp.copy, vae.params),
    nonfinite=jnp.zeros(2, jnp.int32),
  )


def _apply(module: nn.Module, params: Any, net: NetworkState, *args, **kwargs):
  """Applies a network in training mode: output and new batch statistics."""
  out, new = module.apply(
    {"params": params, "batch_stats": net.batch_stats},
    *args,
    train=True,
    mutable=["batch_stats"],
    **kwargs,
  )
  return out, new.get("batch_stats", {})


def _discriminate(spec, params, net, x, x_hat, key):
  """Logits of x [b, ...] and of x_hat [s, b, ...], and new batch statistics.

  Real and fake images share one pass only if the discriminator's normalisation
  needs both. Otherwise each has its own, so that the VAE's pullback does not
  propagate zeros to the real images.

  The draws of an image follow each other along the batch axis, so that on a
  mesh every device processes its own images.
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
  of_real, of_fake = jax.random.split(key)  # different dropout masks
  real, stats = of(x, of_real)
  fake, _ = of(rows(x_hat), of_fake)  # these norms have no statistics
  return real, by_draw(fake), stats


def losses(
  spec: TrainSpec,
  state: TrainState,
  batch: Batch,
  params: tuple[Any, Any],
  part: jax.Array | None = None,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
  """Computes both losses in one forward pass.

  Args:
    spec: of the run.
    state: everything but its parameters is used.
    batch: an array [b, ...] for every modality, such as "image" [b, h, w, c],
      uint8 or in [-1, 1]; of several modalities also "mask" [b, m], see
      `modality`; optionally "eps", noise in place of random draws (of
      the posterior's `noise_shape`).
    params: of the VAE and of the discriminator.
    part: which part of a batch this is, if gradients are accumulated.

  Returns:
    (VAE loss, discriminator loss), and (metrics, (the VAE's batch statistics,
    the discriminator's, the objective's next state)).
  """
  key = spec.key(state.step)
  if part is not None:
    key = jax.random.fold_in(key, part)
  noise, dropout = jax.random.split(key)
  batch = spec.occluded(batch, key=jax.random.fold_in(key, HIDDEN_KEY))
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
  output = output.replace(
    key=jax.random.fold_in(key, OBJECTIVE_KEY), params=params[0]
  )
  if spec.code_disc is not None:
    code_params = {"params": params[1][CODE]}
    shape = output.z.shape[1:]
    of_prior = jax.random.fold_in(key, PRIOR_KEY)
    y = jax.random.normal(of_prior, shape, output.z.dtype)
    logits = (spec.code_disc.apply(code_params, v) for v in (y, output.z))
    output = output.replace(code_logits=tuple(logits))
  terms, info, objective_state = spec.objective(output, state.objective)
  metrics = train_metrics.posterior(output.q) | info
  metrics |= train_metrics.code(output, spec.modalities)
  disc_stats, disc_terms = {}, {}
  if spec.code_disc is not None:
    disc_terms = spec.objective.discriminator_terms(output)
    metrics |= train_metrics.code_logits(*output.code_logits, output.w)
  if spec.disc is not None and spec.started:
    x_hat = spec.image.likelihood.mean(output.x_hat[IMAGE])
    real, fake, disc_stats = _discriminate(
      spec, params[1], state.disc, output.x[IMAGE], x_hat, dropout
    )
    disc_terms |= spec.adversarial(real, fake, output.w)
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
) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, Any], Any]:
  """Computes the gradient of each loss with respect to its own network.

  Two pullbacks of one forward pass. The discriminator's part of the first
  and the VAE's part of the second are dropped, so XLA does not compute them.

  Returns:
    Both losses, both gradients, and the auxiliary output of `losses`. With
    `spec.accumulate` over 1, means over the parts of the batch.
  """
  params = (state.vae.params, state.disc.params)
  if layout is not None:
    params = layout.replicate(params)

  def of(batch, part=None):
    (vae_loss, disc_loss), pullback, aux = jax.vjp(
      partial(losses, spec, state, batch, part=part), params, has_aux=True
    )
    one, zero = jnp.ones_like(vae_loss), jnp.zeros_like(vae_loss)
    vae_grads = pullback((one, zero))[0][0]
    disc_grads = pullback((zero, one))[0][1]
    grads = (vae_grads, disc_grads)
    if layout is not None:
      grads = layout.shard(grads)
    return (vae_loss, disc_loss), grads, aux

  if spec.accumulate == 1:
    return of(batch)
  return _accumulated(of, batch, spec.accumulate)


def _accumulated(of: Callable, batch: Batch, k: int) -> tuple[Any, Any, Any]:
  """Averages losses, gradients and metrics over k parts of a batch.

  The parts are every k-th image, so that on a mesh every device processes its
  own images.
  """
  parts = {
    name: einops.rearrange(v, "(m k) ... -> k m ...", k=k)
    for name, v in batch.items()
  }

  def body(total, inputs):
    *losses_and_grads, aux = of(*inputs)
    return jax.tree.map(jnp.add, total, losses_and_grads), aux

  first = {name: v[0] for name, v in parts.items()}
  *shapes, _ = jax.eval_shape(of, first, jnp.zeros((), jnp.int32))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  total, (metrics, states) = jax.lax.scan(body, zeros, (parts, jnp.arange(k)))
  both_losses, grads = jax.tree.map(lambda v: v / k, total)
  metrics = {name: jnp.mean(v, axis=0) for name, v in metrics.items()}
  # All parts began with the same state.
  states = jax.tree.map(lambda v: v[-1], states)
  return both_losses, grads, (metrics, states)


def _update(
  net: NetworkState, optimizer, grads, stats, keep: jax.Array
) -> NetworkState:
  """Updates a network, or keeps it as it is if `keep` is False."""
  updates, opt_state = optimizer.update(
    grads, net.opt_state, net.params, keep=keep
  )
  params = optax.apply_updates(net.params, updates)
  return NetworkState(
    _select(keep, params, net.params),
    _select(keep, stats, net.batch_stats),
    opt_state,
  )


def _select(keep: jax.Array, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda n, o: jnp.where(keep, n, o), new, old)


def _average(spec: TrainSpec, state: TrainState, params: Any) -> Any:
  """Returns ema + (1 - d)(params - ema), d = min(decay, (1 + t) / (10 + t))."""
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
  """Runs one training step. Jit it with `state` donated.

  A network whose loss or gradient is not finite is not updated; such steps are
  counted in the state.

  Args:
    spec: of the run; static.
    state: before the step; donated.
    batch: the global batch, see `losses`.
    layout: shardings, if the state is sharded over devices; static.

  Returns:
    The next state, and metrics: `vae/<term>` and `disc/<term>` (unweighted,
    nats), gradient norms, and statistics of the posterior and of the logits.
    All are scalars except `population/mean` and `population/var`, [d].
  """
  (vae_loss, disc_loss), grads, aux = gradients(spec, state, batch, layout)
  metrics, (vae_stats, disc_stats, objective_state) = aux
  vae_norm, disc_norm = (optax.tree.norm(g) for g in grads)
  vae_ok = jnp.isfinite(vae_loss) & jnp.isfinite(vae_norm)
  disc_ok = jnp.isfinite(disc_loss) & jnp.isfinite(disc_norm)

  vae = _update(state.vae, spec.vae_optimizer, grads[0], vae_stats, vae_ok)
  disc = state.disc
  trained = bool(disc.params) and spec.started
  if trained:
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
  if trained:
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
  """Returns a jitted `train_step`: (state, batch) -> (state, metrics).

  The state is donated, and the next state has the same shardings. Metrics are
  replicated.

  Args:
    spec: of the run.
    layout: the shardings of the state.
    **options: passed to `jax.jit`.
  """
  shardings = layout.shardings(jax.eval_shape(partial(init, spec)))
  return jax.jit(
    partial(train_step, spec, layout=layout),
    donate_argnums=0,
    out_shardings=(shardings, replicated(layout.mesh)),
    **options,
  )


def init_sharded(spec: TrainSpec, shardings: Any) -> TrainState:
  """Jits and runs `init` with shardings from `ShardingPlan.shardings`."""
  # On a CPU the optimising passes take longer than they save.
  devices = jax.tree.leaves(shardings)[0].device_set
  cpu = {d.platform for d in devices} == {"cpu"}
  return jax.jit(
    partial(init, spec),
    out_shardings=shardings,
    compiler_options={"xla_backend_optimization_level": 0} if cpu else None,
  )()


def finite(state: TrainState) -> jax.Array:
  """Whether every number of a state is finite, bool []."""
  return jnp.stack(
    [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)]
  ).all()


def eval_step(
  spec: TrainSpec, draws: int, params: Any, batch_stats: Any, batch: Batch
) -> Metrics:
  """Computes metrics per image on held-out images.

  Args:
    spec: of the run.
    draws: draws of z per image (and component), for the two bounds.
    params: of the VAE, raw or averaged.
    batch_stats: of the VAE.
    batch: as in `losses`; "step", its number, which selects the PRNG key.
      Other entries are returned as they are.

  Returns:
    Those of `train_metrics.held_out`, and "posterior", q(z | x).
  """
  x = spec.observations(spec.occluded(batch, batch["step"]))
  key = jax.random.fold_in(spec.key(batch["step"]), 1)
  bound = spec.vae.bind({"params": params, "batch_stats": batch_stats})
  posterior = bound.encode(x)
  q = bound.with_prior(posterior)
  z, w = q.sample(key, draws)
  # One call for the mean and the draws: the decoder is compiled once.
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
