"""Programs compiled ahead of time for 8 TPU chips. It needs libtpu, in a separate environment, and no TPU.

libtpu slows every start of jax, so none of the other environments has it. tests/README.md says how to run it.
"""

import functools

import hlo
import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
import tpu_cost

from gravity_optax import gravity
from trainer import steps, vgg
from trainer.devices import Program, Replicas

pytestmark = pytest.mark.tpu_compile

CHIPS, BATCH = 8, 128
PARAMETERS = {"vgg16": 33_638_218, "vgg19": 38_947_914}


@pytest.mark.parametrize("velocity_dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_maxima_of_all_leaves_travel_in_one_all_reduce_and_nothing_else_moves(velocity_dtype):
    """Each leaf is split along its longest axis that divides by the number of chips; the others are whole."""
    split = programs.along_the_longest_axis(tpu_cost.devices("v5e", tpu_cost.EIGHT_CHIPS["v5e"]))
    params = programs.vgg_shapes(vgg.build("vgg16", 1.0, 10, "float32"))
    assert len(jax.tree.leaves(params)) == 32 and programs.size(params) == PARAMETERS["vgg16"]
    compiled = programs.compiled_step(gravity(0.1, key=0, velocity_dtype=velocity_dtype), params, split)
    assert [c["kind"] for c in hlo.Program(compiled.as_text()).collectives()] == ["all-reduce"]
    # A chip holds its eighth of gradients, velocity and parameters; the working memory is below that of one of them.
    eighth = PARAMETERS["vgg16"] / CHIPS
    held = programs.held(compiled)
    assert held["arguments"] < 1.01 * eighth * (4 + 4 + (4 if velocity_dtype is None else 2))
    assert held["temporary"] < 4 * eighth


programs_of = pytest.mark.parametrize(("model", "chip"), [("vgg16", "v4"), ("vgg19", "v5e")])


def traffic(compiled):
    """The bytes of each collective, the largest first; all of them must be all-reduces."""
    collectives = hlo.Program(compiled.as_text()).collectives()
    assert {c["kind"] for c in collectives} == {"all-reduce"}
    return sorted((c["bytes"] for c in collectives), reverse=True)


# Float32 products take minutes to compile; tests/speed/tpu_cost.py counts the memory with them.
@programs_of
def test_training_fits_and_sends_the_gradients_in_one_all_reduce_per_step(model, chip):
    devices = tpu_cost.devices(chip, tpu_cost.EIGHT_CHIPS[chip])
    compiled = programs.compiled_chunk(devices, vgg.build(model, 1.0, 10, "default"), BATCH)
    gradients, *others = traffic(compiled)
    # Loss, hits and pictures may travel with the gradients, alone, or for all steps of the chunk at once.
    assert 0 <= gradients - 4 * PARAMETERS[model] <= 12
    assert sum(others) <= 12 * programs.STEPS
    assert programs.held(compiled)["sum"] < tpu_cost.MEMORY[chip]
    # The state is updated in place, not copied.
    assert compiled.memory_analysis().alias_size_in_bytes >= 8 * PARAMETERS[model]


@programs_of
def test_evaluation_fits_and_sends_three_scalars(model, chip):
    network = vgg.build(model, 1.0, 10, "default")
    replicas = Replicas(tpu_cost.devices(chip, tpu_cost.EIGHT_CHIPS[chip]))
    pictures = steps.Split(jax.ShapeDtypeStruct((10_000, 3072), jnp.uint8), jax.ShapeDtypeStruct((10_000,), jnp.int32))
    evaluate = functools.partial(steps.evaluate, steps.on_flat(network.apply, programs.SHAPE))
    batches = replicas.split(np.zeros((-(-10_000 // BATCH), BATCH), np.int32))
    program = Program(replicas, evaluate, programs.vgg_shapes(network), pictures, batches)
    compiled = program.compile().executable
    assert sum(traffic(compiled)) == 12
    assert programs.held(compiled)["sum"] < tpu_cost.MEMORY[chip]
