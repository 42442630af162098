"""VGG11, VGG16 and VGG19 for 32 x 32 pictures, as in the paper's Table 4, as Flax modules. `networks` names them.

Flax Linen rather than NNX: the training step is a pure function of a parameter tree, like Linen's `init` and `apply`;
an NNX module would have to be split and merged around it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from trainer import layers

CONVOLUTIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}  # per block
CHANNELS = (64, 128, 256, 512, 512)  # per block, at width 1
DENSE = 4096  # each of the two hidden dense layers, at width 1
SIZE = 32  # height and width after the resize


class _Layer(nn.Module):
    """A float32 kernel and bias, converted to `dtype` for use."""

    features: int
    dtype: jnp.dtype
    precision: jax.lax.Precision | None
    kernel_init: nn.initializers.Initializer

    def promoted(self, x: jax.Array, *window: int) -> list[jax.Array]:
        """x, kernel (*window, channels of x, features) and bias (features,) in one type."""
        kernel = self.param("kernel", self.kernel_init, (*window, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)


class Conv3x3(_Layer):
    """A 3 x 3 convolution with a bias and stride 1 that keeps the size: flax's `nn.Conv` on `layers.conv3x3`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = self.promoted(x, 3, 3)
        if self.is_initializing():  # only the shape matters, and `lazy_init` traces each operation
            return jax.lax.broadcast_in_dim(x[0, 0, 0, 0], (*x.shape[:-1], self.features), ())
        return layers.add_bias(layers.conv3x3(x, kernel, precision=self.precision), bias)


class Dense(_Layer):
    """Flax's `nn.Dense` on `layers.dense`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = self.promoted(x)
        return layers.add_bias(layers.dense(x, kernel, precision=self.precision), bias)


class VGG(nn.Module):
    """Five blocks of 3 x 3 convolutions, each followed by a 2 x 2 max-pooling, then three dense layers; ReLU between.

    Glorot-uniform kernels and zero biases (Keras' defaults, as in the published runs); no dropout. With `initializer`
    "he", kernels of variance 2 / fan-in (arXiv 1502.01852), normal and truncated at two standard deviations as in Flax
    and Keras. With `norm` "group", a GroupNorm (arXiv 1803.08494) before each ReLU: it keeps no running statistics, so
    training and evaluation are the same function of the parameters.
    """

    model: str  # a key of CONVOLUTIONS
    num_classes: int
    width: float = 1.0  # multiplies CHANNELS and DENSE, at least 1 each
    norm: str = "none"  # or "group"
    initializer: str = "glorot"  # or "he"
    dtype: jnp.dtype = jnp.float32  # of activations and products; parameters are float32
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 pictures (n, h, w, c) -> float32 logits (n, num_classes)."""
        n, height, width, channels = images.shape
        x = images.astype(jnp.float32) / 255
        if (height, width) != (SIZE, SIZE):
            x = jax.image.resize(x, (n, SIZE, SIZE, channels), "bilinear")  # half-pixel centres, as Keras'
        convolution, dense = layer_of(Conv3x3, self), layer_of(Dense, self)
        for count, features in zip(CONVOLUTIONS[self.model], CHANNELS, strict=True):
            for _ in range(count):
                x = nn.relu(self.normalized(convolution(self.scaled(features))(x)))
            x = layers.max_pool2x2(x)
        x = x.reshape(n, -1)
        for _ in range(2):
            x = nn.relu(self.normalized(dense(self.scaled(DENSE))(x)))
        return dense(self.num_classes)(x).astype(jnp.float32)

    def scaled(self, features: int) -> int:
        return scaled(features, self.width)

    def normalized(self, x: jax.Array) -> jax.Array:
        return normalized(x, self.norm, self.dtype)


def scaled(features: int, width: float) -> int:
    return max(1, round(width * features))


def normalized(x: jax.Array, norm: str, dtype: jnp.dtype) -> jax.Array:
    """x (..., channels); with `norm` "group", normalized by a GroupNorm that belongs to the calling module."""
    if norm == "none":
        return x
    # In float32, as the statistics are anyway.
    return nn.GroupNorm(groups(x.shape[-1]))(x.astype(jnp.float32)).astype(dtype)


def layer_of(kind: type[_Layer], network: Any) -> Callable[[int], _Layer]:
    """Makes layers of a kind from their number of features, with the settings of the network."""
    kernels = {"glorot": glorot_uniform, "he": nn.initializers.he_normal()}[network.initializer]
    return lambda features: kind(features, network.dtype, network.precision, kernels)


def groups(channels: int) -> int:
    """The number of GroupNorm's groups: 32, or the largest smaller power of two that leaves each at least two channels
    (a lone channel of a dense layer would be normalised to 0), or 1."""
    return next((n for n in (32, 16, 8, 4, 2) if channels % n == 0 and channels >= 2 * n), 1)


def build(model: str, width: float, num_classes: int, precision: str, norm: str = "none") -> VGG:
    """The model in one of the trainer's three precisions (`Config.precision`), without or with GroupNorm."""
    return VGG(model=model, num_classes=num_classes, width=width, norm=norm, **settings(precision))


def settings(precision: str) -> dict[str, Any]:
    """The arguments for one of the trainer's three precisions."""
    return {
        "dtype": jnp.bfloat16 if precision == "bfloat16" else jnp.float32,
        "precision": jax.lax.Precision.HIGHEST if precision == "float32" else None,
    }


def init(model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]) -> dict:
    """The initial parameters, float32, for pictures of `image_shape` (h, w, c)."""
    return model.lazy_init(key, jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8))["params"]


def glorot_uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """The values of flax's `glorot_uniform`, drawn flat and in a few lengths so that XLA has less to compile."""
    limit = math.sqrt(6 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1])))
    size = math.prod(shape)
    # 4 ** 7, 4 ** 8, ... below a million: a longer draw starts with the numbers of a shorter one.
    drawn = 4 ** max(7, -(-(size - 1).bit_length() // 2)) if size < 2**20 else size
    return _cut(jax.random.uniform(key, (drawn,), dtype, -1, 1), limit, shape)


@functools.partial(jax.jit, static_argnums=2)
def _cut(numbers, factor, shape):
    return (factor * numbers[: math.prod(shape)]).reshape(shape)
