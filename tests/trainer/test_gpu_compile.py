"""Programs compiled ahead of time for NVIDIA cards. It needs the compiler of NVIDIA's wheel, and no GPU and no driver.

In an environment of its own, where jax's plugin for CUDA is:

    pip install -e '.[gpu-compile]'
    pytest -n 0 -m gpu_compile tests/trainer/test_gpu_compile.py
"""

import functools

import gpu_cost
import hlo
import jax
import jax.numpy as jnp
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
        compiled, program = gpu_cost.step(tx, params, card)
    assert ARRAYS[name] <= gpu_cost.arrays_moved(program, params) < ARRAYS[name] + 0.01
    assert programs.held(compiled)["temporary"] < 2**20
    return program


@pytest.mark.parametrize("card", gpu_cost.CARDS)
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("leaves", ["VGG16", "1 x 100M"])
def test_a_step_moves_each_array_as_often_as_it_must(name, leaves, card):
    params = programs.trees()[leaves]
    program = assert_moves_no_more_than_it_must(name, programs.OPTIMIZERS[name], params, card)
    # One kernel per leaf; for Gravity's maximum one to three more (large leaves in stages); and a few for scalars.
    most = (4 if name == "gravity" else 1) * len(params)
    assert len(params) <= program.kernels(program.entry) <= most + 4


def through_memory(tree):
    return jax.tree.map(jax.lax.optimization_barrier, tree)


@pytest.mark.parametrize(
    "broken",
    [
        optax.chain(gravity(0.1, key=0), optax.stateless(lambda updates, _: through_memory(updates))),
        optax.chain(
            optax.stateless(lambda gradients, _: through_memory(optax.tree.scale(2.0, gradients))), gravity(0.1, key=0)
        ),
    ],
    ids=["updates through memory", "a gradient written once more"],
)
def test_the_counting_sees_a_pass_too_many(broken):
    with pytest.raises(AssertionError):
        assert_moves_no_more_than_it_must("gravity", broken, vgg16())
    _, program = gpu_cost.step(broken, vgg16())
    assert 7.99 < gpu_cost.arrays_moved(program, vgg16()) < 8.01  # each is written and read again


def assert_gradients_travel_once(program):
    reduced = [c["bytes"] for c in program.collectives() if c["in_loop"]]
    assert {c["kind"] for c in program.collectives()} == {"all-reduce"}
    # The number of pictures travels on its own; loss and hits may travel with the gradients.
    gradients = 4 * programs.size(vgg16())
    assert gradients <= sum(reduced) <= gradients + 16


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 8])
def test_a_chunk_fits_updates_in_place_and_sends_the_gradients_once(count, precision):
    model = vgg.build("vgg16", 1.0, 10, precision)
    compiled = programs.compiled_chunk(gpu_cost.devices("H100", count), model, 128)
    program = hlo.Program(compiled.as_text())
    parameters = 4 * programs.size(vgg16())
    assert programs.held(compiled)["sum"] < gpu_cost.CARDS["H100"].memory / 10  # convolutions may ask for more
    assert compiled.memory_analysis().alias_size_in_bytes >= 2 * parameters
    if count == 8:
        assert_gradients_travel_once(program)
    else:
        assert program.collectives() == []
    # Within the chunk too: V and W in and out, G twice, and no copy. A gradient that need not travel stays bfloat16.
    narrow = precision == "bfloat16" and count == 1
    assert program.passes(LARGEST_LEAF, program.loop_body(), "VGG") == (4 if narrow else 6)
    assert not narrow or program.passes(LARGEST_LEAF // 2, program.loop_body(), "VGG") == 2
    assert "f32[4096,4096]" not in program.copies(program.loop_body())


def test_the_counting_sees_gradients_sent_twice():
    twice = optax.stateless(lambda gradients, _: jax.lax.pmean(through_memory(gradients), "devices"))
    model = vgg.build("vgg16", 1.0, 10, "bfloat16")
    tx = optax.chain(twice, gravity(0.1, key=0))
    program = hlo.Program(programs.compiled_chunk(gpu_cost.devices("H100", 8), model, 128, tx).as_text())
    with pytest.raises(AssertionError):
        assert_gradients_travel_once(program)


def test_the_counting_sees_what_a_loop_copies():
    """A loop that turns its state by an axis cannot write it in place."""
    sharding = jax.sharding.SingleDeviceSharding(gpu_cost.devices("H100", 1)[0])
    state = jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=sharding)
    turn = jax.jit(lambda x: jax.lax.fori_loop(0, 7, lambda _, x: x[::-1] + 1, x))
    program = hlo.Program(turn.lower(state).compile().as_text())
    assert program.copies(program.loop_body()) == {"f32[512,512]": 1}
