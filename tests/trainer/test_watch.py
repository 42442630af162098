"""`--watch`: what it measures, against NumPy on plain gradients; and the files of stopped and resumed runs."""

import csv
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stop_after
from kept_trainers import kept_trainers
from processes import differences, result
from trainer import data, devices, loop, pictures, steps, vgg, watch
from trainer.config import Config, UserError, resolve
from trainer.progress import Preempted

TINY = {"width": 0.05, "limit": 128, "batch_size": 8, "epochs": 3}  # 16 steps an epoch
CHUNKS = 8  # an epoch


def train(workdir, chunks=None, **flags):
    """A run stopped after `chunks` chunks; its gradients.csv, if it has one."""
    try:
        stop_after.train(Config(**TINY), workdir, chunks, **{"watch": True} | flags)
        assert chunks is None
    except Preempted:
        assert chunks is not None
    path = workdir / "gradients.csv"
    return path.read_text() if path.exists() else None


def table(text):
    return list(csv.DictReader(text.splitlines()))


def losses(workdir):
    return [row["loss"] for row in table((workdir / "history.csv").read_text())]


@pytest.fixture(scope="module", autouse=True)
def kept():
    with kept_trainers():
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted watched run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(workdir)


def grown(params, factor):
    """Initial weights that are too large, so that gradients are above 1."""
    return jax.tree.map(lambda w: factor * w, params)


def plain_gradients(config, params, epoch):
    """The mean gradient of the first batch of the epoch after `epoch`, and the pictures' number."""
    digits = data.load("digits", None, config.limit)
    order = np.random.default_rng([config.seed, epoch + 1]).permutation(len(digits.train_labels))[: config.batch_size]
    model = vgg.build(config.model, config.width, 10, config.precision)
    images, labels = digits.train_images[order], jax.nn.one_hot(digits.train_labels[order], 10)
    loss = lambda p: -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(model.apply({"params": p}, images)), -1))
    return jax.jit(jax.grad(loss))(params)


def named(tree):
    return {"/".join(key.key for key in path): np.asarray(x, np.float64) for path, x in jax.tree.leaves_with_path(tree)}


def norm_clipped(gradients, limit):
    total = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    return {name: g * min(1, limit / total) for name, g in gradients.items()}


BY_HAND = [
    ({}, lambda gradients: gradients, lambda g: 1 / np.abs(g).max()),
    ({"clip_norm": 1.5}, lambda gradients: norm_clipped(gradients, 1.5), lambda g: 1 / np.abs(g).max()),
    (
        {"clip_value": 1.2, "accumulate": 4, "max_step_grad": "inverse_std"},
        lambda gradients: {name: np.clip(g, -1.2, 1.2) for name, g in gradients.items()},
        lambda g: 1 / (g.std() + 1e-7),
    ),
    ({"optimizer": "adam"}, lambda gradients: gradients, lambda g: 1 / np.abs(g).max()),
]


@pytest.mark.parametrize(("flags", "clip", "rule"), BY_HAND, ids=["gravity", "norm", "value", "adam"])
def test_the_numbers_are_those_of_the_gradient_that_the_next_step_gets(flags, clip, rule, monkeypatch):
    """On three devices, at weights whose gradients Gravity damps."""
    # Neither is called here, and compiling them takes most of the time.
    monkeypatch.setattr(steps, "train_chunk", lambda apply, tx, state, pictures, batches, view: (state, 0.0))
    monkeypatch.setattr(steps, "evaluate", lambda apply, params, pictures, batches: 0.0)
    config = resolve(Config(watch=True, **TINY | flags))
    with jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        trainer = loop.Trainer(config, data.load("digits", None, config.limit), jax.devices()[:3])
    params = grown(jax.tree.map(np.asarray, trainer.state.params), 2.2)
    trainer.state = trainer.replicas.replicate(trainer.state._replace(params=params))
    before = jax.tree.map(np.asarray, trainer.state)
    rows = {row.leaf: row for row in trainer.watch(2)}
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, trainer.state))

    plain = named(plain_gradients(config, params, 2))
    assert max(np.abs(g).max() for g in plain.values()) > 2, "nothing is damped: the test is empty"
    gradients = clip(plain)
    assert rows.keys() == gradients.keys()
    for name, g in gradients.items():
        assert rows[name].epoch == 2
        np.testing.assert_allclose(rows[name].max_abs, np.abs(g).max(), rtol=1e-4)
        edges = [np.mean(np.abs(g) > factor * abs(rule(g))) for factor in (1.001, 0.999)]
        assert edges[0] - 1e-6 <= rows[name].damped_share <= edges[1] + 1e-6
    if config.optimizer != "gravity":
        assert all(row.velocity_norm is None for row in rows.values())
        return
    for name, velocity in named(optax.tree.get(before.opt_state, "velocity")).items():
        np.testing.assert_allclose(rows[name].velocity_norm, np.sqrt(np.sum(velocity**2)), rtol=1e-5)


