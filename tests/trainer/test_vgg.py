"""The models against the paper's Table 4 and the published runs' description."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import vgg


def shapes(model, image_shape=(32, 32, 3), num_classes=10, width=1.0):
    network = vgg.build(model, width, num_classes, "float32")
    return jax.eval_shape(lambda: vgg.init(network, jax.random.key(0), image_shape))


@pytest.mark.parametrize(("model", "count"), [("vgg16", 33_638_218), ("vgg19", 38_947_914)])
def test_the_number_of_parameters_is_the_papers(model, count):
    assert sum(x.size for x in jax.tree.leaves(shapes(model))) == count


def test_width_multiplies_every_layer_but_the_last():
    sizes = {x.shape[-1] for x in jax.tree.leaves(shapes("vgg11", width=0.25))}
    assert sizes == {16, 32, 64, 128, 1024, 10}


def test_kernels_are_flaxs_glorot_uniform_and_biases_zero():
    key = jax.random.key(3)
    for shape in [(3, 3, 5, 7), (12, 9)]:
        np.testing.assert_array_equal(vgg.glorot_uniform(key, shape), nn.initializers.glorot_uniform()(key, shape))
    params = vgg.init(vgg.build("vgg11", 0.03, 10, "float32"), key, (8, 8, 1))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert bool(jnp.all(leaf == 0)) == ("bias" in jax.tree_util.keystr(path))


@pytest.mark.parametrize("norm", ["none", "group"])
def test_logits_are_those_of_a_vgg_written_with_flaxs_own_layers(norm):
    """Only the layers differ: flax's `nn.Conv`, `nn.max_pool` and `nn.GroupNorm`, on the same parameters."""
    model, rng = vgg.build("vgg11", 0.125, 10, "float32", norm), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: vgg.init(model, jax.random.key(0), (28, 28, 1)))
    # No bias is zero, no scale one.
    draw = lambda x: jnp.asarray(rng.uniform(-1, 1, x.shape) / np.sqrt(np.prod(x.shape[:-1])) * 1.7, jnp.float32)
    params = jax.tree.map(draw, shapes)
    images = jnp.asarray(rng.integers(0, 256, (5, 28, 28, 1)), jnp.uint8)
    normalized = itertools.count()

    def activated(x):
        if norm == "group":
            layer = params[f"GroupNorm_{next(normalized)}"]
            x = nn.GroupNorm(min(32, x.shape[-1] // 2)).apply({"params": layer}, x)
        return nn.relu(x)

    x = jax.image.resize(jnp.float32(images) / 255, (5, 32, 32, 1), "linear")
    kernels = (params[f"Conv3x3_{i}"] for i in itertools.count())
    for count, features in zip((1, 1, 2, 2, 2), (8, 16, 32, 64, 64), strict=True):
        for _ in range(count):
            x = activated(nn.Conv(features, (3, 3)).apply({"params": next(kernels)}, x))
        x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(5, -1)
    for layer, features in enumerate((512, 512, 10)):
        x = nn.Dense(features).apply({"params": params[f"Dense_{layer}"]}, x)
        x = activated(x) if layer < 2 else x
    logits = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(logits, x, rtol=0, atol=1e-5 * float(jnp.max(jnp.abs(x))))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (32, 16), (12, 4), (205, 1), (2, 1), (1, 1)])
def test_a_group_has_at_least_two_channels(channels, groups):
    assert vgg.groups(channels) == groups


def products(precision):
    model = vgg.build("vgg11", 0.05, 10, precision)
    params = jax.eval_shape(lambda: vgg.init(model, jax.random.key(0), (8, 8, 1)))
    images = jnp.zeros((2, 32, 32, 1), jnp.uint8)  # no resize, whose products are always exact
    text = jax.jit(jax.grad(lambda p: model.apply({"params": p}, images).sum())).lower(params).as_text()
    return [line for line in text.splitlines() if "stablehlo.convolution" in line or "stablehlo.dot_general" in line]


def test_float32_asks_for_true_float32_in_every_product_and_default_in_none():
    strict, default = products("float32"), products("default")
    assert len(strict) == len(default) > 20
    assert all("HIGHEST" in line for line in strict)
    assert not any("HIGH" in line for line in default)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_bfloat16_layers_keep_float32_parameters_gradients_and_logits(norm):
    model = vgg.build("vgg11", 0.05, 10, "bfloat16", norm)
    params = jax.eval_shape(lambda: vgg.init(model, jax.random.key(0), (8, 8, 1)))
    loss = lambda p: model.apply({"params": p}, jnp.ones((2, 8, 8, 1), jnp.uint8)).sum()
    for tree in (params, jax.eval_shape(loss, params), jax.eval_shape(jax.grad(loss), params)):
        assert {x.dtype for x in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    assert any("bf16" in line for line in products("bfloat16"))
