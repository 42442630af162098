"""`--augment crop-flip`: what is drawn, what it depends on, and evaluation on unchanged pictures."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from trainer import augment, data, loop, steps
from trainer.config import Config, resolve

RUN = Config(model="mlp", width=0.01, batch_size=24, optimizer="sgd", learning_rate=1.0, augment="crop-flip")
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 2), np.uint8)


def seen(epoch, rows, **flags):
    """Pictures `rows` of IMAGES, as a run sees them in that epoch."""
    config = resolve(dataclasses.replace(RUN, **flags))
    pictures = steps.Split(jnp.asarray(steps.flat(IMAGES)), jnp.zeros(50, jnp.int32))
    pictures = augment.pictures_of(pictures, config, epoch, jnp.asarray)
    view = augment.view(config, IMAGES.shape[1:])
    return np.asarray(jax.jit(view)(pictures, jnp.asarray(rows))).reshape(-1, *IMAGES.shape[1:])


def windows(image):
    """The 162 pictures that one can become."""
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), "reflect")
    height, width, _ = image.shape
    for top, left in itertools.product(range(9), range(9)):
        window = padded[top : top + height, left : left + width]
        yield from (window, window[:, ::-1])


def test_every_crop_and_its_mirror_image_comes_equally_often():
    image = np.arange(121).reshape(11, 11, 1).astype(np.uint8)
    expected = {window.tobytes(): 0 for window in windows(image)}
    assert len(expected) == 162
    keys = jax.random.split(jax.random.key(0), 16_200)
    for picture in np.asarray(jax.jit(jax.vmap(augment.crop_flip, (0, None)))(keys, jnp.asarray(image))):
        expected[picture.tobytes()] += 1
    assert min(expected.values()) > 50 and max(expected.values()) < 150  # 100, give or take five standard deviations


def test_what_is_drawn_depends_on_seed_epoch_and_picture_alone():
    rows = np.arange(50)
    first, plain = seen(1, rows), seen(1, rows, augment="none")
    np.testing.assert_array_equal(plain, IMAGES)
    np.testing.assert_array_equal(seen(1, rows[::-1])[::-1], first)
    some = np.resize([7, 7, 3], 50)
    np.testing.assert_array_equal(seen(1, some), first[some])
    for other in (seen(2, rows), seen(1, rows, seed=1), plain):
        assert np.mean([np.array_equal(a, b) for a, b in zip(other, first, strict=True)]) < 0.2
    places = {[np.array_equal(w, p) for w in windows(i)].index(True) for i, p in zip(IMAGES, first, strict=True)}
    assert len(places) > 20, "all pictures are cropped alike"


def test_training_and_watching_see_the_changed_pictures_and_evaluation_the_others():
    digits, order = data.load("digits", limit=96), np.random.default_rng([RUN.seed, 1]).permutation(96)
    plain, changed = (
        loop.Trainer(resolve(dataclasses.replace(RUN, augment=how, watch=how != "none")), digits, jax.devices()[:2])
        for how in ("none", "crop-flip")
    )
    assert plain.evaluate() == changed.evaluate()
    rows, before = changed.watch(0), jax.tree.map(np.asarray, changed.state.params)
    losses = []
    for trainer in (plain, changed):
        trainer.state, sums = trainer._run(trainer.state, 1, order, trainer.lengths[0])
        losses.append(float(sums.loss[0]) / RUN.batch_size)
    assert abs(losses[0] - losses[1]) > 1e-3
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), changed.state.params, before)
    for row in rows:
        layer, kind = row.leaf.split("/")
        np.testing.assert_allclose(moved[layer][kind], row.max_abs, rtol=1e-3, atol=1e-6)
    plain.state = changed.state
    assert plain.evaluate() == changed.evaluate()
