"""The training step in PyTorch: the same losses and the same two updates.

One forward pass, and both gradients from it without extra work. It lacks the
guard against non-finite values, the gradient norms and the training metrics,
which is in its favour.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable

import jax
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch

from benchmarks import images, torch_weights
from benchmarks.torch_networks import VAE, PatchDiscriminator
from gamix_jax import build, step
from gamix_jax.config import ConfigDict
from gamix_jax.errors import UserError
from gamix_jax.objectives.population import (
  KERNEL_WIDTH,
  MIN_VARIANCE,
  NODES,
)

# {key: the supported values}
SUPPORTED = {
  "dtype": ("float32", "bfloat16", "float64"),
  "model.encoder": ("resnet",),
  "model.decoder": ("resnet",),
  "model.dropout": (0.0,),
  "posterior.name": ("gaussian", "mixture"),
  "posterior.mixture.min_weight": (0.0,),
  "prior.name": ("normal",),
  "objective.name": ("gamix",),
  "objective.reconstruction": ("l1", "l2"),
  "adversarial.loss": ("bce", "hinge", "none"),
}
for _net in ("vae", "disc"):
  SUPPORTED |= {
    f"optim.{_net}.clip": (0.0,),
    f"optim.{_net}.warmup": (0,),
    f"optim.{_net}.schedule": ("constant",),
  }


def check(config: ConfigDict) -> None:
  """Checks that the baseline supports a config.

  Raises:
    UserError: names the key and its supported values.
  """
  for key, values in SUPPORTED.items():
    value = config
    for part in key.split("."):
      value = value[part]
    if value not in values:
      raise UserError(
        f"--against=torch: {key} must be "
        f"{' or '.join(map(str, values))}, not {value}."
      )


def _softplus_bce(logits: Tensor, real: bool) -> Tensor:
  return F.softplus(-logits if real else logits)


def _hinge(logits: Tensor, real: bool) -> Tensor:
  return F.relu(1 - logits if real else 1 + logits)


def _diagonal_kl(mean: Tensor, var: Tensor) -> Tensor:
  return 0.5 * (mean.square() + var - 1 - var.log()).sum()


def _published(within: bool, weights: Tensor, mu: Tensor, var: Tensor):
  """Computes `means`, or with the variance within posteriors `full`."""
  weights = weights / len(weights)
  mean = torch.einsum("bk,bkd->d", weights, mu)
  v = torch.einsum("bk,bkd->d", weights, (mu - mean).square())
  if within:
    v = v + torch.einsum("bk,bkd->d", weights, var)
  return _diagonal_kl(mean, v.clamp_min(MIN_VARIANCE))


def _pairs(of_sum: Tensor, own: Tensor, n: int) -> Tensor:
  """Returns the mean of <a_i, a_j>, i != j, from |sum a|^2 and sum |a|^2."""
  return (of_sum - own) / (n * (n - 1))


def _off(a: Tensor, b: Tensor) -> Tensor:
  """sum_{i != j} a_ij b_ij."""
  return (a * b).sum() - (torch.diagonal(a) * torch.diagonal(b)).sum()


def _norms(weights: Tensor, x: Tensor) -> Tensor:
  """sum_i | sum_k pi_ik x_ik x_ik^T |^2."""
  inner = torch.einsum("bkd,bld->bkl", x, x).square()
  return torch.einsum("bkl,bk,bl->", inner, weights, weights)


def _debiased(weights: Tensor, mu: Tensor, var: Tensor) -> Tensor:
  """The Gaussian's KL to second order in the correlations, bias removed."""
  n = len(mu)
  mean = torch.einsum("bk,bkd->bd", weights, mu)
  m = mean.mean(0)
  x, c = mean - m, mu - mean[:, None]
  between = x.square().sum(0) / (n - 1)
  within = torch.einsum("bk,bkd->d", weights, var + c.square()) / n
  v = (between + within).clamp_min(MIN_VARIANCE)
  bias = between / n + (between / v).square() / (n - 1)
  scale = v.detach().rsqrt()
  x, c = x * scale, c * scale
  square, products = x.square(), x.T @ x
  trace = torch.diagonal(products)
  crossed = (trace.sum().square() - trace.square().sum()) / (n - 1)
  fourth = (square.sum(1).square() - square.square().sum(1)).sum()
  pairs = (n - 2) * _off(products, products) + crossed - n * fourth
  pairs = 0.5 * pairs / (n * (n - 2) * (n - 3))
  if mu.shape[1] > 1:
    w = torch.einsum("bki,bkj->ij", weights[..., None] * c, c)
    own = torch.einsum("bk,bkd->bd", weights, c.square())
    along = torch.einsum("bkd,bd->bk", c, x).square()
    itself = (weights * along).sum() - (own * square).sum()
    mixed = _off(products, w) - n / (n - 1) * itself
    alone = _norms(weights, c) - own.square().sum()
    pairs = pairs + mixed / (n * (n - 2)) + 0.5 * _pairs(_off(w, w), alone, n)
  return _diagonal_kl(m, v) - 0.5 * bias.sum() + 0.5 * pairs


