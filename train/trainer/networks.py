"""The networks by name, and their initial weights. VGG itself is in `vgg`.

The two small ones do not resize the pictures: `mlp` has VGG's dense layers alone, `softmax` (softmax regression) only
the last of them. Their loss is smooth or convex, and a run takes a second.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from trainer import vgg
from trainer.config import ResolvedConfig

HIDDEN = {"softmax": 0, "mlp": 2}  # dense layers before the last
_STREAM = 0x4E6F6973  # "Nois": distinct from the streams that `vgg.init` draws from the same key


class DenseNetwork(nn.Module):
    """Dense layers with ReLU between them; weights, widths and GroupNorm as in `vgg.VGG`."""

    hidden: int
    num_classes: int
    width: float = 1.0  # multiplies vgg.DENSE
    norm: str = "none"
    initializer: str = "glorot"
    dtype: jnp.dtype = jnp.float32
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 pictures (n, h, w, c) -> float32 logits (n, num_classes)."""
        x = images.reshape(len(images), -1).astype(jnp.float32) / 255
        dense = vgg.layer_of(vgg.Dense, self)
        for _ in range(self.hidden):
            x = nn.relu(vgg.normalized(dense(vgg.scaled(vgg.DENSE, self.width))(x), self.norm, self.dtype))
        return dense(self.num_classes)(x).astype(jnp.float32)


Network = vgg.VGG | DenseNetwork


def build(config: ResolvedConfig, num_classes: int) -> Network:
    """The network of a resolved configuration."""
    settings = vgg.settings(config.precision) | {
        "num_classes": num_classes,
        "width": config.width,
        "norm": config.norm,
        "initializer": config.init,
    }
    if config.model in HIDDEN:
        return DenseNetwork(hidden=HIDDEN[config.model], **settings)
    return vgg.VGG(model=config.model, **settings)


def initial(config: ResolvedConfig, model: Network, key: jax.Array, image_shape: tuple[int, ...]) -> dict:
    """The initial weights of a run, float32, for pictures of `image_shape` (h, w, c)."""
    params = vgg.init(model, key, image_shape)
    if not config.init_noise:
        return params
    noise = optax.tree.random_like(jax.random.fold_in(key, _STREAM), params, jax.random.normal)
    return jax.tree.map(lambda w, n: w + config.init_noise * n, params, noise)
