"""--config.key=value on the command line: each kind of key, each mistake."""

import sys

import pytest
from absl import flags
from program import ROOT

from gamix_jax import cli, config, presets
from gamix_jax.errors import UserError
from gamix_jax.evaluate import settings

pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module.. method is deprecated:DeprecationWarning"
)


@pytest.fixture
def parsed(monkeypatch):
  """Returns digits' config with some flags, checked as in a run."""
  from ml_collections import config_flags

  monkeypatch.chdir(ROOT)

  def of(*words):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    argv = ["x", "--config=configs/digits.py", *words]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(config_flags.config_flags, "FLAGS", values)
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    cli.parse(argv)
    return presets.complete(values.config)

  return of


@pytest.mark.parametrize(
  ("word", "value"),
  [
    ("steps=1000", 1000),
    ("steps=1_000", 1000),
    ("seed=-1", -1),
    ("ema.decay=0", 0.0),
    ("ema.decay=1e-3", 1e-3),
    ("data.flip=True", True),
    ("data.flip=false", False),
    ("data.flip=1", True),
    ("model.latent=7", 7),
    ("data.image_size=8,16", (8, 16)),
    ("data.image_size=(8,16)", (8, 16)),
    ("data.exclude_labels=1", (1,)),
    ("data.exclude_labels=()", ()),
    ("data.exclude_labels=('a',1)", ("a", 1)),
    ("weights.collapse_penalty=2", 2),
    ("preset_weights.collapse_penalty=None", None),
    ("preset_weights.collapse_penalty=1e3", 1e3),
    ("profile=", ""),
    ("data.cache=none", "none"),
    ("data.cache=a folder", "a folder"),
  ],
)
def test_values(parsed, word, value):
  found = config.get(parsed(f"--config.{word}"), word.partition("=")[0])
  assert found == value and type(found) is type(value)


SECTIONS = [
  name
  for name, value in config.base().items()
  if isinstance(value, config.ConfigDict)
]


@pytest.mark.parametrize("section", [*SECTIONS, "posterior.mixture"])
@pytest.mark.parametrize("value", ["mixture", "", "None", "3", "()", "{'a':1}"])
def test_a_section_is_not_a_key(parsed, section, value):
  keys = list(config.flat(config.get(config.base(), section)))
  for word in (f"--config.{section}={value}", f"--config.{section}"):
    with pytest.raises(UserError, match="is a section") as e:
      parsed(word, value)
    assert f"It has: {', '.join(keys)}." in str(e.value)
  example = f"--config.{section}.name=" if "name" in keys else keys[0]
  assert example in str(e.value)


@pytest.mark.parametrize(
  ("word", "says"),
  [
    ("posterior.name.mixture=3", "posterior.name is not a section"),
    ("steps.x=3", "steps is not a section, but a key; its default is 240000"),
    ("model.encoder_features.0=3", "model.encoder_features is not a section"),
    *(
      (f"steps={value}", "steps=.* must be a whole number, in digits")
      for value in ("1e3", "1000.0", "", "None", "nan", "True", "(3)", "x")
    ),
    *(
      (f"model.latent={value}", "latent=.* must be a whole number")
      for value in ("1e2", "None", "", "8,8")
    ),
    *(
      (f"ema.decay={value}", "ema.decay=.* must be a number")
      for value in ("", "None", "1/2", "0,9", "(0.9)")
    ),
    *(
      (f"ema.decay={value}", r"ema.decay=.* must be in \[0, 1\)")
      for value in ("nan", "inf", "1")
    ),
    *(
      (f"data.flip={value}", "data.flip=.* must be true or false")
      for value in ("", "None", "yes", "2")
    ),
    *(
      (f"{key}=None", f"{key}=None: this key cannot be None")
      for key in (
        *("data.cache", "data.source", "data.crop", "posterior.name"),
        *("model.encoder_features", "data.exclude_labels", "dtype", "profile"),
      )
    ),
    *(
      (f"{key}=", f"{key}=: this key cannot be empty. Its default is")
      for key in (
        *("data.cache", "data.source", "data.crop", "posterior.name"),
        *("model.encoder_features", "data.exclude_labels", "dtype"),
      )
    ),
    *(
      (f"model.encoder_features={value}", "whole numbers > 0, as .64, 128")
      for value in ("(64", "64,x", "(64.5,)", "x", "((1,),)", "-1")
    ),
    *(
      (f"data.image_size={value}", r"an int or \(height, width\)")
      for value in ("", "None", "(8,8", "1e1", "8,8,8", "x", "True")
    ),
    *(
      (
        f"weights.collapse_penalty={value}",
        "weights.collapse_penalty=.* must be a number",
      )
      for value in ("", "none", "nan", "(1,)", "x", "True")
    ),
    ("seed=" + "9" * 30, "seed=9+ does not fit into 64 bits"),
  ],
)
def test_misspelt_overrides(parsed, word, says):
  with pytest.raises(UserError, match=says):
    parsed(f"--config.{word}")


def test_the_section_of_evaluate(monkeypatch):
  """`config.base` does not have this section."""
  from ml_collections import config_flags

  values = flags.FlagValues()
  argv = ["x", "--config.eval=x"]
  monkeypatch.setattr(flags, "FLAGS", values)
  monkeypatch.setattr(config_flags.config_flags, "FLAGS", values)
  monkeypatch.setattr(sys, "argv", argv)
  with pytest.raises(UserError, match=r"of a key in that section, as --config"):
    cli.parse(
      argv,
      lambda: config_flags.DEFINE_config_dict(
        "config", settings.base(), flag_values=values
      ),
    )
