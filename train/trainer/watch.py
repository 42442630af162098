"""`--watch`: how strongly Gravity damps the gradient of each leaf at each epoch: gradients.csv and gradients.png.

It measures the gradient of the next step: on the next epoch's first batch, at the weights at the end of the epoch,
clipped like the run's. Without --accumulate this is exactly what Gravity gets; with it, Gravity gets the mean over
several batches, of which only the first is measured. That costs one forward and one backward pass per epoch, in a
separate program; training is unaffected.
"""

import dataclasses
import logging
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gravity_optax import damping
from trainer import optimizers, pictures, steps
from trainer.config import ResolvedConfig, UserError, brief
from trainer.records import Workdir

log = logging.getLogger("train")

CSV, PNG = "gradients.csv", "gradients.png"


@dataclasses.dataclass(frozen=True)
class LeafOfEpoch:
    """A row of gradients.csv."""

    epoch: int  # from 1
    leaf: str  # such as Conv3x3_0/kernel
    max_abs: float  # max|G|
    damped_share: float  # of the entries with |g| > m, which Gravity damps to less than half their value
    velocity_norm: float | None  # Euclidean; None for other optimizers than Gravity


COLUMNS = ",".join(field.name for field in dataclasses.fields(LeafOfEpoch))


class Measured(NamedTuple):
    """On the device: float32 (leaves,), in the order of the parameters' tree."""

    max_abs: jax.Array
    damped_share: jax.Array
    velocity_norm: jax.Array | None


def measure(
    apply: steps.Apply,
    config: ResolvedConfig,
    state: steps.TrainState,
    pictures: steps.Split,
    batches: jax.Array,
    view: steps.View = steps.unchanged,
) -> Measured:
    """What one device computes, as `steps.train_chunk` does, for the first batch of `batches`, int32 (steps, b).

    For other optimizers: what Gravity (Eq. 20) would do to these gradients.
    """
    gradients, _ = steps.mean_gradient(apply, state.params, pictures, batches[0], view)
    for clip in optimizers.clipping(config):
        gradients, _ = clip.update(gradients, clip.init(state.params))
    rule = optimizers.max_step_grad(config)
    found = damping(gradients, max_step_grad=rule)
    velocity = optax.tree.get(state.opt_state, "velocity") if config.optimizer == "gravity" else None
    norms = jax.tree.map(lambda v: jnp.sqrt(jnp.sum(jnp.square(v))), velocity)
    stacked = lambda tree: jnp.stack(jax.tree.leaves(tree))
    return Measured(stacked(found.max_abs), stacked(found.share), None if velocity is None else stacked(norms))


def rows(epoch: int, params: Any, measured: Measured) -> list[LeafOfEpoch]:
    """A row for each leaf of `params`, with layers of a kind in the order of the network."""
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]
    largest, shares = np.asarray(measured.max_abs).tolist(), np.asarray(measured.damped_share).tolist()
    norms = [None] * len(names) if measured.velocity_norm is None else np.asarray(measured.velocity_norm).tolist()
    found = [LeafOfEpoch(epoch, *values) for values in zip(names, largest, shares, norms, strict=True)]
    return sorted(found, key=lambda row: [part.zfill(9) for part in re.split(r"(\d+)", row.leaf)])


class GradientFile:
    """gradients.csv in a run's workdir; a resumed run loses no row and repeats none."""

    def __init__(self, workdir: Workdir, config: ResolvedConfig):
        """With `config.resume`, continues the existing file; UserError if it cannot be read."""
        self._workdir, self._config = workdir, config
        path = workdir.path / CSV
        try:
            self._rows = _parsed(path.read_text()) if config.resume and path.exists() else []
        except (OSError, ValueError) as error:
            raise UserError(
                f"--workdir is {workdir.path}, whose {CSV} cannot be read ({brief(error)}); move it away, or leave"
                " --watch out."
            ) from error

    def add(self, epoch: list[LeafOfEpoch]) -> None:
        """Writes the file with the rows of one more epoch; rows of later epochs, from before resuming, are dropped."""
        self._rows = [row for row in self._rows if row.epoch < epoch[0].epoch]
        worst = max(epoch, key=lambda row: row.damped_share)
        if self._config.optimizer == "gravity" and _damped(worst) and not any(map(_damped, self._rows)):
            log.info(
                f"after epoch {worst.epoch} Gravity damps {worst.damped_share:.0%} of the entries of {worst.leaf}"
                f" to less than half their value (max|G| is {worst.max_abs:.3g}); if that lasts, training stalls: see"
                " --clip-norm"
            )
        self._rows += epoch
        self._workdir.write(CSV, _text(self._rows).encode())

    def draw(self) -> None:
        """Writes gradients.png if there are any rows."""
        if self._rows and (picture := pictures.png(PNG, lambda: _figure(self._rows))):
            self._workdir.write(PNG, picture)


def _damped(row: LeafOfEpoch) -> bool:
    """Whether most entries of the leaf are damped to less than half their value."""
    return row.damped_share > 0.5


def _text(of: list[LeafOfEpoch]) -> str:
    number = lambda value: "" if value is None else f"{value:.6g}"
    lines = [COLUMNS]
    for row in of:
        numbers = map(number, (row.max_abs, row.damped_share, row.velocity_norm))
        lines.append(",".join([str(row.epoch), row.leaf, *numbers]))
    return "".join(f"{line}\n" for line in lines)


def _parsed(text: str) -> list[LeafOfEpoch]:
    """The rows of `_text`; ValueError for anything else."""
    header, *lines = text.splitlines() or [""]
    if header != COLUMNS:
        raise ValueError(f"its first line is {header!r}, not {COLUMNS}")
    return [
        LeafOfEpoch(int(epoch), leaf, float(largest), float(share), float(norm) if norm else None)
        for epoch, leaf, largest, share, norm in (line.split(",") for line in lines)
    ]


def _figure(of: list[LeafOfEpoch]) -> Any:
    """A panel for each number and a line for each leaf: kernels solid, the rest dotted."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = {"max_abs": "max|G|", "damped_share": "share of entries with |g| > m", "velocity_norm": "norm of V"}
    if all(row.velocity_norm is None for row in of):
        del panels["velocity_norm"]
    leaves = list(dict.fromkeys(row.leaf for row in of))
    layers = list(dict.fromkeys(leaf.rpartition("/")[0] for leaf in leaves))
    colours = dict(zip(layers, matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(layers))), strict=True))
    figure = Figure(figsize=(4 * len(panels) + 3, 4.5), layout="constrained")
    every = dict(zip(panels, figure.subplots(1, len(panels)), strict=True))
    for field, axes in every.items():
        for leaf in leaves:
            rows_of_leaf = [row for row in of if row.leaf == leaf]
            style: dict[str, Any] = {"ls": "-"} if leaf.endswith("kernel") else {"ls": ":", "lw": 1}
            axes.plot(
                [row.epoch for row in rows_of_leaf],
                [_shown(getattr(row, field), field) for row in rows_of_leaf],
                **style | {"marker": ".", "color": colours[leaf.rpartition("/")[0]], "label": leaf},
            )
        axes.set(xlabel="epoch", ylabel=panels[field])
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    every["max_abs"].axhline(1, color="black", lw=1)
    every["max_abs"].set_yscale("log")
    every["damped_share"].set_ylim(-0.03, 1.03)
    handles, labels = every["max_abs"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=6, ncols=1 + len(leaves) // 32)
    return figure


def _shown(value: float | None, field: str) -> float:
    """The value to plot: a logarithmic axis has no 0."""
    return math.nan if value is None or (field == "max_abs" and value == 0) else value
