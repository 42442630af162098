"""What one device computes, on a model small enough to be worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer import devices, steps

PICTURES = steps.Split(
    images=jnp.asarray(np.random.default_rng(0).integers(0, 4, (9, 2, 2, 1)), jnp.uint8),
    labels=jnp.asarray(np.arange(9) % 3, jnp.int32),
)
PARAMS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)


def linear(variables, images):
    return jnp.float32(images.reshape(len(images), -1)) @ variables["params"]


def mean_loss(params, rows):
    logits = linear({"params": params}, PICTURES.images[np.array(rows)])
    return optax.softmax_cross_entropy_with_integer_labels(logits, PICTURES.labels[np.array(rows)]).mean()


def on_devices(function, batches, *arguments):
    """Runs a per-device function of (batches, arguments), a part for each device; what one of them has."""
    mapped = jax.vmap(lambda part: function(part, *arguments), axis_name=devices.AXIS)
    every = jax.jit(mapped)(jnp.array(batches))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape)), every)
    return jax.tree.map(lambda x: x[0], every)


def test_pictures_that_lie_flat_are_seen_in_their_shape():
    images = np.arange(9 * 2 * 3).reshape(9, 2, 3, 1).astype(np.uint8)
    seen = steps.on_flat(lambda variables, images: images, (2, 3, 1))({}, steps.flat(images)[np.array([4, 0])])
    np.testing.assert_array_equal(seen, images[[4, 0]])


def test_a_chunk_is_its_steps_along_the_mean_gradient_over_all_devices_each_reported_before_its_update():
    """Three devices, with two, two and one valid pictures: a mean of means would be another number."""
    tx = optax.sgd(0.5)
    batches = [[[0, 3], [6, 2]], [[5, 8], [1, -1]], [[2, -1], [-1, 4]]]
    rows = [0, 3, 5, 8, 2], [6, 2, 1, 4]
    state = steps.TrainState(PARAMS, tx.init(PARAMS))
    after, sums = on_devices(lambda batch: steps.train_chunk(linear, tx, state, PICTURES, batch), batches)
    np.testing.assert_array_equal(sums.count, [5, 4])
    middle = PARAMS - 0.5 * jax.grad(mean_loss)(PARAMS, rows[0])
    expected = [mean_loss(PARAMS, rows[0]), mean_loss(middle, rows[1])]
    np.testing.assert_allclose(np.divide(sums.loss, sums.count), expected, rtol=1e-5)
    np.testing.assert_allclose(after.params, middle - 0.5 * jax.grad(mean_loss)(middle, rows[1]), rtol=1e-5)


def test_evaluation_sums_over_every_picture_once_and_padding_counts_in_no_sum():
    logits = linear({"params": PARAMS}, PICTURES.images)
    labels = jnp.argmax(logits, -1).astype(jnp.int32).at[4].add(1)
    pictures = PICTURES._replace(labels=labels)  # the first picture, which padding stands for, is a hit
    batches = [[[0, 1, 2, 3], [4, 5, 6, 7], [-1, 8, -1, -1]]]
    sums = on_devices(lambda batch: steps.evaluate(linear, PARAMS, pictures, batch), batches)
    assert (sums.count, sums.correct) == (9, 8)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    np.testing.assert_allclose(sums.loss, losses.sum(), rtol=1e-6)
