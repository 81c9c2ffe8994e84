"""All config keys, with defaults and descriptions; validation and JSON.

`base()` is locked and serves as the schema: config files change its values, and
a misspelt key is an error. The defaults are those of the published run (the
reference's repository, as run; see docs/differences.md).
"""

import difflib
import json
import re
import sys
from collections.abc import KeysView
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from gamix_jax import registry
from gamix_jax.data.settings import Settings
from gamix_jax.errors import UserError

ConfigDict = ml_collections.ConfigDict

VERSION = 2  # of config.json; raise it when a key changes its name or meaning

# Terms of the objectives that are there for comparison with gamix and elbo.
PEER_TERMS = (
  *("mmd", "cramer_wold", "sliced_wasserstein", "sigreg"),
  *("covariance", "variance"),
  *("mutual_information", "total_correlation", "dimension_kl"),
  *("code_norm", "decoder_norm", "code_adversarial"),
)


def _any(default: Any) -> config_dict.FieldReference:
  """Creates a key that accepts several types (int or pair, number or None)."""
  return config_dict.FieldReference(default, field_type=object)


def _open(default: Any) -> config_dict.FieldReference:
  """Creates a key that may be None if `preset` is set; see presets.complete."""
  return config_dict.FieldReference(default)


def base() -> ConfigDict:  # noqa: PLR0915 (a list, not a procedure)
  """Returns the published configuration with all keys; locked."""
  c = ConfigDict()
  c.seed = 0  # determines noise, initial weights and batches
  c.steps = 240_000  # README of the reference: 200 epochs of 24,000 / 20
  c.dtype = "float32"  # of convolutions and matrix products; or bfloat16
  c.log_every = 100
  c.eval_every = 2_000
  c.eval_images = 1_024  # maximum number of held-out images
  c.eval_draws = 16  # draws of z per image, for elbo and iwae
  # small, base, large: sets keys that are None, see presets.py; "": sets none
  c.preset = ""
  c.extensions = ()  # your modules that register parts, see docs/extending.md
  # tensorboard,wandb,mlflow: one or several; none. See training/trackers.py
  c.track = _any("tensorboard")
  c.profile = ""  # "20:25": trace the steps 20 to 25, see training/profiling.py

  c.data = ConfigDict()
  # digits, tfds:<name>, hf:<name>, or a path: folder:, zip:, tar:, idx:, npz:
  c.data.source = "folder:data"
  c.data.fingerprint = ""  # of the images, from the first start; any: unchecked
  c.data.image_size = _any(256)  # int or (height, width)
  c.data.channels = 3  # 1 grey, 3 colour; images are converted
  c.data.batch_size = 20  # global; the population is this batch
  c.data.crop = _any("square")  # centre crop: square, none, or pixels per side
  c.data.resize = "area"  # area, linear, cubic, nearest
  c.data.flip = True  # left-right, with probability 1/2, training only
  c.data.cache = "none"  # none, memory, or a folder for a memory-mapped file
  c.data.workers = 0  # processes that decode images; 0: threads
  c.data.test_fraction = 0.2  # held out by hash, if there is no test split
  c.data.max_corrupt_fraction = 0.01  # maximum fraction of unreadable files
  c.data.exclude_labels = ()  # classes to leave out of training: "(3,)", names
  # half, box: the encoder sees a part of the image, see occlusion.py; or none
  c.data.occlude = "none"
  # fixed, dynamic: pixels become black or white by their level; or none
  c.data.binarize = "none"
  c.data.range = _any("auto")  # (black, white) of npz and idx; auto: detected
  c.data.max_pixels = 1 << 28  # larger image files are left out
  # one entry a modality, as "m0 28x28x3 l1"; see data/modalities.py; (): images
  c.data.modalities = ()
  c.data.missing = 0.0  # fraction of modalities missing in training, in [0, 1)
  c.data.missing_test = 0.0  # the same of the test split
  c.data.missing_by = "random"  # value: those with the largest mean value

  c.model = ConfigDict()
  c.model.latent = _open(512)
  c.model.encoder_features = _open((128,) * 7)
  c.model.decoder_features = _open((128,) * 6 + (3,))
  c.model.discriminator_features = _open((128, 128, 128, 64, 64, 1))
  c.model.discriminator_strides = _open((2, 2, 2, 1, 1, 1))
  c.model.encoder = _open("resnet")  # conv, mlp; linear: only the head
  c.model.decoder = _open("resnet")  # conv, mlp; linear: x_hat = Phi z
  c.model.discriminator = "patchgan"
  # none: brightness and contrast are encoded
  c.model.input_norm = _open("layer")
  # side of the pixel blocks that resnet and conv move into channels
  c.model.patch = _open(1)
  # initial scale of transposed convolutions; 2: keeps the signal's scale
  c.model.upsample_gain = _open(1.0)
  c.model.norm = _open("affine")  # as published; batch, group, none
  # channels of the encoder's output; 0: latent // 8
  c.model.bottleneck_channels = _open(0)
  # of the discriminator; the reference's code sets 0.25 but never applies it
  c.model.dropout = 0.0

  # For runs of several modalities (data.modalities). Networks of modalities
  # that are not images are fully connected, see `vector_...`.
  c.multimodal = ConfigDict()
  # separate (for mmvm, elbo), avg, poe, poe_prior, moe, mopoe, sum_pooling,
  # attention; poe_as_released
  c.multimodal.fusion = "poe"
  c.multimodal.private = 0  # additional latents of each modality's own
  c.multimodal.subsets = "uniform_size"  # bernoulli, all: for masked, ...
  # How many modalities training observations have; set by the first start.
  c.multimodal.observed_sizes = ()
  c.multimodal.width = 256  # of sum_pooling and attention
  c.multimodal.layers = 1  # of attention
  c.multimodal.heads = 4  # of attention
  c.multimodal.vector_encoder_features = (256, 256)
  c.multimodal.vector_decoder_features = (256, 256)  # (): linear

  c.posterior = ConfigDict()
  c.posterior.name = "gaussian"  # mixture, epanechnikov, poisson, delta
  c.posterior.components = 1
  c.posterior.initial_logvar = _open(0.0)  # initial bias of ln sigma^2

  # Keys of single families.
  c.posterior.mixture = ConfigDict()
  c.posterior.mixture.temperature = 1.0  # of the weights' softmax
  c.posterior.mixture.min_weight = 0.0  # fraction of pi that is uniform
  c.posterior.epanechnikov = ConfigDict()
  c.posterior.epanechnikov.prior = "normal"  # uniform, gaussian: for evae
  c.posterior.epanechnikov.width = 0.1  # B of arXiv:2405.12783
  c.posterior.poisson = ConfigDict()
  c.posterior.poisson.ramp = "cubic"  # linear, quintic, cosine, sigmoid
  c.posterior.poisson.temperature = 0.05  # final value, of relaxed counts
  c.posterior.poisson.temperature_steps = 1_000  # of annealing, from 1
  c.posterior.poisson.max_log_rate = 5.0
  c.posterior.poisson.bias = True  # published: False with a linear encoder
  c.posterior.poisson.initial_log_rate = -1.0  # of the prior's learned rates

  c.prior = ConfigDict()  # for elbo, selbo, siwae; other objectives: N(0, I)
  c.prior.name = "normal"  # the family's default; mixture, vamp: learned
  c.prior.components = 1  # of a mixture; pseudo-inputs of vamp

  c.objective = ConfigDict()
  # gamix_mixture, gamix_aae, elbo, exact, selbo, siwae, evae; ae, rae_l2,
  # wae_mmd, cwae, swae, sigreg, vicreg, dip1, dip2, tcvae, aae; of several
  # modalities also mmvm, mmvm_population, masked, mixture_bound, tc
  c.objective.name = "gamix"
  c.objective.population = "means"  # full, debiased, quadratic, kernel
  c.objective.reconstruction = "l1"  # l2, bernoulli
  c.objective.num_samples = 1  # of z per image, and per component of a mixture

  # Keys of single objectives.
  c.objective.elbo = ConfigDict()
  c.objective.elbo.free_bits = 0.0  # nats of each latent without cost
  c.objective.swae = ConfigDict()
  c.objective.swae.directions = 50  # random ones a step
  c.objective.sigreg = ConfigDict()
  c.objective.sigreg.directions = 256
  c.objective.tcvae = ConfigDict()
  c.objective.tcvae.images = 0  # the number of training images; must be set
  c.objective.aae = ConfigDict()  # its discriminator of codes
  c.objective.aae.width = 512
  c.objective.aae.layers = 2
  c.objective.mmvm = ConfigDict()
  c.objective.mmvm.estimate = "exact"  # surrogate: pairwise, closed form
  c.objective.mmvm.alpha = 0.0  # share of N(0, I) in the mixture
  c.objective.mmvm.alpha_steps = 0  # it falls from 1 over these steps
  c.objective.mixture_bound = ConfigDict()
  c.objective.mixture_bound.kl_count = "once"  # per_modality

  c.adversarial = ConfigDict()
  c.adversarial.loss = _open("bce")  # hinge, none
  c.adversarial.disc_start = _open(0)  # the discriminator's first step
  c.adversarial.gen_delay = 0  # steps that it trains alone first

  # Weights of the objective's terms. None: the objective has no such term, or
  # `preset` sets the weight.
  c.weights = ConfigDict()
  c.weights.recon = _any(5000.0)  # reference: R_LOSS_FACTOR
  c.weights.population_kl = _any(1.0)
  # The reference weights it by 0.1, but its term is twice ours.
  c.weights.collapse_penalty = _any(0.2)
  c.weights.kl = _any(None)
  c.weights.kernel = _any(None)
  c.weights.subset_kl = _any(None)
  for term in PEER_TERMS:
    c.weights[term] = _any(None)
  c.weights.adversarial = _any(100.0)
  c.weights.real = _any(100.0)
  c.weights.fake = _any(100.0)
  c.weights.code_real = _any(None)
  c.weights.code_fake = _any(None)

  # Weights that the preset uses for terms whose weight is None; None: the
  # preset computes them.
  c.preset_weights = ConfigDict()
  c.preset_weights.population_kl = _any(None)
  c.preset_weights.collapse_penalty = _any(None)
  c.preset_weights.kl = _any(None)

  # Steps of linear warm-up of a term's weight, from 0; 0: none.
  c.ramp = ConfigDict()
  c.ramp.population_kl = _open(0)
  c.ramp.collapse_penalty = _open(0)
  c.ramp.kl = _open(0)
  c.ramp.kernel = _open(0)
  c.ramp.subset_kl = _open(0)
  for term in PEER_TERMS:
    c.ramp[term] = _open(0)
  c.ramp.adversarial = _open(0)  # starts at disc_start + gen_delay

  c.optim = ConfigDict()
  # parts of a batch whose gradients are averaged before the update, one after
  # the other: less memory, for objectives that allow it
  c.optim.accumulate = 1
  for net in ("vae", "disc"):
    c.optim[net] = ConfigDict()
    o = c.optim[net]
    o.name = "keras_adam"  # adds eps to the uncorrected sqrt(v); or adam
    o.learning_rate = 1e-4
    o.b1 = 0.5
    o.b2 = 0.999
    o.eps = 1e-7
    o.clip = 0.0  # maximum global norm of the gradient; 0: no clipping
    o.warmup = 0  # steps of linear warm-up
    o.schedule = "constant"  # or cosine, to 0 at `steps`

  c.ema = ConfigDict()
  c.ema.decay = 0.999  # min(decay, (1 + t) / (10 + t)) at step t

  c.guard = ConfigDict()
  c.guard.max_nonfinite = 20  # consecutive non-finite updates that stop the run

  c.mesh = ConfigDict()  # sharding of the state; does not affect results
  c.mesh.fsdp = 1  # devices that each copy of the state is sharded over
  # arrays with fewer elements are replicated: latency dominates for 256 kB
  c.mesh.fsdp_min_size = 2**16

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 2_000
  c.checkpoint.keep = 3  # number of newest checkpoints
  c.checkpoint.keep_best = 1  # additional ones with the best eval/elbo

  extend(c)
  return c.lock()


