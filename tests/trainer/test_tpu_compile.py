"""Programs compiled ahead of time for 8 TPU chips. It needs libtpu, in an environment of its own, and no TPU.

libtpu slows every start of jax, so none of the other environments has it:

    pip install -e '.[tpu]' pytest
    pytest -m tpu_compile tests/trainer/test_tpu_compile.py
"""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gravity_optax import gravity
from trainer import optimizers, steps, vgg
from trainer.config import Config, resolve
from trainer.devices import Program, Replicas

pytestmark = pytest.mark.tpu_compile

CHIPS = 8
COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


def sharded_shapes(tree, mesh):
    """Each leaf split along its longest axis that divides by the number of chips; the others whole."""

    def with_sharding(leaf):
        axes = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % CHIPS == 0]
        longest = max(axes, key=lambda axis: leaf.shape[axis], default=None)
        spec = P(*("chips" if axis == longest else None for axis in range(leaf.ndim)))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(with_sharding, tree)


@pytest.fixture(scope="module")
def mesh():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU host to ask
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    assert len(topology.devices) == CHIPS
    return Mesh(np.array(topology.devices), ("chips",))


@pytest.fixture(scope="module")
def params(mesh):
    model = vgg.build("vgg16", width=1.0, num_classes=10, precision="float32")
    shapes = jax.eval_shape(lambda key: vgg.init(model, key, (32, 32, 3)), jax.random.key(0))
    leaves = jax.tree.leaves(shapes)
    assert len(leaves) == 32 and sum(leaf.size for leaf in leaves) == 33_638_218
    return sharded_shapes(shapes, mesh)


@pytest.mark.parametrize("velocity_dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_maxima_of_all_leaves_travel_in_one_all_reduce_and_nothing_else_moves(params, mesh, velocity_dtype):
    tx = gravity(0.1, key=0, velocity_dtype=velocity_dtype)
    state = sharded_shapes(jax.eval_shape(tx.init, params), mesh)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    shardings = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)
    compiled = jitted.lower(params, state, params).compile()
    assert collections.Counter(COLLECTIVE.findall(compiled.as_text())) == {"all-reduce": 1}
    # A chip holds its eighth of gradients, velocity and parameters; the working memory is below that of one of them.
    eighth = 33_638_218 / CHIPS
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < 1.01 * eighth * (4 + 4 + (4 if velocity_dtype is None else 2))
    assert memory.temp_size_in_bytes < 4 * eighth


# Slices of 8 chips: how they are called, and the bytes of memory that a chip has.
SLICES = {
    "v5e": ({"topology_name": "v5e:2x4"}, 16e9),
    "v4": ({"topology_name": "v4:2x2x2", "chip_config_name": "megacore"}, 32e9),  # a chip's two cores as one device
}
TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000  # CIFAR
BATCH, CHUNK = 128, 23  # 391 steps per epoch are 17 chunks


class Trainer:
    """What `loop.build` compiles for CIFAR-10, from shapes alone, for the chips of a slice."""

    def __init__(self, model, slice_name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TPU_SKIP_MDS_QUERY", "1")
            devices = topologies.get_topology_desc(platform="tpu", **SLICES[slice_name][0]).devices
        assert len(devices) == CHIPS
        # Float32 products take minutes to compile; tests/speed/tpu_cost.py counts the memory with them.
        config = resolve(Config(dataset="cifar10", model=model, precision="default"))
        self.model = vgg.build(model, config.width, 10, config.precision)
        self.tx = optimizers.build(config, jax.random.key(0))
        self.params = jax.eval_shape(lambda key: vgg.init(self.model, key, (32, 32, 3)), jax.random.key(0))
        self.state = jax.eval_shape(lambda params: steps.TrainState(params, self.tx.init(params)), self.params)
        self.apply = steps.on_flat(self.model.apply, (32, 32, 3))
        self.replicas = Replicas(devices)
        self.replicas.local = list(range(CHIPS))  # as if one process drove them all

    def compile(self, function, tree, size, count, **options):
        pictures = steps.Split(
            jax.ShapeDtypeStruct((size, 32 * 32 * 3), jnp.uint8), jax.ShapeDtypeStruct((size,), jnp.int32)
        )
        batches = np.zeros((CHIPS, count, BATCH // CHIPS), np.int32)
        return Program(self.replicas, function, tree, pictures, batches, **options).compile().executable


def traffic(compiled):
    """The number of elements of each collective's result, the largest first; all of them must be all-reduces."""
    sizes = []
    for line in compiled.as_text().splitlines():
        if found := COLLECTIVE.search(line):
            assert found[1] == "all-reduce", line
            shapes = re.findall(r"[a-z]+[0-9]+\[([0-9,]*)\]", line[: found.start()])
            sizes.append(sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes))
    return sorted(sizes, reverse=True)


def fits(compiled, slice_name):
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    used += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return used < SLICES[slice_name][1]


@pytest.mark.parametrize("slice_name", SLICES)
@pytest.mark.parametrize("model", ["vgg16", "vgg19"])
def test_training_fits_and_sends_the_gradients_in_one_all_reduce_per_step(model, slice_name):
    trainer = Trainer(model, slice_name)
    chunk = functools.partial(steps.train_chunk, trainer.apply, trainer.tx)
    compiled = trainer.compile(chunk, trainer.state, TRAIN_IMAGES, CHUNK, donate_first=True)
    gradients, *others = traffic(compiled)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trainer.params))
    # Loss, hits and pictures may travel with the gradients, alone, or for all steps of the chunk at once.
    assert parameters <= gradients <= parameters + 3
    assert sum(others) <= 3 * CHUNK
    assert fits(compiled, slice_name)
    # The state is updated in place: it is not there twice.
    assert compiled.memory_analysis().alias_size_in_bytes >= 8 * parameters


@pytest.mark.parametrize("slice_name", SLICES)
@pytest.mark.parametrize("model", ["vgg16", "vgg19"])
def test_evaluation_fits_and_sends_three_scalars(model, slice_name):
    trainer = Trainer(model, slice_name)
    evaluation = functools.partial(steps.evaluate, trainer.apply)
    compiled = trainer.compile(evaluation, trainer.params, TEST_IMAGES, -(-TEST_IMAGES // BATCH))
    assert sum(traffic(compiled)) == 3
    assert fits(compiled, slice_name)
