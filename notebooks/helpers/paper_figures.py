"""The figures of the paper's Section 2 and its Table 2, drawn from what the library computes.

Nothing here repeats a formula of the optimizer: steps come from `gravity_term` and `scale_by_gravity`, plain
exponential averaging (Eqs. 22 and 25) from `optax.ema`. The paper took Figure 6 from another source and does not state
the task of Figure 7; here it is logistic regression on scikit-learn's digits.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gravity_optax import gravity, gravity_term, scale_by_gravity
from helpers.minimize import minimize
from lab import palette

GRADIENTS = jnp.linspace(-6.0, 6.0, 601)
SHADES = ("#0D0887", "#8B0AA5", "#DB5C68", "#FCA636")  # for curves of one optimizer with different settings


def step_of(tx: optax.GradientTransformation, gradient: jax.Array) -> jax.Array:
    """The first update of `tx` for each entry of `gradient` (n,), each for a separate parameter -> (n,)."""
    return jax.vmap(lambda g: tx.update(g, tx.init(g), g)[0])(gradient)


def gravity_step(gradient: jax.Array, learning_rate: float, max_step_grad: float) -> jax.Array:
    """The optimization function, Eq. 18 (with m = 1 Eq. 13): the step that the gradient term alone gives."""
    return step_of(optax.sgd(learning_rate), gravity_term(gradient, max_step_grad))


def beta_hat(beta: jax.typing.ArrayLike, t: jax.typing.ArrayLike) -> jax.Array:
    """Eq. 26, measured: the fraction of V = 1 that remains after step t with a gradient of 0."""
    tx = scale_by_gravity(0.0, beta, key=0, first_step=0)
    state = tx.init(jnp.float32(0))._replace(count=jnp.asarray(t, jnp.int32), velocity=jnp.float32(1))
    return tx.update(jnp.float32(0), state)[0]


def averaged_data(beta: jax.typing.ArrayLike, t: jax.typing.ArrayLike) -> jax.Array:
    """Eq. 24 with beta-hat, 1 / (1 - beta_hat): 1 over the weight that a step gives to its new gradient term."""
    tx = scale_by_gravity(0.0, beta, key=0, first_step=0)
    state = tx.init(jnp.float32(0))._replace(count=jnp.asarray(t, jnp.int32))
    small = jnp.float32(2.0**-20)  # so small that its gradient term is itself
    return small / tx.update(small, state)[0]


def table_2(steps: int = 16) -> list[tuple[int, float, int, float]]:
    """Table 2, for beta = 1: rows of t, beta-hat, available data (t + 2), averaged data."""
    t = jnp.arange(steps)
    columns = (jax.vmap(functools.partial(f, 1.0))(t).tolist() for f in (beta_hat, averaged_data))
    return [(i, kept, i + 2, averaged) for i, (kept, averaged) in enumerate(zip(*columns, strict=True))]


def averaged_gravity(learning_rate: float, beta: jax.typing.ArrayLike) -> optax.GradientTransformation:
    """Gravity without the corrections of Section 2.4: Eqs. 20 to 23, the velocity from rest."""
    zeta = optax.stateless(lambda grads, _: jax.tree.map(lambda g: gravity_term(g, 1 / jnp.max(jnp.abs(g))), grads))
    return optax.chain(zeta, optax.ema(beta, debias=False), optax.scale_by_learning_rate(learning_rate))


def figure_1(slope: float = 0.6) -> Figure:
    """The inclined plane: a ball at W on a loss of that slope, with the plane's own axes."""
    figure, axes = _axes(5.0, 3.4)
    w = np.array([0.0, 4.0])
    axes.plot(w, slope * w, color="0.3", linewidth=2)
    axes.plot(w, [0, 0], color="0.7", linewidth=1)
    angle = np.arctan(slope)
    foot = np.array([2.8, slope * 2.8])
    normal, along = np.array([-np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), np.sin(angle)])
    ball = foot + 0.22 * normal
    axes.plot(*ball, "o", markersize=18, color=palette.colour("gravity"))
    for vector, label in ((-1.1 * along, "$a_x = -a_L \\sin\\theta$"), (np.array([0, -1.1]), "$a_L$")):
        axes.annotate("", ball + vector, ball, arrowprops={"arrowstyle": "-|>", "color": "#1B27FF", "linewidth": 1.5})
        axes.text(*(ball + 1.05 * vector), label, color="#1B27FF", ha="right" if vector[0] else "left", va="bottom")
    arc = np.linspace(0, angle, 30)
    axes.plot(0.9 * np.cos(arc), 0.9 * np.sin(arc), color="0.3", linewidth=1)
    axes.text(1.0, 0.16, "$\\theta = \\arctan(dL/dW)$")
    axes.set(xlabel="$W$, a parameter", ylabel="$L$, the loss", xlim=(-0.2, 4.3), ylim=(-0.2, 2.9), aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def figure_2(learning_rate: float = 0.1) -> Figure:
    """Gradient descent as a function of the gradient, Eq. 14."""
    figure, axes = _step_axes()
    _plot_descent(axes, learning_rate)
    axes.legend()
    return figure


def figure_3(learning_rate: float = 0.1) -> Figure:
    """Gravity (Eq. 13) beside gradient descent."""
    return figure_4((learning_rate,))


def figure_4(learning_rates: Sequence[float] = (0.1, 0.25)) -> Figure:
    """The same for several learning rates: the extremum stays at a gradient of 1."""
    figure, axes = _step_axes()
    for learning_rate, style in zip(learning_rates, ("-", "--"), strict=False):
        _plot_gravity(axes, learning_rate, 1.0, f"Gravity, $l$ = {learning_rate}", style)
        _plot_descent(axes, learning_rate, style)
    axes.legend()
    return figure


def figure_5(max_step_grads: Sequence[float] = (1.25, 2.0), learning_rate: float = 0.1) -> Figure:
    """Max-Step Grad (Eq. 18): the gradient that takes the largest step, which is l m / 2 (Eq. 19)."""
    figure, axes = _step_axes()
    for m, style in zip(max_step_grads, ("-", "--"), strict=False):
        _plot_gravity(axes, learning_rate, m, f"Gravity, $m$ = {m}", style)
        at = jnp.array([-m, m])
        axes.plot(at, gravity_step(at, learning_rate, m), "o", color=palette.colour("gravity"))
    _plot_descent(axes, learning_rate)
    axes.legend()
    return figure


def figure_6(learning_rate: float = 1.05, steps: int = 6) -> Figure:
    """On W^2 gradient descent with too large a learning rate jumps higher from side to side; Gravity comes down."""
    figure = _figure(8.0, 3.4)
    w = np.linspace(-2.2, 2.2, 200)
    loss = lambda w: w**2
    optimizers = {"sgd": optax.sgd(learning_rate), "gravity": gravity(learning_rate, alpha=0.0, key=0)}
    for axes, (name, tx) in zip(figure.subplots(1, 2, sharey=True), optimizers.items(), strict=True):
        path = minimize(loss, jnp.float32(1.0), tx, steps=steps)
        axes.plot(w, loss(w), color="0.7")
        axes.plot(path.positions, path.values, marker="o", color=palette.colour(name))
        for i in range(0, steps + 1, 1 if name == "sgd" else steps):
            axes.annotate(f"{i}", (path.positions[i], path.values[i]), textcoords="offset points", xytext=(5, 5))
        axes.set(xlabel="$W$", title=f"{'gradient descent' if name == 'sgd' else 'Gravity'}, $l$ = {learning_rate}")
        axes.set(ylim=(-0.2, 4.6))
    figure.axes[0].set_ylabel("loss $L = W^2$")
    return figure


def figure_7(betas: Sequence[float] = (0.0, 0.5, 0.9, 0.99), learning_rate: float = 1.0, steps: int = 150) -> Figure:
    """The loss with plain averaging (Eq. 22, from rest) for four beta; for the last two also with beta-hat and V_0."""
    figure, axes = _axes(7.0, 4.2)
    start = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    run = lambda tx: minimize(digits_loss, start, tx, steps=steps).values
    plain = jax.vmap(lambda beta: run(averaged_gravity(learning_rate, beta)))(jnp.array(betas))
    corrected = jax.vmap(lambda beta: run(gravity(learning_rate, beta=beta, key=0, first_step=0)))(jnp.array(betas))
    for i, (beta, shade) in enumerate(zip(betas, SHADES, strict=True)):
        axes.plot(plain[i], color=shade, label=f"Eq. 22, $\\beta$ = {beta}")
        if beta in betas[-2:]:
            axes.plot(corrected[i], "--", color=shade, label=f"$\\hat\\beta$ and $V_0$, $\\beta$ = {beta}")
    axes.set(xlabel="step", ylabel="training loss", title="logistic regression on the digits")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure


def figure_8(betas: Sequence[float] = (0.5, 0.9, 0.99, 1.0), steps: int = 100) -> Figure:
    """Beta-hat over the steps (a), and over how many steps it averages (b), for several beta."""
    figure = _figure(8.0, 3.6)
    left, right = figure.subplots(1, 2)
    t = jnp.arange(steps)
    for beta, shade in zip(betas, SHADES, strict=True):
        for axes, curve in ((left, beta_hat), (right, averaged_data)):
            axes.plot(t, jax.vmap(functools.partial(curve, beta))(t), color=shade, label=f"$\\beta$ = {beta}")
    left.set(xlabel="$t$", ylabel="$\\hat\\beta$", title="(a)")
    right.set(xlabel="$t$", ylabel="averaged data $1 / (1 - \\hat\\beta)$", title="(b)")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def figure_9(alpha: float = 0.01, learning_rate: float = 0.1, parameters: int = 100_000) -> Figure:
    """V_0 as the library draws it, and the share of its entries within one, two and three standard deviations."""
    figure, axes = _axes(7.0, 3.8)
    state = gravity(learning_rate, alpha, key=0).init(jnp.zeros(parameters))
    velocity = np.asarray(optax.tree.get(state, "velocity"))
    sigma = alpha / learning_rate
    counts, edges = np.histogram(velocity / sigma, bins=np.linspace(-4, 4, 81), density=True)
    for within, shade in ((4, "0.9"), (3, "0.75"), (2, "0.55"), (1, "0.3")):
        inside = np.abs((edges[:-1] + edges[1:]) / 2) < within
        part = np.mean(np.abs(velocity) < within * sigma)
        label = f"within {within}$\\sigma$: {part:.1%}" if within < 4 else "beyond"
        axes.bar(edges[:-1][inside], counts[inside], width=0.1, align="edge", color=shade, label=label)
    axes.set(
        xlabel="$V_0 / \\sigma$", ylabel="density", title=f"$V_0$ of {parameters:,} parameters, $\\sigma$ = {sigma:g}"
    )
    axes.legend(handles=axes.get_legend_handles_labels()[0][::-1])
    return figure


def digits_loss(params: dict) -> jax.Array:
    """The mean cross-entropy of logistic regression on all of scikit-learn's digits; w is (64, 10), b (10,)."""
    images, labels = _digits()
    logits = images @ params["w"] + jnp.reshape(params["b"], (1, 10))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.asarray(images / 16, np.float32), np.asarray(labels, np.int32)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _axes(width: float, height: float):
    figure = _figure(width, height)
    return figure, figure.add_subplot()


def _step_axes():
    figure, axes = _axes(6.0, 3.8)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.axvline(0, color="0.7", linewidth=0.8)
    axes.set(xlabel="gradient $g$", ylabel="step $\\Delta W$", ylim=(-0.5, 0.5))
    return figure, axes


def _plot_descent(axes, learning_rate: float, style: str = "-") -> None:
    steps = step_of(optax.sgd(learning_rate), GRADIENTS)
    axes.plot(GRADIENTS, steps, style, color=palette.colour("sgd"), label=f"gradient descent, $l$ = {learning_rate}")


def _plot_gravity(axes, learning_rate: float, m: float, label: str, style: str) -> None:
    steps = gravity_step(GRADIENTS, learning_rate, m)
    axes.plot(GRADIENTS, steps, style, color=palette.colour("gravity"), label=label)
