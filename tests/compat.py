"""Names of newer jax for the tests that also run on older ones."""

import contextlib

import jax
import jax.experimental

# Up to jax 0.7 only jax.sharding.use_mesh exists, up to jax 0.8 only jax.experimental.enable_x64.
set_mesh = jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh
reshard = jax.reshard if hasattr(jax, "reshard") else jax.sharding.reshard


@contextlib.contextmanager
def enable_x64():
    """64-bit types, inside the block alone."""
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield
