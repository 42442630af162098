"""VGG16's update compiled ahead of time for 8 TPU chips. It needs libtpu, in an environment of its own, and no TPU.

libtpu slows every start of jax, so none of the other environments has it:

    pip install -e '.[tpu]' pytest
    pytest -m tpu_compile tests/test_tpu_compile.py
"""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import vgg
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gravity_optax import gravity

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

    def step(gradients, state, params):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    shardings = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    jitted = jax.jit(step, donate_argnums=(1, 2), out_shardings=shardings)
    compiled = jitted.lower(params, state, params).compile()
    assert collections.Counter(COLLECTIVE.findall(compiled.as_text())) == {"all-reduce": 1}
    # A chip holds its eighth of gradients, velocity and parameters; the working memory is below that of one of them.
    eighth = 33_638_218 / CHIPS
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < 1.01 * eighth * (4 + 4 + (4 if velocity_dtype is None else 2))
    assert memory.temp_size_in_bytes < 4 * eighth
