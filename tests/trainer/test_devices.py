"""How batches are split, where arrays lie, and the check of jaxlib."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import devices
from trainer.config import UserError


def test_a_batch_that_does_not_divide_is_filled_up_and_every_picture_is_kept_once():
    batches = np.arange(30, dtype=np.int32).reshape(3, 10)
    parts = devices.Replicas(jax.devices()).split(batches)
    assert parts.shape == (8, 3, 2)
    for step in range(3):
        pictures = parts[:, step].ravel()
        np.testing.assert_array_equal(np.sort(pictures[pictures >= 0]), batches[step])


def test_what_is_replicated_is_not_copied_again_when_a_program_is_called():
    replicas = devices.Replicas(jax.devices())
    tree = replicas.replicate({"w": jnp.ones((1000, 1000))})
    trace = replicas.run_everywhere(
        lambda tree, pictures, batches: jax.tree.map(
            lambda x: x + jax.lax.psum(batches.sum().astype(x.dtype), devices.steps.AXIS), tree
        ),
        donate_first=True,
    )
    batches = replicas.split(np.ones((1, 8), np.int32))
    program = trace(tree, tree["w"][:1], batches)()
    before = [s.data.unsafe_buffer_pointer() for s in tree["w"].addressable_shards]
    out = program(tree, replicas.replicate(tree["w"][:1]), batches)
    assert tree["w"].is_deleted(), "the state was copied, not donated"
    assert [s.data.unsafe_buffer_pointer() for s in out["w"].addressable_shards] == before
    np.testing.assert_array_equal(out["w"], np.full((1000, 1000), 9.0))
    assert out["w"].sharding.is_fully_replicated


def test_the_installed_jaxlib_computes_right():
    devices.check_arithmetic()


def test_a_jaxlib_that_computes_wrong_is_refused_by_version(monkeypatch):
    monkeypatch.setattr(devices.jax, "jit", lambda f: lambda a: -jnp.inf)
    with pytest.raises(UserError, match=rf"jax {jax.__version__} with jaxlib .* computes wrong results.*pip install"):
        devices.check_arithmetic()


@pytest.mark.parametrize(
    ("setting", "platform", "used"),
    [("auto", "cpu", False), ("auto", "tpu", True), ("auto", "gpu", True), ("on", "cpu", True), ("off", "tpu", False)],
)
def test_compiled_programs_are_kept_on_accelerators_or_when_asked_for(monkeypatch, setting, platform, used):
    settings = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    devices.use_compilation_cache(setting)
    assert ("jax_compilation_cache_dir" in settings) == used