def extend(config: ConfigDict) -> None:
  """Adds the keys of parts that `config.extensions` register, in place.

  Raises:
    UserError: one of these modules cannot be imported.
  """
  registry.import_extensions(config.extensions)
  modules = (*config.extensions, *registry.extension_modules())
  with config.unlocked():
    config.extensions = tuple(dict.fromkeys(modules))
    for key, default in registry.extension_keys().items():
      *sections, name = key.split(".")
      parent = config
      for section in sections:
        if section not in parent:
          parent[section] = ConfigDict()
        parent = parent[section]
      if name not in parent:
        parent[name] = _any(default)


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
  """Returns (h, w, c) of the images that a config trains on."""
  size = config.data.image_size
  h, w = (size, size) if isinstance(size, int) else size
  return int(h), int(w), config.data.channels


def profiled(config: ConfigDict) -> range:
  """Returns the steps to trace, counted from 1; empty if there are none.

  Raises:
    UserError: `profile` is not FIRST:LAST, or not within the run's steps.
  """
  if not config.profile:
    return range(0)
  match = re.fullmatch(r"(\d+):(\d+)", config.profile)
  first, last = map(int, match.groups()) if match else (0, 0)
  if not 1 <= first <= last <= config.steps:
    raise UserError(
      f"profile={config.profile!r} must be FIRST:LAST, two steps from 1 to "
      f"{config.steps}."
    )
  return range(first, last + 1)