def _quadratic(weights: Tensor, mu: Tensor, var: Tensor) -> Tensor:
  """1/2 |E z|^2 + 1/4 |E z z^T - I|^2 over pairs of different images."""
  n, _, d = mu.shape
  mean = torch.einsum("bk,bkd->bd", weights, mu)
  second = torch.einsum("bk,bkd->bd", weights, mu.square())
  within = torch.einsum("bk,bkd->bd", weights, var)
  flat = mu.reshape(-1, d)
  total = (weights.reshape(-1, 1) * flat).T @ flat + torch.diag(within.sum(0))
  own = _norms(weights, mu) + (within * (2 * second + within)).sum()
  of_second = _pairs(total.square().sum(), own, n)
  of_first = _pairs(mean.sum(0).square().sum(), mean.square().sum(), n)
  trace = torch.diagonal(total).sum() / n
  return 0.5 * of_first + 0.25 * (of_second - 2 * trace + d)


def _kernel(weights: Tensor, mu: Tensor, var: Tensor) -> Tensor:
  """The discrepancy of pairs of different images, of each of the Gaussians."""
  n, k, d = mu.shape
  mu, var, weights = mu.reshape(-1, d), var.reshape(-1, d), weights.reshape(-1)
  image = torch.arange(n * k, device=mu.device) // k
  pairs = weights[:, None] * weights * (image[:, None] != image)
  square, spread = (mu[:, None] - mu).square(), var[:, None] + var
  total, slope = 0.0, 0.0

  def expected(square, spread, t):
    a = 1 + 2 * t * spread
    return torch.exp(-(t * square / a + 0.5 * a.log()).sum(-1))

  for s in NODES.tolist():
    t, share = s / (KERNEL_WIDTH * d), math.sqrt(s) * math.exp(-s)
    own = (pairs * expected(square, spread, t)).sum() / (n * (n - 1))
    crossed = (weights * expected(mu.square(), var + 1, t)).sum() / n
    prior = (1 + 4 * t) ** (-d / 2)
    total = total + share * (own - 2 * crossed + prior)
    slope += share * 2 * t * prior / (1 + 4 * t)
  return total / (2 * slope)


POPULATION = {
  "means": functools.partial(_published, False),
  "full": functools.partial(_published, True),
  "debiased": _debiased,
  "quadratic": _quadratic,
  "kernel": _kernel,
}


class Adam:
  """PyTorch's fused Adam, with Keras' epsilon if the config has it."""

  def __init__(self, params: list[Tensor], section: ConfigDict):
    """`section` is one of config.optim."""
    self.section, self.params, self.count = section, params, 0
    self.inner = torch.optim.Adam(
      params,
      lr=section.learning_rate,
      betas=(section.b1, section.b2),
      eps=section.eps,
      fused=True,
    )

  def step(self, grads: tuple[Tensor, ...]) -> None:
    """Applies one update with these gradients."""
    self.count += 1
    if self.section.name == "keras_adam":
      # Epsilon added to the uncorrected sqrt(v) is eps / sqrt(1 - b2^t) here.
      corrected = math.sqrt(1 - self.section.b2**self.count)
      self.inner.param_groups[0]["eps"] = self.section.eps / corrected
    for p, g in zip(self.params, grads, strict=True):
      p.grad = g
    self.inner.step()
    self.inner.zero_grad(set_to_none=True)


@dataclasses.dataclass
class Options:
  """How to run it: device, memory layout of images, what to compile."""

  device: str = "cpu"
  layout: str = "channels_last"
  compile: str = "none"  # or modules