def test_a_row_for_each_leaf_after_each_epoch_in_the_order_of_the_layers(whole):
    workdir, text = whole
    rows = table(text)
    assert list(rows[0]) == ["epoch", "leaf", "max_abs", "damped_share", "velocity_norm"]
    layers = [f"Conv3x3_{i}" for i in range(8)] + [f"Dense_{i}" for i in range(3)]
    leaves = {f"{layer}/{kind}" for layer in layers for kind in ("kernel", "bias")}
    assert [row["epoch"] for row in rows] == [e for e in "123" for _ in leaves]
    assert {row["leaf"] for row in rows} == leaves
    assert [row["leaf"].split("/")[0] for row in rows[: len(leaves) : 2]] == layers
    assert all(float(row["max_abs"]) > 0 and float(row["velocity_norm"]) > 0 for row in rows)
    assert (workdir / "gradients.png").read_bytes().startswith(b"\x89PNG")


def test_layers_of_a_kind_are_counted_past_nine():
    params = {f"Conv3x3_{i}": {"kernel": jnp.zeros(1)} for i in range(12)}
    found = watch.rows(1, params, watch.Measured(jnp.arange(12.0), jnp.zeros(12), None))
    assert [row.leaf for row in found] == [f"Conv3x3_{i}/kernel" for i in range(12)]
    assert [row.max_abs for row in found] == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3]  # a tree has 10 before 2


def test_training_is_the_same_bit_for_bit_and_leaves_no_file_without_it(whole, tmp_path):
    assert train(tmp_path, watch=False) is None
    assert not (tmp_path / "gradients.png").exists()
    assert differences(result(tmp_path), result(whole[0])) == []


@pytest.mark.parametrize("chunks", [3, CHUNKS + 3])
def test_a_resumed_run_leaves_the_same_file(whole, tmp_path, chunks):
    stopped = train(tmp_path, chunks=chunks)
    assert stopped is None if chunks < CHUNKS else 0 < len(stopped) < len(whole[1])
    if chunks > CHUNKS:
        (tmp_path / "gradients.csv").write_text(whole[1])  # as if killed after it was written, before the checkpoint
    assert train(tmp_path, resume=True) == whole[1]
    assert differences(result(tmp_path), result(whole[0])) == []


def test_it_may_be_turned_on_and_off_when_a_run_is_resumed(whole, tmp_path):
    assert train(tmp_path, watch=False, epochs=1) is None
    rows = table(train(tmp_path, resume=True, epochs=2))
    assert rows == [row for row in table(whole[1]) if row["epoch"] == "2"]
    assert table(train(tmp_path, resume=True, watch=False)) == rows
    assert json.loads((tmp_path / "config.json").read_text())["watch"] is False
    assert differences(result(tmp_path), result(whole[0])) == []


@pytest.mark.parametrize("text", ["", "epoch,leaf\n1,a\n", f"{watch.COLUMNS}\n1,Dense_0/kernel,0.5\n"])
def test_a_file_that_cannot_be_read_is_an_error_and_stays(tmp_path, text):
    train(tmp_path, chunks=CHUNKS)
    (tmp_path / "gradients.csv").write_text(text)
    with pytest.raises(UserError, match=r"whose gradients\.csv cannot be read .* move it away, or leave --watch out"):
        train(tmp_path, resume=True)
    assert (tmp_path / "gradients.csv").read_text() == text


def test_all_processes_must_watch_or_none(tmp_path, monkeypatch):
    """Otherwise some would wait forever for the sums of the others."""
    other = lambda value, arrays: ((value[0] | {"watch": False}, value[1]), arrays)
    monkeypatch.setattr(devices, "from_primary", other)
    with pytest.raises(UserError, match="--watch is True, but process 0 has False"):
        train(tmp_path)


@pytest.fixture
def badly_scaled(monkeypatch):
    init = vgg.init
    monkeypatch.setattr(vgg, "init", lambda *args: grown(init(*args), 3.0))


def test_a_stalled_run_is_seen_in_the_file_and_said_once(badly_scaled, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "train"):
        train(tmp_path, epochs=2)
        rows = table(train(tmp_path, resume=True))
    assert [float(loss) > 500 for loss in losses(tmp_path)] == [True] * 3
    kernels = [row for row in rows if row["leaf"] in ("Conv3x3_0/kernel", "Conv3x3_1/kernel")]
    assert len(kernels) == 6
    assert all(float(row["max_abs"]) > 100 and float(row["damped_share"]) > 0.95 for row in kernels)
    said = [record.getMessage() for record in caplog.records if "Gravity damps" in record.getMessage()]
    assert len(said) == 1
    assert "after epoch 1 Gravity damps 100%" in said[0] and "--clip-norm" in said[0]


def test_the_figure_shows_leaves_whose_gradient_is_zero_or_not_finite():
    values = [0.0, 1e-3, np.nan, np.inf]
    rows = [
        watch.LeafOfEpoch(e, leaf, v, 0.0, None) for e, v in enumerate(values, 1) for leaf in ("a/kernel", "a/bias")
    ]
    assert pictures.png("gradients.png", lambda: watch._figure(rows)).startswith(b"\x89PNG")
    assert watch._parsed(watch._text(rows[:4])) == rows[:4]
