"""Every key with its default, its meaning and its source.

`base()` is locked, so it is the schema: a config file is a list of differences
from it, and a misspelt key is an error. The defaults are the published run
(the reference's repository, as run; see docs/objective.md).
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

VERSION = 2  # of config.json; raise it when a key gets another name or meaning


def _any(default: Any) -> config_dict.FieldReference:
  """A key of more than one type (int or pair, number or None)."""
  return config_dict.FieldReference(default, field_type=object)


def _open(default: Any) -> config_dict.FieldReference:
  """A key that may be None where `preset` is set; see presets.complete."""
  return config_dict.FieldReference(default)


def base() -> ConfigDict:  # noqa: PLR0915 (a list, not a procedure)
  """The published configuration, every key present; locked."""
  c = ConfigDict()
  c.seed = 0  # noise, initial weights, batches: all are functions of it
  c.steps = 240_000  # README of the reference: 200 epochs of 24,000 / 20
  c.dtype = "float32"  # of convolutions and matrix products; or bfloat16
  c.log_every = 100
  c.eval_every = 2_000
  c.eval_images = 1_024  # held-out images looked at, at most
  c.eval_draws = 16  # of z an image, for their bounds
  # small, base, large: keys that are None get a value that fits the image and
  # the budget, see presets.py; "" needs all of them.
  c.preset = ""
  c.extensions = ()  # modules of yours that register parts, see
  #   docs/extending.md; filled in where they are imported already
  c.profile = ""  # "20:25": trace the steps 20 to 25, see training/profiling.py

  c.data = ConfigDict()
  c.data.source = "folder:data"  # digits, tfds:<name>, or folder:, idx:, npz:
  c.data.fingerprint = ""  # of the images, noted by the first start and held
  #   against those of every later one; any: whatever they are now
  c.data.image_size = _any(256)  # int or (height, width)
  c.data.channels = 3  # 1 grey, 3 colour; images are converted
  c.data.batch_size = 20  # global; the population is this batch
  c.data.crop = _any("square")  # "square", "none", or a side: centre, pixels
  c.data.resize = "area"  # area, linear, cubic, nearest
  c.data.flip = True  # left-right, with probability 1/2, training only
  c.data.cache = "none"  # "none", "memory", or a folder for a mapped file
  c.data.workers = 0  # processes that decode; 0: threads of this one
  c.data.test_fraction = (
    0.2  # held out by hash where the source has no test split
  )
  c.data.max_corrupt_fraction = (
    0.01  # share of unreadable files that is an error
  )
  c.data.exclude_labels = ()  # classes that are not trained on: "(3,)", names
  c.data.range = _any("auto")  # (black, white) of npz and idx; auto: judged
  c.data.max_pixels = 1 << 28  # of an image file; a larger one is left out

  c.model = ConfigDict()
  c.model.latent = _open(512)
  c.model.encoder_features = _open((128,) * 7)
  c.model.decoder_features = _open((128,) * 6 + (3,))
  c.model.discriminator_features = _open((128, 128, 128, 64, 64, 1))
  c.model.discriminator_strides = _open((2, 2, 2, 1, 1, 1))
  c.model.encoder = _open(
    "resnet"
  )  # conv, mlp; linear: the posterior's head alone
  c.model.decoder = _open("resnet")  # conv, mlp; linear: x_hat = Phi z
  c.model.discriminator = "patchgan"
  c.model.input_norm = "layer"  # none: brightness and contrast are encoded
  c.model.patch = _open(
    1
  )  # pixels of a side that resnet and conv see as channels
  c.model.upsample_gain = 1.0  # of initial transposed convolutions; 2 keeps
  #   the size of a signal, 1 (published) halves it
  c.model.norm = _open("affine")  # what ran; batch, group, none
  c.model.bottleneck_channels = _open(
    0
  )  # channels of the encoder's output; 0: latent // 8
  c.model.dropout = 0.0  # of the discriminator; written 0.25, never active

  c.posterior = ConfigDict()
  c.posterior.name = "gaussian"
  c.posterior.components = 1
  c.posterior.initial_logvar = _open(0.0)  # bias of ln sigma^2 at the start

  # What only one family has.
  c.posterior.mixture = ConfigDict()
  c.posterior.mixture.temperature = 1.0  # of the weights' softmax
  c.posterior.mixture.min_weight = 0.0  # share of pi that is even: none dies
  c.posterior.epanechnikov = ConfigDict()
  c.posterior.epanechnikov.prior = "normal"  # uniform, gaussian: for evae
  c.posterior.epanechnikov.width = 0.1  # B of arXiv:2405.12783
  c.posterior.poisson = ConfigDict()
  c.posterior.poisson.ramp = "cubic"  # linear, quintic, cosine, sigmoid
  c.posterior.poisson.temperature = 0.05  # of relaxed counts, from 1 down
  c.posterior.poisson.temperature_steps = 1_000
  c.posterior.poisson.max_log_rate = 5.0
  c.posterior.poisson.bias = True  # published: not with a linear encoder
  c.posterior.poisson.initial_log_rate = -1.0  # of the prior's learned rates

  c.prior = ConfigDict()  # of elbo, selbo, siwae; else N(0, I)
  c.prior.name = "normal"  # the family's own; mixture, vamp: learned
  c.prior.components = 1  # of a mixture; pseudo-inputs of vamp

  c.objective = ConfigDict()
  c.objective.name = "gamix"  # elbo, exact, selbo, siwae, evae
  c.objective.population = "means"  # full, debiased, quadratic
  c.objective.reconstruction = "l1"  # l2, bernoulli
  c.objective.num_samples = 1  # of z per image, and per component of a mixture

  c.adversarial = ConfigDict()
  c.adversarial.loss = _open("bce")  # hinge, none
  c.adversarial.disc_start = _open(0)  # the discriminator's first step
  c.adversarial.gen_delay = 0  # steps it trains before `adversarial` counts

  # A weight for every term of the objective, None for the names it has not;
  # with `preset` also for those that it is to choose.
  c.weights = ConfigDict()
  c.weights.recon = _any(5000.0)  # reference: R_LOSS_FACTOR
  c.weights.population_kl = _any(1.0)
  c.weights.collapse_penalty = _any(0.2)  # reference: 0.1 of twice our term
  c.weights.kl = _any(None)
  c.weights.kernel = _any(None)
  c.weights.adversarial = _any(100.0)
  c.weights.real = _any(100.0)
  c.weights.fake = _any(100.0)

  # What a preset gives these terms where the objective has them and `weights`
  # leaves them open; None: by its own rule.
  c.preset_weights = ConfigDict()
  c.preset_weights.population_kl = _any(None)
  c.preset_weights.collapse_penalty = _any(None)
  c.preset_weights.kl = _any(None)

  # Steps over which the weight of a term grows from 0, linearly; 0: at once.
  c.ramp = ConfigDict()
  c.ramp.population_kl = _open(0)
  c.ramp.collapse_penalty = _open(0)
  c.ramp.kl = _open(0)
  c.ramp.kernel = _open(0)
  c.ramp.adversarial = _open(
    0
  )  # from adversarial.disc_start + adversarial.gen_delay on

  c.optim = ConfigDict()
  for net in ("vae", "disc"):
    c.optim[net] = ConfigDict()
    o = c.optim[net]
    o.name = "keras_adam"  # epsilon on the uncorrected sqrt(v); or adam
    o.learning_rate = 1e-4
    o.b1 = 0.5
    o.b2 = 0.999
    o.eps = 1e-7
    o.clip = 0.0  # of the gradient's global norm; 0: none
    o.warmup = 0  # steps of linear warm-up
    o.schedule = "constant"  # or cosine, to 0 at `steps`

  c.ema = ConfigDict()
  c.ema.decay = 0.999  # reached as min(decay, (1 + t) / (10 + t))

  c.guard = ConfigDict()
  c.guard.max_nonfinite = 20  # non-finite updates in a row that end the run

  c.mesh = ConfigDict()  # how a state is sharded; changes no number
  c.mesh.fsdp = 1  # devices that each copy of the state is sharded over
  c.mesh.fsdp_min_size = 2**16  # numbers of an array that is; smaller ones are
  #   whole everywhere: to gather 256 kB takes as long as to begin with it

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 2_000
  c.checkpoint.keep = 3  # the newest
  c.checkpoint.keep_best = 1  # besides, by eval/elbo

  extend(c)
  return c.lock()


def extend(config: ConfigDict) -> None:
  """Adds, in place, the keys of parts that `config.extensions` register.

  Raises:
    UserError: one of these modules cannot be imported.
  """
  registry.import_extensions(config.extensions)
  modules = (*config.extensions, *registry.extension_modules())
  with config.unlocked():
    config.extensions = tuple(dict.fromkeys(modules))
    for key, default in registry.extension_keys().items():
      *sections, name = key.split(".")
      holder = config
      for section in sections:
        if section not in holder:
          holder[section] = ConfigDict()
        holder = holder[section]
      if name not in holder:
        holder[name] = _any(default)


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
  """(h, w, c) of the images a config trains on."""
  size = config.data.image_size
  h, w = (size, size) if isinstance(size, int) else size
  return int(h), int(w), config.data.channels


def profiled(config: ConfigDict) -> range:
  """The steps that are to be traced, counted from 1; empty for none.

  Raises:
    UserError: `profile` does not say FIRST:LAST, or no steps of the run.
  """
  if not config.profile:
    return range(0)
  match = re.fullmatch(r"(\d+):(\d+)", config.profile)
  first, last = map(int, match.groups()) if match else (0, 0)
  if not 1 <= first <= last <= config.steps:
    raise UserError(
      f"profile={config.profile!r} must be FIRST:LAST, two steps of 1 to "
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
  "optim.vae.learning_rate",
  "optim.disc.learning_rate",
  "optim.vae.eps",
  "optim.disc.eps",
  "guard.max_nonfinite",
  "mesh.fsdp",
  "mesh.fsdp_min_size",
  "checkpoint.every",
  "checkpoint.keep",
)
NOT_NEGATIVE = (
  "model.bottleneck_channels",
  "adversarial.disc_start",
  "adversarial.gen_delay",
  "ramp.population_kl",
  "ramp.collapse_penalty",
  "ramp.kl",
  "ramp.kernel",
  "ramp.adversarial",
  "optim.vae.clip",
  "optim.disc.clip",
  "optim.vae.warmup",
  "optim.disc.warmup",
  "checkpoint.keep_best",
)
BELOW_ONE = (  # from 0
  "model.dropout",
  "optim.vae.b1",
  "optim.vae.b2",
  "optim.disc.b1",
  "optim.disc.b2",
  "ema.decay",
)


def check(config: ConfigDict) -> None:
  """Refuses a config that no run can have; names are checked by their tables.

  Raises:
    UserError: a value of the wrong type or out of its range, an image size
      that patches and halvings do not divide, features that are none.
  """
  check_keys(config)
  _check_ranges(config)
  profiled(config)
  for key, value in flat(config).items():
    if value is None and not key.startswith(("weights.", "preset_weights.")):
      raise UserError(
        f"{key} is None: give it a value, or let --config.preset=base (small, "
        "large) choose one."
      )
  check_data(config)


def check_keys(config: ConfigDict) -> None:
  """Refuses what is not `base()` with other values.

  Raises:
    UserError: as said.
  """
  if isinstance(config, ConfigDict) and "extensions" in config:
    extend(config)
  if not isinstance(config, ConfigDict) or flat(config).keys() != _keys():
    raise UserError(
      "The config has not the keys of gamix_jax.config.base(): get_config of "
      "its file has to return that, with changes."
    )


def _check_ranges(config: ConfigDict) -> None:
  for section in ("weights", "preset_weights"):
    for name, weight in config[section].items():
      if weight is not None and not (_is_number(weight) and weight >= 0):
        raise UserError(
          f"{section}.{name}={weight!r} is neither a number from 0 on nor None."
        )
  for key, value in flat(config).items():
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
      raise UserError(f"{key}={value} does not fit into 64 bits.")
  for keys, wanted, ok in (
    (POSITIVE, "> 0", lambda v: v > 0),
    (NOT_NEGATIVE, "0 or more", lambda v: v >= 0),
    (BELOW_ONE, "in [0, 1)", lambda v: 0 <= v < 1),
  ):
    for key in keys:
      value = get(config, key)
      if value is not None and not (_is_number(value) and ok(value)):
        raise UserError(f"{key}={value} must be {wanted}.")


def _is_number(value: Any) -> bool:
  """Whether it is a number that a float can hold, not infinite."""
  if not isinstance(value, int | float) or isinstance(value, bool):
    return False
  return abs(value) <= sys.float_info.max  # NaN is not


def check_data(config: ConfigDict) -> None:
  """Checks the section `data`, which presets and networks depend on.

  Raises:
    UserError: a value that is not of its type or out of its range.
  """
  Settings.from_config(config.data)


# ---------------------------------------------------------- keys and files


def get(config: ConfigDict, key: str) -> Any:
  """The value at a dotted key."""
  value = config
  for part in key.split("."):
    value = value[part]
  return value


def put(config: ConfigDict, key: str, value: Any) -> None:
  """Sets the value at a dotted key."""
  section, _, name = key.rpartition(".")
  holder = get(config, section) if section else config
  holder[name] = value


def flat(config: ConfigDict) -> dict[str, Any]:
  """{"data.batch_size": 20, ...}, every key; tuples as lists, as in JSON."""
  out = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      out |= {f"{key}.{k}": v for k, v in flat(value).items()}
    else:
      out[key] = list(value) if isinstance(value, tuple) else value
  return out


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple]:
  """{key: (old value, new value)} of the keys that differ."""
  a, b = flat(old), flat(new)
  keys = sorted(a.keys() | b.keys())
  return {k: (a.get(k), b.get(k)) for k in keys if a.get(k) != b.get(k)}


def to_json(config: ConfigDict) -> str:
  """The version and every key with its value, as `from_json` reads it."""
  return json.dumps({"version": VERSION} | flat(config), indent=1) + "\n"


def read(path: Path) -> ConfigDict:
  """The config of a file that `to_json` wrote, see `from_json`.

  Raises:
    UserError: it names the file, which cannot be read or holds no config.
  """
  try:
    text = path.read_text(encoding="utf-8")
  except OSError as e:
    raise UserError(f"{path} cannot be read ({e.strerror}).") from e
  except UnicodeDecodeError as e:
    raise UserError(f"{path} is not a config: it is not UTF-8.") from e
  return from_json(text, str(path))


def from_json(text: str, where: str = "config.json") -> ConfigDict:
  """The config that `to_json` wrote; keys it lacks have their defaults.

  Raises:
    UserError: not JSON, or not an object; written by another version of
      gamix_jax; a key that this version does not have, or a value of another
      type than its key's.
  """
  try:
    values = json.loads(text)
  except (ValueError, RecursionError) as e:  # also a number of 5,000 digits
    raise UserError(f"{where} is not a config: {e}.") from e
  if not isinstance(values, dict):
    raise UserError(f"{where} is not a config: it holds no keys.")
  version = values.pop("version", 1)  # the first was not written down
  if version != VERSION:
    raise UserError(
      f"{where} has config version {str(version)[:20]}, and this gamix_jax "
      f"reads {VERSION}. Use the version of gamix_jax that wrote it, or train "
      "anew."
    )
  config = base()
  extensions = values.get("extensions", [])
  if not _is_a(extensions, tuple) or not all(
    isinstance(v, str) for v in extensions
  ):
    raise UserError(f"{where}: extensions is no list of modules.")
  config.extensions = tuple(extensions)
  extend(config)
  known = _kinds(config)
  for key, value in values.items():
    if key not in known:
      close = difflib.get_close_matches(key, known, 1)
      hint = f" (did you mean {close[0]}?)" if close else ""
      raise UserError(
        f"{where} has the key {key[:80]}, which is none{hint}. A later "
        "version of gamix_jax may have written it."
      )
    kind, may_be_none = known[key]
    if not (may_be_none if value is None else _is_a(value, kind)):
      raise UserError(
        f"{where}: {key} is {str(value)[:80]!r}, and must be {_CALLED[kind]}."
      )
    put(config, key, tuple(value) if isinstance(value, list) else value)
  return config


def _kinds(config: ConfigDict) -> dict[str, tuple[type, bool]]:
  """{key: (type of its values, whether it may be None)}; object: several."""
  out = {}
  for name, value in config.items(preserve_field_references=True):
    if isinstance(value, ConfigDict):
      out |= {f"{name}.{k}": v for k, v in _kinds(value).items()}
    elif isinstance(value, config_dict.FieldReference):
      out[name] = value.get_type(), True
    else:
      out[name] = type(value), False
  return out


def _is_a(value: Any, kind: type) -> bool:
  """Whether a value of JSON, not null, may be that of a key of a type."""
  if kind is object:
    return any(_is_a(value, k) for k in (float, str, tuple))
  if kind is tuple:
    return isinstance(value, list) and all(
      _is_a(v, int) or _is_a(v, str) for v in value
    )
  if kind is float:
    return _is_number(value)
  if kind is str:
    return isinstance(value, str) and "\0" not in value
  return type(value) is kind


_CALLED = {
  int: "a whole number",
  float: "a number",
  bool: "true or false",
  str: "a word",
  tuple: "a list of whole numbers or words",
  object: "a number, a word or a list of such",
}


def _keys() -> KeysView[str]:
  """Every key that a config has."""
  return flat(base()).keys()
