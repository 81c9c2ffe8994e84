"""Adversarial losses on the logits of patches.

adversarial   mean_i sum_s w_si mean over patches of BCE(D(x_hat_si), real)
real, fake    the same means of BCE(D(x), real) and BCE(D(x_hat), fake)
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gamix_jax.registry import Registry

Terms = dict[str, jax.Array]
OF_VAE, OF_DISCRIMINATOR = ("adversarial",), ("real", "fake")


class AdversarialLoss:
  """Base class: elementwise losses of logits of any shape."""

  def generator(self, fake: Array) -> Array:
    """The VAE's loss; low if its images pass for real."""
    raise NotImplementedError

  def real(self, logits: Array) -> Array:
    """The discriminator's loss on real images."""
    raise NotImplementedError

  def fake(self, logits: Array) -> Array:
    """The discriminator's loss on the VAE's images."""
    raise NotImplementedError

  def default_weights(self, recon: float) -> dict[str, float]:
    """Default weights, given the weight of `recon`."""
    # Found on faces of 32x32 (docs/training.md). Once the discriminator has
    # learned, the gradient of `adversarial` is 0.7 to 3 times that of `recon`
    # at the decoder's last layer, and 0.1 to 0.3 times in the encoder. With a
    # third of the weight, the discriminator nears saturation; with three times
    # the weight, the error grows by a fifth and images are too sharp.
    # Adam is invariant to the scale of the discriminator's own loss.
    return {"adversarial": recon / 300, "real": 1.0, "fake": 1.0}

  def __call__(
    self,
    logits_real: Float[Array, "b p q 1"],
    logits_fake: Float[Array, "s b p q 1"],
    w: Float[Array, "s b"],
  ) -> Terms:
    """Computes `adversarial`, `real` and `fake`, each []."""

    def over_patches(each):
      return jnp.mean(each, axis=(-3, -2, -1))

    def over_draws(each):
      return jnp.mean(jnp.sum(w * over_patches(each), axis=0))

    return {
      "adversarial": over_draws(self.generator(logits_fake)),
      "real": jnp.mean(over_patches(self.real(logits_real))),
      "fake": over_draws(self.fake(logits_fake)),
    }


class BinaryCrossEntropy(AdversarialLoss):
  """The published loss, with the non-saturating generator loss."""

  def generator(self, fake: Array) -> Array:
    return self.real(fake)

  def real(self, logits: Array) -> Array:
    return jax.nn.softplus(-logits)

  def fake(self, logits: Array) -> Array:
    return jax.nn.softplus(logits)


class Hinge(AdversarialLoss):
  """Lim & Ye, arXiv:1705.02894; `adversarial` is minus the mean logit."""

  def generator(self, fake: Array) -> Array:
    return -fake

  def real(self, logits: Array) -> Array:
    return jax.nn.relu(1 - logits)

  def fake(self, logits: Array) -> Array:
    return jax.nn.relu(1 + logits)


ADVERSARIAL: Registry[AdversarialLoss | None] = Registry("adversarial.loss")
ADVERSARIAL.register("bce", BinaryCrossEntropy())
ADVERSARIAL.register("hinge", Hinge())
ADVERSARIAL["none"] = None  # no discriminator
