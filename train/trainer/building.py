"""What a run trains with, on the devices: its pictures, its compiled programs and its initial state."""

import concurrent.futures
import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from trainer import augment, data, networks, optimizers, steps, watch
from trainer.config import ResolvedConfig
from trainer.devices import Program, Replicas, release_memory


class Built(NamedTuple):
    """A run's programs, and the pictures that they take."""

    lengths: list[int]  # of an epoch's chunks, in steps
    chunks: dict[int, Program]  # by the number of steps
    evaluation: Program
    watching: Program | None  # with `config.watch`: `watch.measure`
    train_set: steps.Split
    test_set: steps.Split
    test_batches: np.ndarray


def build(config: ResolvedConfig, dataset: data.Dataset, replicas: Replicas) -> tuple[Built, steps.TrainState]:
    """Puts the data and the initial state on all devices, and compiles."""
    image_shape, size, test_size = dataset.train_images.shape[1:], config.batch_size, len(dataset.test_labels)
    lengths = chunk_lengths(-(-len(dataset.train_labels) // size))  # the last, partial batch counts
    model = networks.build(config, dataset.num_classes)
    params_key, velocity_key = jax.random.split(jax.random.key(config.seed))
    tx = optimizers.build(config, velocity_key, sum(lengths))

    def initial_state() -> steps.TrainState:
        params = networks.initial(config, model, params_key, image_shape)
        return steps.TrainState(params, tx.init(params))

    train_set = replicas.replicate(steps.Split(steps.flat(dataset.train_images), dataset.train_labels))
    test_set = replicas.replicate(steps.Split(steps.flat(dataset.test_images), dataset.test_labels))
    test_batches = replicas.split(steps.in_batches(np.arange(test_size), -(-test_size // size), size))

    apply, view = steps.on_flat(model.apply, image_shape), augment.view(config, image_shape)
    train, evaluate = (
        functools.partial(steps.train_chunk, apply, tx, view=view),
        functools.partial(steps.evaluate, apply),
    )
    seen = augment.pictures_of(train_set, config, 1, replicas.replicate)
    shapes = jax.eval_shape(initial_state)
    evaluation = Program(replicas, evaluate, shapes.params, test_set, test_batches)
    no_batch = lambda length: replicas.split(np.full((length, size), -1, np.int32))
    measure = functools.partial(watch.measure, apply, config, view=view)
    watching = Program(replicas, measure, shapes, seen, no_batch(1)) if config.watch else None
    # Meanwhile: the other compilations, and the many small ones that draw the initial state.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(initial_state)
        compiled = [pool.submit(program.compile) for program in (evaluation, watching) if program]
        chunks = {
            length: Program(replicas, train, shapes, seen, no_batch(length), donate_first=True).compile()
            for length in sorted(set(lengths))
        }
    for other in compiled:
        other.result()  # or its error
    state = replicas.replicate(drawn.result())
    del drawn
    release_memory()
    return Built(lengths, chunks, evaluation, watching, train_set, test_set, test_batches), state


def chunk_lengths(count: int) -> list[int]:
    """Splits an epoch's steps into chunks, one dispatch each, of one length (one program) or of two.

    A chunk is long enough that the host has nothing to do per step, and short enough for the progress bar.
    """
    fewest = max(min(8, count), math.ceil(count / 128))
    chunks = next((n for n in range(fewest, min(10 * fewest, count) + 1) if count % n == 0 and n < count), fewest)
    return [count // chunks + (i < count % chunks) for i in range(chunks)]
