"""The networks by name, the weights that a run starts from, and VGG against Table 4 and flax's own layers."""

import itertools
import re

import flax.linen as nn
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
    flags = {"model": "mlp", "width": 0.1, "norm": "group"}  # which has scales too
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


def shapes(model, image_shape=(32, 32, 3)):
    return jax.eval_shape(lambda: vgg.init(model, KEY, image_shape))


@pytest.mark.parametrize(("model", "count"), [("vgg16", 33_638_218), ("vgg19", 38_947_914)])
def test_the_number_of_parameters_is_the_papers_and_width_multiplies_every_layer_but_the_last(model, count):
    assert sum(x.size for x in jax.tree.leaves(shapes(vgg.build(model, 1.0, 10, "float32")))) == count
    leaves = jax.tree.leaves(shapes(vgg.build(model, 0.25, 10, "float32")))
    assert {x.shape[-1] for x in leaves} == {16, 32, 64, 128, 1024, 10}


def test_kernels_are_flaxs_glorot_uniform_and_biases_zero():
    for shape in [(3, 3, 5, 7), (12, 9)]:
        np.testing.assert_array_equal(vgg.glorot_uniform(KEY, shape), nn.initializers.glorot_uniform()(KEY, shape))
    layer = vgg.Dense(10, jnp.float32, None, vgg.glorot_uniform)
    assert np.all(layer.init(KEY, jnp.ones((1, 12)))["params"]["bias"] == 0)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_logits_are_those_of_a_vgg_written_with_flaxs_own_layers(norm):
    """Only the layers differ: flax's `nn.Conv`, `nn.max_pool` and `nn.GroupNorm`, on the same parameters."""
    model, rng = vgg.build("vgg11", 0.125, 10, "float32", norm), np.random.default_rng(0)
    # No bias is zero, no scale one.
    draw = lambda x: np.float32(rng.uniform(-1, 1, x.shape) / np.sqrt(np.prod(x.shape[:-1])) * 1.7)
    params = jax.tree.map(draw, shapes(model, (28, 28, 1)))
    images = rng.integers(0, 256, (5, 28, 28, 1)).astype(np.uint8)

    @jax.jit
    def plain(params, images):
        kernels = (params[f"Conv3x3_{i}"] for i in itertools.count())
        scales = (params[f"GroupNorm_{i}"] for i in itertools.count())
        group_norm = lambda x: nn.GroupNorm(min(32, x.shape[-1] // 2)).apply({"params": next(scales)}, x)
        activated = lambda x: nn.relu(group_norm(x) if norm == "group" else x)
        x = jax.image.resize(jnp.float32(images) / 255, (5, 32, 32, 1), "linear")
        for count, features in zip((1, 1, 2, 2, 2), (8, 16, 32, 64, 64), strict=True):
            for _ in range(count):
                x = activated(nn.Conv(features, (3, 3)).apply({"params": next(kernels)}, x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(5, -1)
        for layer, features in enumerate((512, 512, 10)):
            x = nn.Dense(features).apply({"params": params[f"Dense_{layer}"]}, x)
            x = activated(x) if layer < 2 else x
        return x

    expected = plain(params, images)
    logits = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(expected))))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 16), (12, 4), (205, 1), (2, 1), (1, 1)])
def test_a_group_has_at_least_two_channels(channels, groups):
    assert vgg.groups(channels) == groups


@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("precision", ["float32", "default", "bfloat16"])
def test_float32_is_asked_for_in_every_product_and_parameters_gradients_and_logits_are_float32(precision, norm):
    model = vgg.build("vgg11", 0.05, 10, precision, norm)
    images = jnp.zeros((2, 32, 32, 1), jnp.uint8)  # no resize, whose products are always exact
    params, sums = shapes(model, (8, 8, 1)), lambda p: model.apply({"params": p}, images).sum()
    lowered = jax.jit(jax.value_and_grad(sums)).lower(params)
    assert {x.dtype.name for x in jax.tree.leaves((params, lowered.out_info))} == {"float32"}
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).*", lowered.as_text())
    assert len(products) > 20
    assert sum("HIGH" in line for line in products) == (len(products) if precision == "float32" else 0)
    assert any("bf16" in line for line in products) == (precision == "bfloat16")
