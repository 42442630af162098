"""Programs compiled ahead of time for NVIDIA cards. It needs the compiler of NVIDIA's wheel, and no GPU and no driver.

In a separate environment, where jax's plugin for CUDA is; tests/README.md says how to run it.
"""

import functools

import gpu_cost
import hlo
import jax
import optax
import programs
import pytest

from gravity_optax import gravity
from trainer import vgg

pytestmark = pytest.mark.gpu_compile

# G twice (for its maximum first), V and W in and out; Adam has two moments and no maximum, momentum one.
ARRAYS = {"gravity": 6, "optax.adam": 7, "optax.sgd, momentum": 5}
LARGEST_LEAF = 4 * 4096 * 4096  # bytes of the second dense layer's kernel, the only array of a chunk of this size


@functools.cache
def vgg16():
    return programs.vgg_shapes(vgg.build("vgg16", 1.0, 10, "float32"))


def assert_moves_no_more_than_it_must(name, tx, params, card="H100"):
    with jax.numpy_dtype_promotion("standard"):  # optax.adam mixes them
        compiled, program = programs.counted_step(tx, params, gpu_cost.devices(card, 1)[0])
    assert ARRAYS[name] <= programs.arrays_moved(program, params) < ARRAYS[name] + 0.01
    assert programs.held(compiled)["temporary"] < 2**20
    return program


STEPS = [(name, leaves, "H100") for name in ARRAYS for leaves in ("VGG16", "1 x 100M")]


@pytest.mark.parametrize(("name", "leaves", "card"), [*STEPS, ("gravity", "VGG16", "A100")])
def test_a_step_moves_each_array_as_often_as_it_must(name, leaves, card):
    params = programs.trees()[leaves]
    program = assert_moves_no_more_than_it_must(name, programs.OPTIMIZERS[name], params, card)
    # One kernel per leaf; for Gravity's maximum one to three more (large leaves in stages); and a few for scalars.
    assert len(params) <= program.kernels(program.entry) <= (4 if name == "gravity" else 1) * len(params) + 4


def test_the_counting_sees_a_pass_too_many():
    again = optax.stateless(lambda updates, _: jax.tree.map(jax.lax.optimization_barrier, updates))
    broken = optax.chain(gravity(0.1, key=0), again)
    with pytest.raises(AssertionError):
        assert_moves_no_more_than_it_must("gravity", broken, vgg16())
    _, program = programs.counted_step(broken, vgg16(), gpu_cost.devices("H100", 1)[0])
    assert 7.99 < programs.arrays_moved(program, vgg16()) < 8.01  # each is written and read again


@pytest.mark.parametrize(("count", "precision"), [(1, "bfloat16"), (8, "float32")])
def test_a_chunk_fits_updates_in_place_and_sends_the_gradients_once(count, precision):
    model = vgg.build("vgg16", 1.0, 10, precision)
    compiled = programs.compiled_chunk(gpu_cost.devices("H100", count), model, 128)
    program = hlo.Program(compiled.as_text())
    parameters = 4 * programs.size(vgg16())
    assert programs.held(compiled)["sum"] < gpu_cost.MEMORY["H100"] / 10  # convolutions may ask for more
    assert compiled.memory_analysis().alias_size_in_bytes >= 2 * parameters
    # Within the chunk too: V and W in and out, G twice, and no copy. A gradient that need not travel stays bfloat16.
    passes = [program.passes(size, program.loop_body(), "VGG") for size in (LARGEST_LEAF, LARGEST_LEAF // 2)]
    assert "f32[4096,4096]" not in program.copies(program.loop_body())
    if count == 1:
        assert program.collectives() == [] and passes == [4, 2]
        return
    assert passes[0] == 6
    assert {c["kind"] for c in program.collectives()} == {"all-reduce"}
    # The number of pictures travels on its own; loss and hits may travel with the gradients.
    assert parameters <= sum(c["bytes"] for c in program.collectives() if c["in_loop"]) <= parameters + 16
