"""Every row that the notebook among the source documents prints, as one step of an optax chain from the row before."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from helpers import documents, functions

ROUNDED = {"adagrad", "rmsprop", "adam"}  # their states and points, to 4 decimals, inside the notebook
FOUR_DECIMALS = 0.5e-4 * (1 + 1e-9)
EXACT = 1e-14  # for what is printed unrounded: the notebook adds in another order

# Per optimizer, the notebook's name of each state -> optax's.
STATES = {
    "sgd": {},
    "momentum": {"v": "trace"},
    "nesterov": {"v": "trace"},
    "adagrad": {"h": "sum_of_squares"},
    "rmsprop": {"h": "nu"},
    "adam": {"m": "mu", "v": "nu"},
}
# The state before a step with gradient g, from the state after it.
UNDO = {
    "sum_of_squares": lambda after, g: after - g**2,
    "nu": lambda after, g, decay: (after - (1 - decay) * g**2) / decay,
    "mu": lambda after, g, decay: (after - (1 - decay) * g) / decay,
}
DECAYS = {("rmsprop", "nu"): (0.75,), ("adam", "nu"): (0.999,), ("adam", "mu"): (0.9,)}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        yield


def one_step(name, state, point, gradient):
    """The notebook's step: the chain's, with the notebook's rounding of state and point."""
    tx = documents.NOTEBOOK[name]
    update, after = tx.update(gradient, state, point)
    if name not in ROUNDED:
        return point + update, after
    # The notebook takes its step with the rounded state; optax gets there from what leads to it.
    rounded = {key: jnp.round(optax.tree.get(after, key), 4) for key in STATES[name].values()}
    before = {key: UNDO[key](value, gradient, *DECAYS.get((name, key), ())) for key, value in rounded.items()}
    update, after = tx.update(gradient, optax.tree.set(state, **before), point)
    for key, value in rounded.items():
        np.testing.assert_allclose(optax.tree.get(after, key), value, atol=1e-12)
    return jnp.round(point + update, 4), optax.tree.set(after, **rounded)


def assert_as_printed(ours, printed, tolerance):
    known = ~np.isnan(printed)
    np.testing.assert_allclose(np.asarray(ours)[known], printed[known], rtol=EXACT, atol=tolerance)


@pytest.mark.parametrize("name", documents.NOTEBOOK)
def test_every_printed_row_is_one_step_from_the_printed_row_before(name):
    rows = documents.printed(name)
    point = jnp.zeros(2)
    state = documents.NOTEBOOK[name].init(point)
    for row in rows:
        gradient = jax.grad(functions.TILTED)(point)
        if "grads" in row:  # not in the last rows of Nesterov and Adam, where the document is cut off
            assert_as_printed(gradient, row["grads"], FOUR_DECIMALS)
            gradient = jnp.asarray(row["grads"])
        point, state = one_step(name, state, point, jnp.round(gradient, 4))
        assert_as_printed(point, row["params"], EXACT)
        if "func" in row:
            assert_as_printed(functions.TILTED(point), row["func"], FOUR_DECIMALS)
        point = jnp.asarray(row["params"])
        for key, field in STATES[name].items():
            if key in row:
                ours = optax.tree.get(state, field)
                assert_as_printed(ours, row[key], EXACT)
                state = optax.tree.set(state, **{field: jnp.where(jnp.isnan(row[key]), ours, row[key])})
    assert len(rows) == {"sgd": 10, "momentum": 9, "nesterov": 7, "adagrad": 8, "rmsprop": 8, "adam": 7}[name]


@pytest.mark.parametrize(
    ("name", "rows", "worst"),
    [
        ("sgd", 10, 2.5e-5),
        ("momentum", 9, 0),  # all its numbers are short binary fractions
        ("nesterov", 7, 1.5e-5),
        ("adagrad", 2, 5.8e-5),
        ("rmsprop", 5, 2e-4),
        ("adam", 1, 1.2e-3),
    ],
)
def test_left_to_itself_it_agrees_to_four_decimals_with_so_many_rows(name, rows, worst):
    errors = documents.free_running_errors(name)
    assert np.argmin(np.append(errors < FOUR_DECIMALS, False)) == rows
    assert 0.9 * worst <= errors.max() <= worst


