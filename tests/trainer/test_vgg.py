"""The models against the paper's Table 4 and the published runs' description."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import vgg

KEY = jax.random.key(3)


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


def products(precision, norm="none"):
    """The lines of a gradient's program that multiply, and the dtypes of parameters, logits and gradients."""
    model = vgg.build("vgg11", 0.05, 10, precision, norm)
    images = jnp.zeros((2, 32, 32, 1), jnp.uint8)  # no resize, whose products are always exact
    params, sums = shapes(model, (8, 8, 1)), lambda p: model.apply({"params": p}, images).sum()
    lowered = jax.jit(jax.value_and_grad(sums)).lower(params)
    lines = lowered.as_text().splitlines()
    lines = [line for line in lines if "stablehlo.convolution" in line or "stablehlo.dot_general" in line]
    return lines, {x.dtype.name for x in jax.tree.leaves((params, lowered.out_info))}


def test_float32_asks_for_true_float32_in_every_product_and_default_in_none():
    strict, default = products("float32")[0], products("default")[0]
    assert len(strict) == len(default) > 20
    assert all("HIGHEST" in line for line in strict)
    assert not any("HIGH" in line for line in default)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_bfloat16_layers_keep_float32_parameters_gradients_and_logits(norm):
    lines, dtypes = products("bfloat16", norm)
    assert dtypes == {"float32"} and any("bf16" in line for line in lines)