# ---------------------------------------------------------- checking

POSITIVE = (
  "steps",
  "log_every",
  "eval_every",
  "eval_images",
  "eval_draws",
  "model.latent",
  "posterior.components",
  "prior.components",
  "objective.num_samples",
  "model.patch",
  "model.upsample_gain",
  "optim.accumulate",
  "optim.vae.learning_rate",
  "optim.disc.learning_rate",
  "optim.vae.eps",
  "optim.disc.eps",
  "guard.max_nonfinite",
  "mesh.fsdp",
  "mesh.fsdp_min_size",
  "multimodal.heads",
  "multimodal.layers",
  "multimodal.width",
  "checkpoint.every",
  "checkpoint.keep",
)
NOT_NEGATIVE = (
  "model.bottleneck_channels",
  "multimodal.private",
  "adversarial.disc_start",
  "adversarial.gen_delay",
  "ramp.population_kl",
  "ramp.collapse_penalty",
  "ramp.kl",
  "ramp.kernel",
  "ramp.subset_kl",
  *(f"ramp.{term}" for term in PEER_TERMS),
  "ramp.adversarial",
  "optim.vae.clip",
  "optim.disc.clip",
  "optim.vae.warmup",
  "optim.disc.warmup",
  "checkpoint.keep_best",
)
BELOW_ONE = (  # in [0, 1)
  "model.dropout",
  "optim.vae.b1",
  "optim.vae.b2",
  "optim.disc.b1",
  "optim.disc.b2",
  "ema.decay",
)


