"""Pictures of a trained model: python -m gamix_jax.generate.

--workdir=DIR           the run's
--what=samples          new images, from --source at --temperature
       reconstructions  held-out images over what comes back of them
       interpolation    from an image to another, a row a pair
       traversal        an image, moved along one latent or two
       components       what each component of an image's posterior shows
       map              the codes of held-out images in a plane, by label
       walk             a film from sample to sample; .gif or .mp4
--out=FILE.png          what is written
--format=folder         --out is a folder instead: 00000.png, 00001.png, ... as
                        they are, and protocol.json
--which=ema|raw --step=N     the averaged or the last weights; of a checkpoint
--images=0,7,a.png      of the test split by index, or files
--n=64                  how many images
--source=prior|population|gmm|vamp --temperature=1 --seed=0   of new images
--fit_images=N --components=N|bic    of population and gmm, fitted once
--dims=0,1 --span=20    of a traversal: latents, posterior standard deviations
--steps=N               images along a way; of a walk, frames a stop
--path=straight|spherical            of an interpolation
--method=pca|tsne|umap               of a map
--stops=5 --fps=12                   of a walk
--config.data.source=folder:DIR      where the run's images lie now
"""

import sys

from absl import flags

from gamix_jax import cli
from gamix_jax.errors import UserError

# Of each kind of picture: the flags that it reads besides those of all.
NEW = ("source", "temperature", "seed", "fit_images", "components")
USES = {
  "samples": ("n", *NEW),
  "reconstructions": ("n", "images"),
  "interpolation": ("images", "steps", "path"),
  "traversal": ("images", "dims", "span", "steps"),
  "components": ("images",),
  "map": ("n", "method", "seed"),
  "walk": ("n", "images", "steps", "stops", "fps", *NEW),
}
FORMATS = ("figure", "folder")


def _check(given: flags.FlagValues) -> None:
  """Refuses what can be told before anything is loaded."""
  for name in ("workdir", "what", "out"):
    if not given[name].value:
      raise UserError(f"--{name} is missing; --help shows the command.")
  if given.what not in USES:
    raise UserError(f"--what={given.what} must be one of {', '.join(USES)}.")
  if given.format not in FORMATS:
    raise UserError(
      f"--format={given.format} must be one of {', '.join(FORMATS)}."
    )
  optional = {name for names in USES.values() for name in names}
  for name in sorted(optional - set(USES[given.what])):
    if given[name].present:
      of = [what for what, names in USES.items() if name in names]
      raise UserError(
        f"--{name} says nothing about --what={given.what}; it is of "
        f"{', '.join(of)}."
      )


def main() -> None:
  """Makes the picture that the flags ask for.

  Raises:
    UserError: whatever is wrong with the flags, the run or the images.
  """
  given = flags.FLAGS
  _check(given)
  cli.use_compilation_cache()
  cli.keep_freed_memory(given.workdir)
  from gamix_jax.generate import renderers  # noqa: PLC0415  (flags come first)

  asked = {name: given[name].value for name in USES[given.what]}
  renderers.make(
    given.workdir,
    given.what,
    given.out,
    data=given.config.data,
    raw=given.format == "folder",
    which=given.which,
    step=given.step,
    **asked,
  )


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "The run's.")
  flags.DEFINE_string("what", None, "Which picture.")
  flags.DEFINE_string("out", None, "The file or folder to write.")
  flags.DEFINE_string("format", "figure", "Or folder: raw images.")
  flags.DEFINE_string("which", "ema", "Averaged or raw weights.")
  flags.DEFINE_integer("step", None, "Of a checkpoint; the newest.")
  flags.DEFINE_list("images", None, "Indices of the test split, or files.")
  flags.DEFINE_integer("n", None, "How many images.")
  flags.DEFINE_string("source", "prior", "Of new latents.")
  flags.DEFINE_float("temperature", 1.0, "Of new latents.")
  flags.DEFINE_integer("seed", 0, "Of what is random.")
  flags.DEFINE_integer("fit_images", None, "Training images to fit to.")
  flags.DEFINE_string("components", None, "Of the mixture fitted, or bic.")
  flags.DEFINE_list("dims", None, "One latent or two.")
  flags.DEFINE_float("span", 20.0, "Posterior standard deviations.")
  flags.DEFINE_integer("steps", None, "Images along a way.")
  flags.DEFINE_string("path", "straight", "Or spherical.")
  flags.DEFINE_string("method", "pca", "Or tsne, umap.")
  flags.DEFINE_integer("stops", 5, "Samples that a walk passes.")
  flags.DEFINE_float("fps", 12.0, "Frames a second.")
  cli.define_data()
  sys.exit(cli.run(main, text=__doc__))
