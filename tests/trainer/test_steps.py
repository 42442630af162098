"""What one device computes, on a model small enough to be worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from trainer import devices, steps


def linear(variables, images):
    return jnp.float32(images.reshape(len(images), -1)) @ variables["params"]


PICTURES = steps.Split(
    images=jnp.asarray(np.random.default_rng(0).integers(0, 4, (9, 2, 2, 1)), jnp.uint8),
    labels=jnp.asarray(np.arange(9) % 3, jnp.int32),
)
PARAMS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)


@jax.jit
def mean_loss(params, rows):
    logits = linear({"params": params}, PICTURES.images[rows])
    return optax.softmax_cross_entropy_with_integer_labels(logits, PICTURES.labels[rows]).mean()


def on_one_device(function, *arguments):
    """Runs a per-device function with its axis, on one device."""
    mapped = jax.vmap(function, axis_name=devices.AXIS, axis_size=1, in_axes=None)
    return jax.tree.map(lambda x: x[0], jax.jit(mapped)(*arguments))


def test_padding_counts_in_no_sum():
    hits = jnp.argmax(linear({"params": PARAMS}, PICTURES.images), -1).astype(jnp.int32)
    pictures = PICTURES._replace(labels=hits.at[4].add(1))
    sums = jax.jit(lambda rows: steps.batch_sums(linear, PARAMS, pictures, rows))
    full, padded = sums(jnp.array([1, 4, 7])), sums(jnp.array([-1, 1, 4, -1, 7, -1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), full, padded)
    assert padded.count == 3 and padded.correct == 2


def test_pictures_that_lie_flat_are_seen_in_their_shape():
    images = np.arange(9 * 2 * 3).reshape(9, 2, 3, 1).astype(np.uint8)
    seen = steps.on_flat(lambda variables, images: images, (2, 3, 1))(
        {}, jnp.asarray(steps.flat(images))[np.array([4, 0])]
    )
    np.testing.assert_array_equal(seen, images[[4, 0]])


def test_a_step_follows_the_mean_gradient_of_the_valid_pictures_over_all_devices():
    rows = [0, 3, 5, 8, 2]
    # Three devices, with two, two and one valid pictures: a mean of means would be another number.
    parts = jnp.array([[0, 3], [5, 8], [2, -1]])
    tx = optax.sgd(1.0)
    state = steps.TrainState(PARAMS, tx.init(PARAMS))
    step = lambda batch: steps.train_step(linear, tx, state, PICTURES, batch)
    new, sums = jax.jit(jax.vmap(step, axis_name=devices.AXIS))(parts)
    expected = PARAMS - jax.grad(mean_loss)(PARAMS, np.array(rows))
    for device in range(3):
        np.testing.assert_allclose(new.params[device], expected, rtol=1e-5)
        assert sums.count[device] == 5


def test_a_chunk_is_its_steps_and_reports_each_before_its_update():
    tx = optax.sgd(0.5)
    batches = jnp.array([[0, 1, 2], [3, 4, -1]])
    state = steps.TrainState(PARAMS, tx.init(PARAMS))
    after, sums = on_one_device(lambda s, b: steps.train_chunk(linear, tx, s, PICTURES, b), state, batches)
    np.testing.assert_array_equal(sums.count, [3, 2])
    np.testing.assert_allclose(sums.loss[0] / 3, mean_loss(PARAMS, np.array([0, 1, 2])), rtol=1e-6)
    middle = PARAMS - 0.5 * jax.grad(mean_loss)(PARAMS, np.array([0, 1, 2]))
    np.testing.assert_allclose(sums.loss[1] / 2, mean_loss(middle, np.array([3, 4])), rtol=1e-5)
    np.testing.assert_allclose(after.params, middle - 0.5 * jax.grad(mean_loss)(middle, np.array([3, 4])), rtol=1e-5)


def test_evaluation_sums_over_every_picture_once():
    batches = jnp.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, -1, -1, -1]])
    sums = on_one_device(lambda p, b: steps.evaluate(linear, p, PICTURES, b), PARAMS, batches)
    logits = linear({"params": PARAMS}, PICTURES.images)
    assert sums.count == 9
    assert sums.correct == np.sum(np.argmax(logits, -1) == PICTURES.labels)
    np.testing.assert_allclose(sums.loss / 9, mean_loss(PARAMS, np.arange(9)), rtol=1e-6)
