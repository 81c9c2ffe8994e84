"""A program holds the convolutions of the platform that it is lowered for.

The processes that trace have CPUs only. On other platforms all layers are plain
convolutions; a CPU has its own forms of some.
"""

from functools import partial

import jax
import pytest
from conftest import small, state_of
from jax.sharding import AbstractMesh, AxisType
from stablehlo import products, resolved

from gamix_jax import build, config, step
from gamix_jax.export import serialize, signatures
from gamix_jax.inference.model import Model
from gamix_jax.parallel import mesh

PLATFORMS = ("cpu", "cuda", "tpu")
# Layers, counted by hand. Encoder: stem, two blocks of 3, one of 4 that halves
# the image, head. Decoder: stem, a block of 3, a 1x1 and two transposed ones
# that double the image, output.
ENCODER, DECODER, DISCRIMINATOR = 1 + 3 + 3 + 4 + 1, 1 + 3 + 3 + 1, 3
# Those of 3x3 and stride 1 that lead from 64 channels to 64: two in each block,
# but one in the block that halves the image.
ENCODER_WINOGRAD, DECODER_WINOGRAD = 2 + 2 + 1, 2
# The 3x3 convolutions of the forward pass that are convolutions on a CPU, too:
# stem and strided; stem and the four phases of each transposed one.
ENCODER_CPU, DECODER_CPU = 1 + 1, 1 + 2 * 4


@pytest.fixture(scope="module")
def c():
  """A config with wide layers, so that a CPU has a form for each of them."""
  return small(
    data__image_size=32,
    model__encoder_features=(64, 64),
    model__decoder_features=(64, 1),
    model__discriminator_features=(8, 8, 1),
    model__discriminator_strides=(2, 1, 1),
  )


@pytest.fixture(scope="module")
def spec(c):
  return build.train_spec(c)


def asked(*args):
  raise AssertionError("the process's devices were asked for in tracing")


def traced_step(c, spec, devices):
  """Returns the training step, traced for a mesh of any platform's devices."""
  axes = (mesh.DATA, mesh.FSDP)
  grid = AbstractMesh((devices, 1), axes, axis_types=(AxisType.Auto,) * 2)
  plan = mesh.ShardingPlan(grid, c.mesh.fsdp_min_size)
  state = plan.with_shardings(jax.eval_shape(partial(step.init, spec)))
  shape = (c.data.batch_size, *config.image_shape(c))
  image = jax.ShapeDtypeStruct(
    shape, "uint8", sharding=mesh.batch_sharding(grid)
  )
  function = step.jit_train_step(spec, plan)
  with pytest.MonkeyPatch.context() as patch:
    for name in ("default_backend", "device_count", "devices"):
      patch.setattr(jax, name, asked)
    return function.trace(state, {"image": image})


@pytest.fixture(scope="module")
def step_of_one(c, spec):
  return traced_step(c, spec, 1)


def lower(traced, platform):
  return resolved(traced.lower(lowering_platforms=(platform,)))


def count(text, kind, wanted=lambda *shapes: True):
  """Returns the number of operations with shapes that are wanted."""
  return sum(
    wanted(*(shape for shape, _ in types)) for types in products(text, kind)
  )


def winograd(text):
  """Returns the number of products at the 36 points of Winograd's tiles."""
  return count(text, "dot_general", lambda a, b, _: len(a) == 3 and a[0] == 36)


def matrices_only(text):
  """Whether products are of matrices, as those of dense layers and moments."""
  return max(len(a) for (a, _), _, _ in products(text, "dot_general")) == 2


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_step_for_accelerators_is_plain_convolutions(step_of_one, platform):
  """Of each layer the forward pass, and the gradients to input and weights.

  The discriminator has one pass for real and fake images. For its own loss the
  input's gradient is needed between its layers, for the VAE's loss in all.
  """
  text = lower(step_of_one, platform)
  wanted = 3 * (ENCODER + DECODER)
  wanted += 2 * DISCRIMINATOR + (DISCRIMINATOR - 1) + DISCRIMINATOR
  assert count(text, "convolution") == wanted
  assert matrices_only(text)


def test_a_step_for_cpus_has_its_forms(step_of_one):
  text = lower(step_of_one, "cpu")
  assert winograd(text) == 3 * (ENCODER_WINOGRAD + DECODER_WINOGRAD)
  # Forward, to the kernel and to the input; a stride's gradient to the input,
  # or a transposed convolution, is four phases. The kernel's gradient of a wide
  # strided convolution is a product.
  stems, wide_strided, transposed = 2 * (1 + 1 + 1), 1 + 0 + 4, 2 * (4 + 1 + 1)
  strided, others = 1 + 1 + 4, 2 * (1 + 1 + 2)  # of the discriminator
  wanted = stems + wide_strided + transposed + strided + others
  assert count(text, "convolution") == wanted


def test_the_mesh_decides_and_not_the_process(c, spec):
  """The sum over devices is of the kernel's 9 numbers, not of 36."""
  text = lower(traced_step(c, spec, 8), "cpu")
  assert winograd(text) == 2 * (ENCODER_WINOGRAD + DECODER_WINOGRAD)


# ---------------------------------------------------------- export


@pytest.fixture(scope="module")
def exported(c, spec):
  """What `export --format=stablehlo` writes: {part: (function, inputs)}."""
  state = state_of(spec)
  vae, disc = (
    {"params": net.params, "batch_stats": net.batch_stats}
    for net in (state.vae, state.disc)
  )
  model = Model(c, spec, 0, vae, disc, which="raw")
  parts = [signatures.part(model, name) for name in signatures.PARTS]
  return {
    part.name: (
      jax.export.deserialize(bytearray(serialize.stablehlo(part))),
      part.shapes(2),
    )
    for part in parts
  }


@pytest.mark.parametrize(
  ("part", "layers", "on_cpu", "in_winograd"),
  [
    ("encoder", ENCODER, ENCODER_CPU, ENCODER_WINOGRAD),
    ("decoder", DECODER, DECODER_CPU, DECODER_WINOGRAD),
  ],
)
def test_an_exported_file_has_the_forms_of_each_platform(
  exported, part, layers, on_cpu, in_winograd
):
  """One file, which holds all of them; a program that loads it has one."""
  function, shapes = exported[part]
  assert function.platforms == PLATFORMS
  traced = jax.jit(function.call).trace(shapes)
  for platform in PLATFORMS:
    text = lower(traced, platform)
    cpu = platform == "cpu"
    assert count(text, "convolution") == (on_cpu if cpu else layers)
    assert winograd(text) == (in_winograd if cpu else 0)
    assert cpu or matrices_only(text)
