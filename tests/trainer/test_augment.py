"""`--augment crop-flip`: what is drawn, what decides it, and that evaluation sees the pictures as they are."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stop_after
from processes import result
from trainer import augment, data, loop, networks, steps
from trainer.config import Config, resolve

RUN = Config(model="mlp", width=0.01, limit=128, batch_size=24, epochs=2, augment="crop-flip", watch=True)
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 2), np.uint8)


def seen(epoch, rows, **flags):
    """Pictures `rows` of IMAGES, as a run sees them in that epoch."""
    view = augment.view(resolve(dataclasses.replace(RUN, **flags)), IMAGES.shape[1:])
    pictures = steps.Split(jnp.asarray(steps.flat(IMAGES)), jnp.zeros(50, jnp.int32), jnp.int32(epoch))
    return np.asarray(view(pictures, jnp.asarray(rows))).reshape(-1, *IMAGES.shape[1:])


def windows(image):
    """The 162 pictures that may come of one."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), "reflect")
    height, width, _ = image.shape
    for top, left in itertools.product(range(9), range(9)):
        window = padded[top : top + height, left : left + width]
        yield from (window, window[:, ::-1])


def test_every_crop_and_its_mirror_image_comes_equally_often():
    image = np.arange(121).reshape(11, 11, 1).astype(np.uint8)
    expected = [window.tobytes() for window in windows(image)]
    assert len(set(expected)) == 162
    keys = jax.random.split(jax.random.key(0), 16_200)
    drawn = np.asarray(jax.jit(jax.vmap(augment.crop_flip, (0, None)))(keys, jnp.asarray(image)))
    counts = [0] * 162
    for picture in drawn:
        counts[expected.index(picture.tobytes())] += 1
    assert min(counts) > 50 and max(counts) < 150  # 100, give or take five standard deviations


def test_what_is_drawn_depends_on_seed_epoch_and_picture_alone():
    rows = np.arange(50)
    first = seen(1, rows)
    np.testing.assert_array_equal(seen(1, rows[::-1])[::-1], first)
    np.testing.assert_array_equal(seen(1, [7, 7, 3]), first[[7, 7, 3]])
    for other in (seen(2, rows), seen(1, rows, seed=1), IMAGES):
        assert np.mean([np.array_equal(a, b) for a, b in zip(other, first, strict=True)]) < 0.2
    places = {
        tuple(np.argwhere([np.array_equal(w, p) for w in windows(i)])[0]) for i, p in zip(IMAGES, first, strict=True)
    }
    assert len(places) > 20, "all pictures are cropped alike"


def test_without_the_flag_nothing_is_drawn_and_no_number_is_handed_over():
    config = resolve(Config())
    assert augment.view(config, (8, 8, 1)) is steps.unchanged
    pictures = steps.Split(jnp.asarray(steps.flat(IMAGES)), jnp.zeros(50, jnp.int32))
    assert augment.pictures_of(pictures, config, 3, np.asarray) is pictures
    assert len(jax.tree.leaves(pictures)) == 2
    linear = lambda variables, images: images.astype(jnp.float32) @ variables["params"]
    take = lambda view: str(
        jax.make_jaxpr(lambda p, b: steps.batch_sums(linear, p, pictures, b, view))(np.ones((60, 10)), np.arange(4))
    )
    drawn = augment.view(resolve(RUN), IMAGES.shape[1:])
    assert "random_bits" not in take(steps.unchanged)
    pictures = pictures._replace(epoch=np.int32(1))
    assert "random_bits" in take(drawn) and take(drawn) != take(steps.unchanged)


def test_training_sees_other_pictures_and_evaluation_the_same():
    digits = data.load("digits", limit=96)
    trainers = [
        loop.Trainer(resolve(dataclasses.replace(RUN, augment=how)), digits, jax.devices()[:1])
        for how in ("none", "crop-flip")
    ]
    plain, changed = trainers
    assert plain.evaluate() == changed.evaluate()
    losses = [trainer.train_epoch(1)[0] for trainer in trainers]
    assert abs(losses[0] - losses[1]) > 1e-3
    plain.state = changed.state
    assert plain.evaluate() == changed.evaluate()


def test_the_gradient_that_is_watched_is_of_the_pictures_that_the_next_step_sees():
    digits = data.load("digits", limit=96)
    config = resolve(dataclasses.replace(RUN, optimizer="sgd", learning_rate=1.0))
    trainer = loop.Trainer(config, digits, jax.devices()[:2])
    rows = trainer.watch(0)
    before = jax.tree.map(np.asarray, trainer.state.params)
    order = np.random.default_rng([config.seed, 1]).permutation(96)[: config.batch_size]
    trainer.state, _ = trainer._run(trainer.state, 1, order, trainer.lengths[0])
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), trainer.state.params, before)
    for row in rows:
        layer, kind = row.leaf.split("/")
        np.testing.assert_allclose(moved[layer][kind], row.max_abs, rtol=1e-3, atol=1e-6)


def test_it_adds_less_than_a_thousandth_to_the_operations_of_a_step():
    """As the README says, with 128 pictures; a step is three times its forward pass."""
    config = resolve(Config(dataset="cifar10", width=0.125, augment="crop-flip"))
    model, shape = networks.build(config, 10), (32, 32, 3)
    params = jax.eval_shape(lambda: networks.initial(config, model, jax.random.key(0), shape))
    images = jax.ShapeDtypeStruct((128, *shape), np.uint8)
    pictures = steps.Split(jnp.zeros((500, 3072), np.uint8), jnp.zeros(500, jnp.int32), jnp.int32(1))
    operations = lambda function, *arguments: jax.jit(function).lower(*arguments).cost_analysis()["flops"]
    added = operations(augment.view(config, shape), pictures, jnp.arange(128))
    assert 0 < added < 0.001 * 3 * operations(model.apply, {"params": params}, images)


@pytest.mark.slow
def test_one_device_and_eight_see_the_same_pictures(tmp_path):
    """With a learning rate that moves nothing, so that rounding is all that may differ."""
    for devices in (1, 8):
        stop_after.train(RUN, tmp_path / str(devices), devices=devices, optimizer="sgd", learning_rate=1e-12)
    (one, rows), (eight, others) = (result(tmp_path / name) for name in ("1", "8"))
    del one, eight
    assert [row["loss"] for row in rows] != [rows[0]["loss"]] * 2, "both epochs see the same pictures"
    for a, b in zip(rows, others, strict=True):
        np.testing.assert_allclose(float(a["loss"]), float(b["loss"]), rtol=2e-6)
