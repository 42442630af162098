"""The one module that knows about devices: where arrays lie, and which functions run on all devices at once.

State and datasets are replicated; batches are split. Moving from `jax.pmap` to another SPMD primitive touches this
module only.
"""

import importlib.metadata
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import steps
from config import UserError
from jax.sharding import NamedSharding, PartitionSpec


class Replicas:
    """All devices of a run, each holding the same state and working on its part of every batch."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self.devices = tuple(devices or jax.devices())
        # The mesh that jax.pmap makes of these devices: what lies replicated on it is not copied again at a call.
        mesh = jax.sharding.Mesh(np.array(self.devices), (steps.AXIS,))
        self._replicated = NamedSharding(mesh, PartitionSpec())

    def replicate(self, tree: Any) -> Any:
        """The tree with a copy of every array on each device, its shapes unchanged. The input may be reused."""
        return jax.tree.map(lambda x: jax.device_put(x, self._replicated, may_alias=False), tree)

    def split(self, batches: np.ndarray) -> np.ndarray:
        """(steps, batch) picture numbers -> (devices, steps, ceil(batch / devices)), filled up with -1."""
        n, (count, batch) = len(self.devices), batches.shape
        filled = np.full((count, -(-batch // n) * n), -1, np.int32)
        filled[:, :batch] = batches
        return np.ascontiguousarray(filled.reshape(count, n, -1).swapaxes(0, 1))

    def run_everywhere(self, function: Callable, donate_first: bool = False) -> Callable:
        """`function` of (tree, pictures, batches) on all devices: the last is split, the others and the result are not.

        Returns a callable `compile(tree, pictures, batches)` that gives the compiled program for these shapes.
        """
        mapped = jax.pmap(
            function,
            axis_name=steps.AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=self.devices,
            donate_argnums=(0,) if donate_first else (),
        )
        return lambda *arguments: mapped.lower(*arguments).compile()


def use_compilation_cache(setting: str) -> None:
    """Turns JAX's persistent compilation cache on, as `Config.compilation_cache` says; before anything is compiled."""
    if setting == "off" or (setting == "auto" and jax.default_backend() == "cpu"):
        return
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/gravity-optax"))
    # Many small programs draw the initial state; each takes less than the second that JAX finds worth keeping.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def check_arithmetic() -> None:
    """Refuses a jaxlib that computes wrong results (jax-ml/jax issue 39103: -inf for this maximum on CPU)."""
    got = float(jax.jit(lambda a: (a @ jnp.ones((784, 64))).max())(jnp.ones((100, 784))))
    if got != 784.0:
        jaxlib = importlib.metadata.version("jaxlib")
        raise UserError(
            f"jax {jax.__version__} with jaxlib {jaxlib} computes wrong results on this machine (the largest"
            f" entry of a product is {got}, not 784); install another, for instance:"
            " pip install 'jax!=0.10.2,!=0.11.0' 'jaxlib!=0.10.2,!=0.11.0'"
        )
