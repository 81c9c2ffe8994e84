"""Renders pictures from a trained model: python -m gamix_jax.generate.

--workdir=DIR           workdir of the run
--what=samples          new images, from --source at --temperature
       reconstructions  held-out images above their reconstructions
       interpolation    from one image to another, one row per pair
       traversal        an image, moved along one or two latents
       components       each posterior component of an image, decoded
       completions      images of which the encoder sees a part, and what each
                        posterior component and --n draws make of them
       map              the codes of held-out images in 2D, coloured by label
       walk             an animation from sample to sample; .gif or .mp4
                        of runs of several modalities:
       translations     from each modality to all others; also samples and
                        reconstructions
--out=FILE.png          output file
--format=folder         --out is a folder of unscaled images, 00000.png,
                        00001.png, ..., with protocol.json
--which=ema|raw --step=N     averaged or last weights; step of the checkpoint
--images=0,7,a.png      indices in the test split, or files
--n=64                  number of images
--source=prior|population|gmm|two_stage|vamp --temperature=1 --seed=0
                        for new images; default: prior, or gmm if the model has
                        no prior
--fit_images=N --components=N|bic    for population, gmm, two_stage, fitted once
--dims=0,1 --span=20    for traversal: latents, posterior standard deviations
--steps=N               images per path; for walk, frames per stop
--path=straight|spherical            for interpolation
--method=pca|tsne|umap               for map
--stops=5 --fps=12                   for walk
--config.data.source=folder:DIR      where the run's images are now
"""

import sys

from absl import flags

from gamix_jax import cli
from gamix_jax.errors import UserError
from gamix_jax.locate import locate
from gamix_jax.registry import check_choice

# The flags of each kind of picture, in addition to the common ones.
SAMPLING_FLAGS = ("source", "temperature", "seed", "fit_images", "components")
USES = {
  "samples": ("n", *SAMPLING_FLAGS),
  "reconstructions": ("n", "images"),
  "translations": ("n", "images"),
  "interpolation": ("images", "steps", "path"),
  "traversal": ("images", "dims", "span", "steps"),
  "components": ("images",),
  "completions": ("n", "images", "seed"),
  "map": ("n", "method", "seed"),
  "walk": ("n", "images", "steps", "stops", "fps", *SAMPLING_FLAGS),
}
FORMATS = ("figure", "folder")


def _check(given: flags.FlagValues) -> None:
  """Validates the flags before anything is loaded."""
  for name in ("workdir", "what", "out"):
    if not given[name].value:
      raise UserError(f"--{name} is missing; --help shows the command.")
  check_choice("--what", given.what, USES)
  check_choice("--format", given.format, FORMATS)
  optional = {name for names in USES.values() for name in names}
  for name in sorted(optional - set(USES[given.what])):
    if given[name].present:
      users = [what for what, names in USES.items() if name in names]
      raise UserError(
        f"--{name} has no effect on --what={given.what}; remove it, or use "
        f"--what={' or '.join(users)}."
      )


def main() -> None:
  """Renders the picture that the flags specify.

  Raises:
    UserError: if the flags, the run or the images are invalid.
  """
  given = flags.FLAGS
  _check(given)
  cli.use_compilation_cache()
  where = locate(given.workdir)
  cli.keep_freed_memory(where)
  from gamix_jax.generate import renderers  # noqa: PLC0415  (flags come first)

  options = {name: given[name].value for name in USES[given.what]}
  renderers.make(
    where,
    given.what,
    given.out,
    data=given.config.data,
    raw=given.format == "folder",
    which=given.which,
    step=given.step,
    **options,
  )


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Workdir of the run.")
  flags.DEFINE_string("what", None, "Kind of picture.")
  flags.DEFINE_string("out", None, "Output file or folder.")
  flags.DEFINE_string("format", "figure", "figure, or folder for raw images.")
  flags.DEFINE_string("which", "ema", "ema (averaged) or raw weights.")
  flags.DEFINE_integer("step", None, "Step of the checkpoint; default: newest.")
  flags.DEFINE_list("images", None, "Indices of the test split, or files.")
  flags.DEFINE_integer("n", None, "Number of images.")
  flags.DEFINE_string("source", None, "Source of new latents.")
  flags.DEFINE_float("temperature", 1.0, "Scale of new latents.")
  flags.DEFINE_integer("seed", 0, "Random seed.")
  flags.DEFINE_integer("fit_images", None, "Training images to fit to.")
  flags.DEFINE_string("components", None, "Of the fitted mixture, or bic.")
  flags.DEFINE_list("dims", None, "One or two latents.")
  flags.DEFINE_float("span", 20.0, "Posterior standard deviations.")
  flags.DEFINE_integer("steps", None, "Images per path.")
  flags.DEFINE_string("path", "straight", "straight or spherical.")
  flags.DEFINE_string("method", "pca", "pca, tsne or umap.")
  flags.DEFINE_integer("stops", 5, "Samples per walk.")
  flags.DEFINE_float("fps", 12.0, "Frames per second.")
  cli.define_data()
  sys.exit(cli.run(main, text=__doc__))
