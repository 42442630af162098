"""Several seeds of a run: one after another, as one program (`jax.vmap` over the seeds), in processes side by side.

    pip install -e ".[train]" && python tests/speed/seeds.py [--json FILE]

Milliseconds per step and seed of the trainer's chunk, for the default network and for VGG16 with batches of 128. The
last column says how far the parameters of a seed are, after one chunk, from those of the same seed alone (the largest
difference over the largest change; 0: bit for bit the same).
"""

import functools
import multiprocessing
import os
import pathlib
import sys

import numpy as np
import timing

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "train"))

SEEDS = 2
# Name: flags, steps in a chunk.
RUNS = {
    "vgg11 x 0.25, batch 32": ({}, 20),
    "vgg16, batch 128": ({"dataset": "cifar10", "model": "vgg16", "batch_size": 128}, 3),
}


class Runs:
    """The seeds of one network, each with a state of its own."""

    def __init__(self, name: str):
        import jax

        from trainer import devices, optimizers, steps, vgg
        from trainer.config import Config, resolve

        self.jax = jax
        flags, self.length = RUNS[name]
        config = resolve(Config(**flags))
        rng = np.random.default_rng(0)
        size = self.length * config.batch_size
        images = rng.integers(0, 256, (size, 32 * 32 * 3), np.uint8)
        self.pictures = steps.Split(images, rng.integers(0, 10, size, np.int32))
        model = vgg.build(config.model, config.width, 10, config.precision)
        self.states, self.orders = [], []
        for seed in range(SEEDS):
            params_key, velocity_key = jax.random.split(jax.random.key(seed))
            tx = optimizers.build(config, velocity_key)
            params = vgg.init(model, params_key, (32, 32, 3))
            self.states.append(steps.TrainState(params, tx.init(params)))
            order = np.random.default_rng(seed).permutation(size).astype(np.int32)
            self.orders.append(order.reshape(1, self.length, -1))
        chunk = functools.partial(steps.train_chunk, steps.on_flat(model.apply, (32, 32, 3)), tx)
        compiled = lambda *arguments: devices.Program(devices.Replicas(jax.devices()[:1]), *arguments).compile()
        self.alone = compiled(chunk, self.states[0], self.pictures, self.orders[0])
        self.stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *self.states)
        together = jax.vmap(chunk, (0, None, 0))
        self.vmapped = compiled(together, self.stacked, self.pictures, np.stack(self.orders, axis=1))

    def in_turn(self, seeds=range(SEEDS)):
        return [
            self.jax.block_until_ready(self.alone(self.states[seed], self.pictures, self.orders[seed])[0])
            for seed in seeds
        ]

    def as_one(self):
        orders = np.stack(self.orders, axis=1)
        return self.jax.block_until_ready(self.vmapped(self.stacked, self.pictures, orders)[0])

    def difference(self) -> float:
        """Between the two."""
        worst = 0.0
        for seed, alone in enumerate(self.in_turn()):
            leaves = [self.jax.tree.leaves(tree.params) for tree in (self.states[seed], alone, self.as_one())]
            for before, after, together in zip(*leaves, strict=True):
                change = np.max(np.abs(np.asarray(after) - np.asarray(before)))
                worst = max(worst, float(np.max(np.abs(np.asarray(after) - np.asarray(together)[seed])) / change))
        return worst


def serve(name: str, seed: int, connection) -> None:
    """In a process of its own: a chunk of one seed for each message."""
    runs = Runs(name)
    while connection.recv():
        runs.in_turn([seed])
        connection.send(None)


def main() -> None:
    options = timing.arguments(__doc__, rounds=5)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    context = multiprocessing.get_context("spawn")
    rows = []
    for name, (_, length) in RUNS.items():
        connections = []
        for seed in range(SEEDS):
            connection, other = context.Pipe()
            context.Process(target=serve, args=(name, seed, other), daemon=True).start()
            connections.append(connection)

        def side_by_side(connections=connections):
            for connection in connections:
                connection.send(True)
            for connection in connections:
                connection.recv()

        runs = Runs(name)
        candidates = {"one after another": runs.in_turn, "one program": runs.as_one, "side by side": side_by_side}
        times = timing.interleaved(candidates, options.rounds, warmup=1)
        differences = {"one after another": 0.0, "one program": runs.difference(), "side by side": 0.0}
        for how, seconds in times.items():
            row = {f"{SEEDS} seeds": f"{name}: {how}", **timing.summary([s / length / SEEDS for s in seconds])}
            rows.append(row | {"from alone": differences[how]})
        for connection in connections:
            connection.send(False)
    for row in rows:
        network = row[f"{SEEDS} seeds"].split(":")[0]
        first = next(r for r in rows if r[f"{SEEDS} seeds"].startswith(network))
        row["speed"] = first["median_ms"] / row["median_ms"]
    sys.stdout.write(timing.table(rows) + "\n")
    timing.write(options.json, {"seeds": rows})


if __name__ == "__main__":
    main()
