"""The notebooks have jax's own promotion of dtypes, on which optax relies."""

import jax
import pytest


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield
