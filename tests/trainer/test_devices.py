"""How batches are split, where arrays are placed, and how programs are compiled."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import devices


def test_a_batch_that_does_not_divide_is_filled_up_and_every_picture_is_kept_once():
    batches = np.arange(30, dtype=np.int32).reshape(3, 10)
    parts = devices.Replicas(jax.devices()).split(batches)
    assert parts.shape == (8, 3, 2)
    for step in range(3):
        pictures = parts[:, step].ravel()
        np.testing.assert_array_equal(np.sort(pictures[pictures >= 0]), batches[step])


def test_what_is_replicated_is_not_copied_again_when_a_program_is_called():
    replicas = devices.Replicas(jax.devices())
    w, batches = replicas.replicate(jnp.ones((1000, 1000))), replicas.split(np.ones((1, 8), np.int32))
    function = lambda x, pictures, batches: x + devices.sum_over_devices(batches.sum().astype(x.dtype))
    program = devices.Program(replicas, function, w, w[:1], batches, donate_first=True).compile()
    places = lambda x: [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]
    before = places(w)
    out = program(w, replicas.replicate(w[:1]), batches)
    assert w.is_deleted() and places(out) == before, "the state was copied, not donated"
    np.testing.assert_array_equal(out, np.full((1000, 1000), 9.0))
    assert out.sharding.is_fully_replicated


@pytest.mark.parametrize("broken", [False, True])
def test_a_tpu_compiler_that_refuses_the_option_compiles_without_it_or_fails_with_its_own_message(broken):
    class Lowered:
        def compile(self, compiler_options=None):
            if compiler_options or broken:
                raise jax.errors.JaxRuntimeError("the option is unknown" if compiler_options else "too large")
            return "compiled"

    with pytest.raises(jax.errors.JaxRuntimeError, match="too large") if broken else contextlib.nullcontext():
        assert devices._compile(Lowered(), "tpu") == "compiled"