class Twin:
  """The networks, optimisers and weight average of a run, and its step."""

  def __init__(self, config: ConfigDict, options: Options):
    """Builds the networks of a config that `check` accepts; see also `load`."""
    self.config, self.options = config, options
    self.vae = self._placed(VAE(config))
    self.disc = None
    if config.adversarial.loss != "none":
      self.disc = self._placed(PatchDiscriminator(config))
    self.vae_params = list(self.vae.parameters())
    self.disc_params = list(self.disc.parameters()) if self.disc else []
    wrap = lambda f: f  # noqa: E731
    if options.compile == "modules":
      # D is backpropagated through twice, so its buffers must be kept.
      # Compiled, both passes compute all gradients: 2 % more FLOPs than eager
      # mode in the celeba config.
      functorch.donated_buffer = False
      wrap = torch.compile
    self._encode = wrap(self._encode_plain)
    self._decode = wrap(self.vae.decoder)
    self._discriminate = wrap(self.disc) if self.disc else None
    self._terms = wrap(self._terms_plain)
    self.dtype = torch.float64 if config.dtype == "float64" else torch.float32
    self.autocast = config.dtype == "bfloat16"

  def _placed(self, module: torch.nn.Module) -> torch.nn.Module:
    layout = torch.contiguous_format
    if self.options.layout == "channels_last":
      layout = torch.channels_last
    kind = torch.float64 if self.config.dtype == "float64" else torch.float32
    return module.to(self.options.device, kind, memory_format=layout)

  def load(self, state) -> None:
    """Copies the networks of a TrainState; resets optimisers and average."""
    torch_weights.load(self.vae, state.vae.params, state.vae.batch_stats)
    if self.disc:
      torch_weights.load(self.disc, state.disc.params, state.disc.batch_stats)
    self.step_done = 0
    self.optim = {"vae": Adam(self.vae_params, self.config.optim.vae)}
    if self.disc:
      self.optim["disc"] = Adam(self.disc_params, self.config.optim.disc)
    self.ema = [p.detach().clone() for p in self.vae_params]

  # ------------------------------------------------------------ forward

  def images(self, image: Tensor) -> Tensor:
    """uint8 [b, h, w, c] -> [b, c, h, w] in [-1, 1]."""
    x = image.to(self.dtype) / 127.5 - 1
    x = x.permute(0, 3, 1, 2)  # channels-last already
    return x.contiguous() if self.options.layout == "contiguous" else x

  def _encode_plain(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return self.vae.posterior(self.vae.encoder(x))

  def _terms_plain(self, x, x_hat, q, w, real, fake) -> dict[str, Tensor]:
    """Computes the loss terms.

    x [b, ...], x_hat [b, s, ...], w [b, s], logits [b, ...] and [b, s, ...].
    """
    logits, mu, logvar = q
    weights, var = logits.softmax(-1), logvar.exp()
    kind = self.config.objective.reconstruction
    each = x[:, None] - x_hat
    each = each.abs() if kind == "l1" else each.square()
    collapse = 0.5 * (var - 1 - var.log()).sum(-1)
    terms = {
      "recon": (w * each.mean((2, 3, 4))).sum(1).mean(),
      "population_kl": POPULATION[self.config.objective.population](
        weights, mu, var
      ),
      "collapse_penalty": (weights * collapse).sum(-1).mean(),
    }
    if real is not None:
      loss = self.config.adversarial.loss
      score = _hinge if loss == "hinge" else _softplus_bce

      def over_draws(each):
        return (w * each.mean((2, 3, 4))).sum(1).mean()

      adversarial = -fake if loss == "hinge" else _softplus_bce(fake, True)
      terms["adversarial"] = over_draws(adversarial)
      terms["real"] = score(real, True).mean()
      terms["fake"] = over_draws(score(fake, False))
    return terms

  def _ramp(self, name: str) -> float:
    """Returns the fraction of its weight that a VAE term has at this step."""
    section, length = self.config.adversarial, self.config.ramp.get(name, 0)
    begin = (
      section.disc_start + section.gen_delay if name == "adversarial" else 0
    )
    since = self.step_done - begin
    return min(max((since + 1) / max(length, 1), 0), 1)

  def losses(self, image: Tensor, eps: Tensor | None = None):
    """Returns (VAE loss, D loss) and the terms.

    `eps` is [n, b, k, d]; it is sampled if None.
    """
    x = self.images(image)
    device = self.options.device
    with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
      q = self._encode(x)
      logits, mu, logvar = q
      n, (b, k, d) = self.config.objective.num_samples, mu.shape
      if eps is None:
        eps = torch.randn(n, b, k, d, device=device, dtype=self.dtype)
      z = mu + (logvar / 2).exp() * eps
      s = n * k
      z = z.transpose(0, 1).reshape(b * s, d)  # [b, n, k, d]
      w = logits.softmax(-1).repeat(1, n) / n  # [b, n k]
      x_hat = self._decode(z)
      real = fake = None
      if self.disc:
        if self.config.model.norm == "batch":  # batch statistics of both
          both = self._discriminate(torch.cat([x, x_hat]))
          real, fake = both[:b], both[b:]
        else:
          real, fake = self._discriminate(x), self._discriminate(x_hat)
        fake = fake.unflatten(0, (b, s))
    x_hat = x_hat.unflatten(0, (b, s))
    terms = self._terms(x, x_hat, q, w, real, fake)
    weights = self.config.weights
    names = ["recon", "population_kl", "collapse_penalty"]
    if self.disc:
      names.append("adversarial")
    vae_loss = sum(weights[k] * self._ramp(k) * terms[k] for k in names)
    disc_loss = None
    if self.disc:
      disc_loss = weights.real * terms["real"] + weights.fake * terms["fake"]
    return (vae_loss, disc_loss), terms

  # ------------------------------------------------------------ the step

  def gradients(self, image: Tensor, eps: Tensor | None = None):
    """Returns the gradients of each loss for its own network, and the terms."""
    (vae_loss, disc_loss), terms = self.losses(image, eps)
    vae_grads = torch.autograd.grad(
      vae_loss, self.vae_params, retain_graph=self.disc is not None
    )
    disc_grads = ()
    if self.disc:
      disc_grads = torch.autograd.grad(disc_loss, self.disc_params)
    return (vae_grads, disc_grads), terms

  def step(self, image: Tensor, eps: Tensor | None = None) -> dict[str, Tensor]:
    """Runs one training step; returns the terms."""
    (vae_grads, disc_grads), terms = self.gradients(image, eps)
    self.optim["vae"].step(vae_grads)
    if self.disc and self.step_done >= self.config.adversarial.disc_start:
      self.optim["disc"].step(disc_grads)
    t = self.step_done
    decay = min(self.config.ema.decay, (1 + t) / (10 + t))
    with torch.no_grad():
      torch._foreach_lerp_(self.ema, self.vae_params, 1 - decay)
    self.step_done += 1
    return {k: v.detach() for k, v in terms.items()}

  def wait(self) -> None:
    """Waits for the device."""
    wait(self.options.device)


def flat(names: list[str], values) -> dict:
  """Returns {name: array} of tensors in the order of names."""
  pairs = itertools.zip_longest(names, values)
  return {k: v.detach().cpu().numpy() for k, v in pairs}


def same_device() -> str:
  """Returns PyTorch's name of the device that JAX uses, cpu or cuda.

  Raises:
    RuntimeError: if PyTorch would run on another kind of device.
  """
  device = "cuda" if torch.cuda.is_available() else "cpu"
  if (device == "cuda") != (jax.default_backend() == "gpu"):
    raise RuntimeError(
      f"PyTorch would run on {device} and JAX on {jax.default_backend()}."
    )
  return device


def wait(device: str) -> None:
  """Waits until a device, cpu or cuda, has done what it was given."""
  if device == "cuda":
    torch.cuda.synchronize()


def use_tensor_cores() -> None:
  """Sets a GPU's products to TF32, as JAX does, and picks convolutions."""
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision("high")


def runner(config: ConfigDict, options: Options, notes: dict) -> Callable:
  """Returns a function that runs n steps from our initial weights on one batch.

  Args:
    config: a config that `check` accepts.
    options: how to run it; falls back to eager mode if compiling fails.
    notes: a dict that notes on compiling are written to.
  """
  if options.device == "cuda":
    use_tensor_cores()
    torch.cuda.reset_peak_memory_stats()
  state = jax.jit(functools.partial(step.init, build.train_spec(config)))()
  twin = Twin(config, options)
  twin.load(jax.device_get(state))
  image = torch.from_numpy(images.smooth(config, 0)).to(options.device)
  start = time.perf_counter()
  try:
    twin.step(image)
    twin.wait()
  except Exception as e:  # the type depends on what is missing
    if options.compile == "none":
      raise
    notes["compile"] = f"failed ({type(e).__name__}); running eagerly"
    plain = dataclasses.replace(options, compile="none")
    return runner(config, plain, notes)
  if options.compile != "none":
    notes["compiled in"] = f"{time.perf_counter() - start:.1f} s"

  def run(n: int) -> None:
    for _ in range(n):
      twin.step(image)
    twin.wait()

  return run
