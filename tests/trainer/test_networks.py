"""The networks by name, and the weights that a run starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import networks, vgg
from trainer.config import Config, resolve

KEY = jax.random.key(5)


def start(shape=(8, 8, 1), **flags):
    """The configuration's network and its initial weights, by name."""
    config = resolve(Config(**flags))
    model = networks.build(config, 10)
    params = jax.jit(lambda: networks.initial(config, model, KEY, shape))()
    named = {"/".join(k.key for k in path): np.asarray(x) for path, x in jax.tree.leaves_with_path(params)}
    return model, params, named


def test_without_flags_it_is_the_papers_network_and_weights():
    model = networks.build(resolve(Config(width=0.03)), 10)
    assert model == vgg.build("vgg11", 0.03, 10, "float32", "none")
    plain, params, _ = start(model="softmax")
    jax.tree.map(np.testing.assert_array_equal, params, jax.jit(lambda: vgg.init(plain, KEY, (8, 8, 1)))())


def test_with_he_the_kernels_have_twice_the_variance_over_the_fan_in():
    flags = {"model": "mlp", "width": 0.1, "norm": "group"}
    weights, glorot = start(init="he", **flags)[2], start(**flags)[2]
    assert weights.keys() == glorot.keys()
    for name, w in weights.items():
        if not name.endswith("kernel"):
            np.testing.assert_array_equal(w, glorot[name])
            continue
        expected = np.sqrt(2 / np.prod(w.shape[:-1]))
        assert abs(w.std() / expected - 1) < 4 / np.sqrt(w.size)
        assert np.abs(w).max() <= 2.0001 * expected / 0.87962566  # cut at two deviations, and scaled for it
        assert np.abs(w).max() > np.sqrt(3) * expected or w.size < 1000  # not uniform


def test_noise_is_added_to_every_weight():
    """With norm, so that there are scales too."""
    flags = {"model": "mlp", "width": 0.1, "norm": "group"}
    plain, noisy = start(**flags)[2], start(init_noise=0.03, **flags)[2]
    assert plain.keys() == noisy.keys()
    noise = {name: noisy[name] - w for name, w in plain.items()}
    for name, n in noise.items():
        assert abs(n.std() / 0.03 - 1) < 4 / np.sqrt(n.size), name
        assert abs(n.mean()) < 4 * 0.03 / np.sqrt(n.size), name
    assert len({n.ravel()[0] for n in noise.values()}) == len(noise), "leaves share their noise"


@pytest.mark.parametrize(("model", "hidden", "shape"), [("softmax", 0, (8, 8, 1)), ("mlp", 2, (4, 3, 3))])
def test_the_small_networks_are_dense_layers_on_the_pictures_as_they_are(model, hidden, shape):
    network, params, weights = start(shape, model=model, width=0.01, init_noise=0.1)
    assert len(weights) == 2 * (hidden + 1)
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    x = images.reshape(5, -1) / 255.0
    for i in range(hidden + 1):
        x = x @ weights[f"Dense_{i}/kernel"].astype(float) + weights[f"Dense_{i}/bias"]
        x = np.maximum(x, 0) if i < hidden else x
        assert x.shape[1] == (41 if i < hidden else 10)
    logits = network.apply({"params": params}, jnp.asarray(images))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, x, rtol=1e-4, atol=1e-5)