def check(config: ConfigDict) -> None:
  """Validates types and ranges of all keys.

  Names, such as that of the objective, are checked by the registries.

  Raises:
    UserError: a value of the wrong type or out of its range, or None.
  """
  check_keys(config)
  _check_ranges(config)
  profiled(config)
  for key, value in flat(config).items():
    if value is None and not key.startswith(("weights.", "preset_weights.")):
      raise UserError(
        f"{key} is None: set it, or use --config.preset=small, base or large "
        "to set it."
      )
  for section in ("model", "multimodal"):
    for key, value in config[section].items():
      if isinstance(value, tuple | list) and not all(
        type(v) is int and v > 0 for v in value
      ):
        raise UserError(
          f"{section}.{key}={value} must be whole numbers > 0, as (64, 128)."
        )
  check_data(config)


def check_keys(config: ConfigDict) -> None:
  """Checks that a config has exactly the keys of `base()` and its extensions.

  Raises:
    UserError: keys are missing or unknown.
  """
  if isinstance(config, ConfigDict) and "extensions" in config:
    extend(config)
  if not isinstance(config, ConfigDict) or flat(config).keys() != _keys():
    raise UserError(
      "The config does not have the keys of gamix_jax.config.base(); "
      "get_config in its file must return base() with changed values."
    )


def _check_ranges(config: ConfigDict) -> None:
  for section in ("weights", "preset_weights"):
    for name, weight in config[section].items():
      if weight is not None and not (_is_number(weight) and weight >= 0):
        raise UserError(
          f"{section}.{name}={weight!r} must be a number >= 0 or None."
        )
  for key, value in flat(config).items():
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
      raise UserError(f"{key}={value} does not fit into 64 bits.")
  for keys, range_text, in_range in (
    (POSITIVE, "> 0", lambda v: v > 0),
    (NOT_NEGATIVE, "0 or more", lambda v: v >= 0),
    (BELOW_ONE, "in [0, 1)", lambda v: 0 <= v < 1),
  ):
    for key in keys:
      value = get(config, key)
      if value is not None and not (_is_number(value) and in_range(value)):
        raise UserError(f"{key}={value} must be {range_text}.")


def _is_number(value: Any) -> bool:
  """Whether a value is an int or float within the finite range of a float."""
  if not isinstance(value, int | float) or isinstance(value, bool):
    return False
  return abs(value) <= sys.float_info.max  # NaN is not


def check_data(config: ConfigDict) -> None:
  """Validates the section `data`, which presets and networks depend on.

  Raises:
    UserError: a value of the wrong type or out of its range.
  """
  Settings.from_config(config.data)


# ---------------------------------------------------------- keys and files


def get(config: ConfigDict, key: str) -> Any:
  """Returns the value at a dotted key."""
  value = config
  for part in key.split("."):
    value = value[part]
  return value