# ---- where the notebook's formula is not optax's own


def steps(tx, gradients):
    state, updates = tx.init(jnp.zeros(2)), []
    for gradient in gradients:
        update, state = tx.update(jnp.asarray(gradient), state)
        updates.append(update)
    return np.array(updates)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("momentum", optax.sgd(0.5, momentum=0.5)),
        ("nesterov", optax.sgd(0.2, momentum=0.8, nesterov=True)),
    ],
)
def test_the_plain_optimizer_takes_the_same_steps_with_another_state(name, plain):
    gradients = [row["grads"] for row in documents.printed(name) if "grads" in row]
    ours, theirs = steps(documents.NOTEBOOK[name], gradients), steps(plain, gradients)
    np.testing.assert_allclose(ours, theirs, atol=1e-15)


# Gradients small enough for the notebook's 1e-7 to be seen.
SMALL = np.random.default_rng(0).normal(size=(6, 2)) * 1e-6


def test_adam_adds_its_epsilon_to_the_mean_square_before_the_bias_is_corrected():
    m = v = 0.0
    expected = []
    for t, g in enumerate(SMALL, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        expected.append(-0.9 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / np.sqrt(v + 1e-7))
    np.testing.assert_allclose(steps(documents.NOTEBOOK["adam"], SMALL), expected, rtol=1e-6)
    # The constant eps_root is another optimizer: at the first step by a factor of 31.
    plain = steps(optax.adam(0.9, eps=0, eps_root=1e-7), SMALL)
    assert np.all(np.abs(plain[0] / expected[0]) > 30)


def test_rmsprop_adds_its_epsilon_outside_the_root():
    h = 0.0
    expected = []
    for g in SMALL:
        h = 0.75 * h + 0.25 * g**2
        expected.append(-0.9 * g / (np.sqrt(h) + 1e-7))
    np.testing.assert_allclose(steps(documents.NOTEBOOK["rmsprop"], SMALL), expected, rtol=1e-9)


def test_adagrad_without_its_epsilon_differs_by_less_than_what_is_printed():
    h = worst = 0.0
    for row in documents.printed("adagrad"):
        h = h + row["grads"] ** 2
        with_epsilon, without = (10 * row["grads"] / (np.sqrt(h) + eps) for eps in (1e-7, 0.0))
        worst = max(worst, np.max(np.abs(with_epsilon - without)))
    assert 2e-7 < worst < 3e-7


# ---- the class reference's gradient memory


@pytest.mark.parametrize("unbiased", [False, True])
def test_the_gradient_memory_is_a_running_mean_and_a_running_mean_square(unbiased):
    gradients = np.random.default_rng(1).normal(size=(8, 2))
    mean = square = 0.0
    means, normalized = [], []
    for t, g in enumerate(gradients, 1):
        mean, square = 0.9 * mean + 0.1 * g, 0.8 * square + 0.2 * g**2
        means.append(mean / (1 - 0.9**t if unbiased else 1))
        normalized.append(g / (np.sqrt(square / (1 - 0.8**t if unbiased else 1)) + 1e-8))
    np.testing.assert_allclose(steps(documents.running_mean(0.9, unbiased), gradients), means, rtol=1e-12)
    np.testing.assert_allclose(steps(documents.normalized(0.8, unbiased), gradients), normalized, rtol=1e-12)


def test_without_a_mean_square_normalize_leaves_gradients_as_they_are():
    gradients = np.array([[3.0, -0.1], [0.0, 2.0]])
    np.testing.assert_array_equal(steps(documents.normalized(0.0), gradients), gradients)


def test_both_unbiased_memories_together_are_adam():
    gradients = np.random.default_rng(2).normal(size=(8, 2))
    mean = steps(documents.running_mean(0.9, unbiased=True), gradients)
    normalized = steps(documents.normalized(0.999, unbiased=True), gradients)
    np.testing.assert_allclose(steps(optax.scale_by_adam(), gradients), mean * normalized / gradients, rtol=1e-12)
