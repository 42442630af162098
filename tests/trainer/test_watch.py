"""`--watch`: what it measures, against NumPy on plain gradients; its files. Resumed runs are in test_progress.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import processes
from trainer import data, devices, loop, networks, pictures, steps, vgg, watch
from trainer.config import Config, UserError, resolve

RUN = Config(model="mlp", width=0.05, limit=128, batch_size=8, epochs=3, watch=True)
train = functools.partial(processes.train_here, RUN)
pytestmark = pytest.mark.usefixtures("kept")


def grown(params, factor):
    """Initial weights that are too large, so that gradients are above 1."""
    return jax.tree.map(lambda w: factor * w, params)


def named(tree):
    return {"/".join(key.key for key in path): np.asarray(x, np.float64) for path, x in jax.tree.leaves_with_path(tree)}


def plain_gradients(config, params, epoch):
    """The mean gradient of the first batch of the epoch after `epoch`, float64, by the leaf's name."""
    digits = data.load("digits", None, config.limit)
    order = np.random.default_rng([config.seed, epoch + 1]).permutation(len(digits.train_labels))[: config.batch_size]
    model = networks.build(config, 10)
    images, labels = digits.train_images[order], jax.nn.one_hot(digits.train_labels[order], 10)
    loss = lambda p: -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(model.apply({"params": p}, images)), -1))
    return named(jax.jit(jax.grad(loss))(params))


def norm_clipped(gradients):
    total = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    return {name: g * min(1, 1.5 / total) for name, g in gradients.items()}


@pytest.mark.parametrize(
    ("flags", "clip", "rule"),
    [
        ({"clip_norm": 1.5}, norm_clipped, lambda g: 1 / np.abs(g).max()),
        (
            {"clip_value": 1.2, "accumulate": 4, "max_step_grad": "inverse_std"},
            lambda gradients: {name: np.clip(g, -1.2, 1.2) for name, g in gradients.items()},
            lambda g: 1 / g.std(),
        ),
        ({"optimizer": "adam"}, dict, lambda g: 1 / np.abs(g).max()),
    ],
)
def test_the_numbers_are_those_of_the_gradient_that_the_next_step_gets(flags, clip, rule, monkeypatch):
    """On three devices, at weights whose gradients Gravity damps."""
    # Neither is called here, and compiling them takes most of the time.
    monkeypatch.setattr(steps, "train_chunk", lambda apply, tx, state, pictures, batches, view: (state, 0.0))
    monkeypatch.setattr(steps, "evaluate", lambda apply, params, pictures, batches: 0.0)
    config = resolve(Config(**vars(RUN) | flags))
    with jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        trainer = loop.Trainer(config, data.load("digits", None, config.limit), jax.devices()[:3])
    params = grown(jax.tree.map(np.asarray, trainer.state.params), 8.0)
    trainer.state = trainer.replicas.replicate(trainer.state._replace(params=params))
    before = jax.tree.map(np.asarray, trainer.state)
    rows = {row.leaf: row for row in trainer.watch(2)}
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, trainer.state))

    plain = plain_gradients(config, params, 2)
    assert max(np.abs(g).max() for g in plain.values()) > 2, "nothing is damped: the test is empty"
    velocities = named(optax.tree.get(before.opt_state, "velocity")) if config.optimizer == "gravity" else {}
    assert rows.keys() == plain.keys()
    for name, g in clip(plain).items():
        assert rows[name].epoch == 2
        np.testing.assert_allclose(rows[name].max_abs, np.abs(g).max(), rtol=1e-4)
        edges = [np.mean(np.abs(g) > factor * abs(rule(g))) for factor in (1.001, 0.999)]
        assert edges[0] - 1e-6 <= rows[name].damped_share <= edges[1] + 1e-6
        norm = np.sqrt(np.sum(velocities[name] ** 2)) if velocities else None
        assert rows[name].velocity_norm == (norm and pytest.approx(norm, rel=1e-5))


def test_a_row_for_each_leaf_after_each_epoch_in_the_order_of_the_layers(tmp_path):
    train(tmp_path)
    rows = processes.table(tmp_path / "gradients.csv")
    assert list(rows[0]) == ["epoch", "leaf", "max_abs", "damped_share", "velocity_norm"]
    assert {row["leaf"] for row in rows} == {f"Dense_{i}/{kind}" for i in range(3) for kind in ("kernel", "bias")}
    assert [(row["epoch"], row["leaf"][6]) for row in rows] == [(e, layer) for e in "123" for layer in "001122"]
    assert all(float(row["max_abs"]) > 0 and float(row["velocity_norm"]) > 0 for row in rows)
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")


def test_layers_of_a_kind_are_counted_past_nine():
    params = {f"Conv3x3_{i}": {"kernel": jnp.zeros(1)} for i in range(12)}
    found = watch.rows(1, params, watch.Measured(jnp.arange(12.0), jnp.zeros(12), None))
    assert [row.leaf for row in found] == [f"Conv3x3_{i}/kernel" for i in range(12)]
    assert [row.max_abs for row in found] == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]  # a tree has 10 before 2


def test_a_file_that_cannot_be_read_is_an_error_and_stays(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for text in ("", "epoch,leaf\n1,a\n", f"{watch.COLUMNS}\n1,Dense_0/kernel,0.5\n"):
        (tmp_path / "gradients.csv").write_text(text)
        with pytest.raises(UserError, match=r"gradients\.csv cannot be read .* move it away, or leave --watch"):
            train(tmp_path, resume=True)
        assert (tmp_path / "gradients.csv").read_text() == text


def test_all_processes_must_watch_or_none(tmp_path, monkeypatch):
    """Otherwise some would wait forever for the sums of the others."""
    other = lambda value, arrays: ((value[0] | {"watch": False}, value[1]), arrays)
    monkeypatch.setattr(devices, "from_primary", other)
    with pytest.raises(UserError, match="--watch is True, but process 0 has False"):
        train(tmp_path)


def test_a_stalled_run_is_seen_in_the_file_and_said_once(monkeypatch, tmp_path, caplog):
    init = vgg.init
    monkeypatch.setattr(vgg, "init", lambda *args: grown(init(*args), 12.0))
    train(tmp_path, epochs=2)
    train(tmp_path, resume=True)
    rows = [row for row in processes.table(tmp_path / "gradients.csv") if row["leaf"] == "Dense_0/bias"]
    assert all(float(row["max_abs"]) > 10 and float(row["damped_share"]) > 0.6 for row in rows)
    (said,) = [message for message in caplog.messages if "Gravity damps" in message]
    assert "after epoch 1 Gravity damps" in said and "--clip-norm" in said


def test_the_figure_shows_leaves_whose_gradient_is_zero_or_not_finite():
    rows = [watch.LeafOfEpoch(e, "a/kernel", v, 0.0, None) for e, v in enumerate((0.0, 1e-3, np.nan, np.inf), 1)]
    assert pictures.png("gradients.png", lambda: watch._figure(rows)).startswith(b"\x89PNG")
    assert watch._parsed(watch._text(rows[:2])) == rows[:2]