def put(config: ConfigDict, key: str, value: Any) -> None:
  """Sets the value at a dotted key."""
  section, _, name = key.rpartition(".")
  parent = get(config, section) if section else config
  parent[name] = value


def flat(config: ConfigDict) -> dict[str, Any]:
  """Flattens to {"data.batch_size": 20, ...}; tuples become lists (JSON)."""
  out = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      out |= {f"{key}.{k}": v for k, v in flat(value).items()}
    else:
      out[key] = list(value) if isinstance(value, tuple) else value
  return out


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple]:
  """Returns {key: (old value, new value)} of the keys that differ."""
  a, b = flat(old), flat(new)
  keys = sorted(a.keys() | b.keys())
  return {k: (a.get(k), b.get(k)) for k in keys if a.get(k) != b.get(k)}


def to_json(config: ConfigDict) -> str:
  """Serialises the version and all keys; `from_json` reads the result."""
  return json.dumps({"version": VERSION} | flat(config), indent=1) + "\n"


def read(path: Path) -> ConfigDict:
  """Reads a config from a file; see `from_json`.

  Raises:
    UserError: the file cannot be read or holds no valid config; the message
      names it.
  """
  try:
    text = path.read_text(encoding="utf-8")
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror}).") from e
  except UnicodeDecodeError as e:
    raise UserError(f"{path} is not a config: it is not UTF-8.") from e
  return from_json(text, str(path))


def from_json(text: str, where: str = "config.json") -> ConfigDict:
  """Parses the output of `to_json`; missing keys have their defaults.

  Args:
    text: a JSON object.
    where: name of the file, for error messages.

  Raises:
    UserError: the text is not a JSON object or has another config version; a
      key is unknown, or a value has the wrong type.
  """
  try:
    values = json.loads(text)
  except (ValueError, RecursionError) as e:  # e.g. a number of 5,000 digits
    raise UserError(f"{where} is not a config: {e}.") from e
  if not isinstance(values, dict):
    raise UserError(f"{where} is not a config: it has no keys.")
  version = values.pop("version", 1)  # version 1 had no such entry
  if version != VERSION:
    raise UserError(
      f"{where} has config version {str(version)[:20]}, but this gamix_jax "
      f"reads {VERSION}. Use the version of gamix_jax that wrote it, or train "
      "again."
    )
  config = base()
  extensions = values.get("extensions", [])
  if not _has_type(extensions, tuple) or not all(
    isinstance(v, str) for v in extensions
  ):
    raise UserError(f"{where}: extensions must be a list of module names.")
  config.extensions = tuple(extensions)
  extend(config)
  known = _types(config)
  for key, value in values.items():
    if key not in known:
      close = difflib.get_close_matches(key, known, 1)
      hint = f" (did you mean {close[0]}?)" if close else ""
      raise UserError(
        f"{where} has the unknown key {key[:80]}{hint}. A later version of "
        "gamix_jax may have written it."
      )
    kind, may_be_none = known[key]
    if not (may_be_none if value is None else _has_type(value, kind)):
      raise UserError(
        f"{where}: {key} is {str(value)[:80]!r}, but must be "
        f"{_TYPE_NAMES[kind]}."
      )
    put(config, key, tuple(value) if isinstance(value, list) else value)
  return config


def _types(config: ConfigDict) -> dict[str, tuple[type, bool]]:
  """Returns {key: (type, whether it may be None)}; `object`: several types."""
  out = {}
  for name, value in config.items(preserve_field_references=True):
    if isinstance(value, ConfigDict):
      out |= {f"{name}.{k}": v for k, v in _types(value).items()}
    elif isinstance(value, config_dict.FieldReference):
      out[name] = value.get_type(), True
    else:
      out[name] = type(value), False
  return out


def _has_type(value: Any, kind: type) -> bool:
  """Whether a JSON value other than null is valid for a key of this type."""
  if kind is object:
    values = value if isinstance(value, list) else [value]
    return all(_has_type(v, float) or _has_type(v, str) for v in values)
  if kind is tuple:
    return isinstance(value, list) and all(
      _has_type(v, int) or _has_type(v, str) for v in value
    )
  if kind is float:
    return _is_number(value)
  if kind is str:
    return isinstance(value, str) and "\0" not in value
  return type(value) is kind


_TYPE_NAMES = {
  int: "a whole number",
  float: "a number",
  bool: "true or false",
  str: "a string",
  tuple: "a list of whole numbers or strings",
  object: "a number, a string or a list of them",
}


def _keys() -> KeysView[str]:
  """Returns all keys of a config."""
  return flat(base()).keys()
