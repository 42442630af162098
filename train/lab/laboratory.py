"""Does the runs of a comparison, in this process. Each entrant has one compiled program, whose arguments are what is
searched; only another warm-up needs another program.

A run is what the trainer would do with the same settings: the same data, network, initial weights, optimizer, steps and
order of the pictures, apart from the tenth of the training set that is held out. Training and test pictures lie on the
devices as one array, so that training part, validation part and test set are row numbers in it.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lab.options import Comparison
from lab.runs import Outcome, Trial
from lab.spaces import settings_of
from trainer import augment, data, devices, networks, optimizers, steps
from trainer.config import ResolvedConfig

# How many steps a device is handed at once. The batches of an epoch need not divide by it: the missing ones
# are not trained on; in an evaluation they are computed and not counted.
_STEPS, _EVALUATION_STEPS = 64, 8


Varied = Mapping[str, Any]  # what is searched: fields of the configuration, or arguments of optax's function


class Stopped(Exception):
    """The run was stopped on request."""


def split(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training part and the validation part, a fixed random tenth, of `size` training pictures."""
    order = np.random.default_rng(0).permutation(size)
    held_out = max(1, size // 10)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


class Laboratory:
    """The pictures of one comparison on the devices, and the programs of its entrants, compiled when first needed."""

    def __init__(self, comparison: Comparison, replicas: devices.Replicas | None = None):
        """Reads the dataset; DataError if it is not available."""
        self.comparison = comparison
        config = comparison.config
        self.dataset = data.load(config.dataset, config.data_dir, config.limit)
        self.training, self.validation = split(len(self.dataset.train_labels))
        self.test = len(self.dataset.train_labels) + np.arange(len(self.dataset.test_labels))
        self._replicas = replicas or devices.Replicas()
        images = np.concatenate([self.dataset.train_images, self.dataset.test_images])
        labels = np.concatenate([self.dataset.train_labels, self.dataset.test_labels])
        self._pictures = self._replicas.replicate(steps.Split(steps.flat(images), labels))
        self._image_shape = images.shape[1:]
        self._steps_per_epoch = -(-len(self.training) // config.batch_size)
        self._programs: dict[ResolvedConfig | networks.Network, Callable] = {}  # of training, of an evaluation
        self._compiling = 0.0  # seconds, in the current run

    def run(
        self,
        trial: Trial,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], object] = lambda epochs: None,
    ) -> Outcome:
        """Does the run. `Stopped` if `stop` says so between two chunks; calls `progress` with 1 after each epoch.

        After a loss that is not finite it ends, with what the broken weights score for the epochs that are left.
        """
        varied = settings_of(trial.point) | {"learning_rate": trial.learning_rate}
        config = dataclasses.replace(self.comparison.entrants[trial.optimizer], seed=trial.seed)
        config = dataclasses.replace(config, warmup_epochs=varied.pop("warmup_epochs", config.warmup_epochs))
        state = self._start(config, varied)
        started, self._compiling = time.perf_counter(), 0.0
        loss, accuracy, losses, accuracies = 0.0, 0.0, [], []
        for epoch in range(1, trial.epochs + 1):
            if math.isfinite(loss):
                state, loss = self._train_epoch(config, varied, state, epoch, stop)
                accuracy = self._accuracy(config, state, self.validation)
            losses.append(loss)
            accuracies.append(accuracy)
            progress(1)
        test_accuracy = self._accuracy(config, state, self.test) if trial.part == "final" else None
        return Outcome(
            classes=self.dataset.num_classes,
            training_pictures=len(self.training),
            validation_pictures=len(self.validation),
            test_pictures=len(self.test),
            loss_by_epoch=tuple(losses),
            accuracy_by_epoch=tuple(accuracies),
            test_accuracy=test_accuracy,
            seconds=time.perf_counter() - started - self._compiling,
        )

    def _model(self, config: ResolvedConfig) -> networks.Network:
        return networks.build(config, self.dataset.num_classes)

    def _start(self, config: ResolvedConfig, varied: Varied) -> steps.TrainState:
        """Initial weights and velocity, as the trainer draws them from the seed."""
        params_key, velocity_key = jax.random.split(jax.random.key(config.seed))
        params = networks.initial(config, self._model(config), params_key, self._image_shape)
        tx = _optimizer(config, varied, velocity_key, self._steps_per_epoch)
        return self._replicas.replicate(steps.TrainState(params, tx.init(params)))

    def _train_epoch(
        self, config: ResolvedConfig, varied: Varied, state: steps.TrainState, epoch: int, stop: Callable[[], bool]
    ) -> tuple[steps.TrainState, float]:
        """The state after an epoch, and the mean loss over its pictures; an epoch is cut short where that breaks."""
        order = self.training[np.random.default_rng([config.seed, epoch]).permutation(len(self.training))]
        pictures = augment.pictures_of(self._pictures, config, epoch, self._replicas.replicate)
        values = {name: np.float32(value) for name, value in varied.items()}
        apply = steps.on_flat(self._model(config).apply, self._image_shape)
        chunk = functools.partial(_train_some, apply, config, self._steps_per_epoch, self._image_shape)
        key, loss = dataclasses.replace(config, seed=0), 0.0
        for count, batches in self._chunks(order, _STEPS):
            if stop():
                raise Stopped
            given = pictures, values, np.int32(count), np.uint32(config.seed)
            state, sums = self._on_devices(key, chunk, (state, given, batches), donate_first=True)
            loss += float(sums.loss)
            if not math.isfinite(loss):
                break
        return state, loss / len(order)

    def _accuracy(self, config: ResolvedConfig, state: steps.TrainState, rows: np.ndarray) -> float:
        """The share of these pictures that are classified rightly."""
        model = self._model(config)
        score = functools.partial(steps.evaluate, steps.on_flat(model.apply, self._image_shape))
        right = lambda batches: int(self._on_devices(model, score, (state.params, self._pictures, batches)).correct)
        return sum(right(batches) for _, batches in self._chunks(rows, _EVALUATION_STEPS)) / len(rows)

    def _on_devices(self, key: Any, function: Callable, arguments: Any, donate_first: bool = False) -> Any:
        """`function` of (tree, pictures, batches) on all devices, compiled once for a key."""
        if key not in self._programs:
            started = time.perf_counter()
            program = devices.Program(self._replicas, function, *arguments, donate_first=donate_first)
            self._programs[key] = program.compile()
            devices.release_memory()
            self._compiling += time.perf_counter() - started
        return self._programs[key](*arguments)

    def _chunks(self, rows: np.ndarray, length: int) -> list[tuple[int, np.ndarray]]:
        """The batches of these row numbers, `length` at a time as a program takes them, and how many of them exist."""
        size = self.comparison.config.batch_size
        count = -(-len(rows) // size)
        batches = steps.in_batches(rows, -(-count // length) * length, size).reshape(-1, length, size)
        return [(min(length, count - i * length), self._replicas.split(chunk)) for i, chunk in enumerate(batches)]


def _optimizer(
    config: ResolvedConfig, varied: Varied, key: jax.Array, steps_per_epoch: int
) -> optax.GradientTransformation:
    """The trainer's, with these values, which may be traced."""
    fields = {name: value for name, value in varied.items() if hasattr(config, name)}
    arguments = {name: value for name, value in varied.items() if name not in fields}
    return optimizers.build(dataclasses.replace(config, **fields), key, steps_per_epoch, **arguments)


def _train_some(
    apply: steps.Apply,
    config: ResolvedConfig,
    steps_per_epoch: int,
    image_shape: tuple[int, ...],
    state: steps.TrainState,
    given: tuple[steps.Split, Varied, Any, Any],
    batches: jax.Array,
) -> Any:
    """On the device: as many steps as `given` = (pictures, varied, count, seed) says, and their sums."""
    pictures, varied, count, seed = given
    # The key draws an initial velocity, which the state has already.
    config = dataclasses.replace(config, seed=seed)
    tx = _optimizer(config, varied, jax.random.key(0), steps_per_epoch)
    view = augment.view(config, image_shape)

    def step(i, carry):
        state, total = carry
        state, sums = steps.train_step(apply, tx, state, pictures, batches[i], view)
        return state, jax.tree.map(jnp.add, total, sums)

    zero = steps.Sums(jnp.float32(0), jnp.int32(0), jnp.int32(0))
    return jax.lax.fori_loop(0, count, step, (state, zero))
