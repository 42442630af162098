"""Runs in this process, stopped after a number of chunks as by SIGTERM, and what they leave in a folder."""

import csv
import dataclasses
import pathlib

import jax

from trainer import loop
from trainer.config import resolve
from trainer.preemption import StopRequest


class StopAfter(StopRequest):
    """Asks to stop once `chunks` chunks have begun."""

    def __init__(self, chunks):
        self.left = chunks

    @property
    def given(self):
        self.left -= 1
        return self.left < 0


def train(config, workdir, chunks=None, devices=1, **flags):
    """`loop.train` of the configuration with other flags, on `devices` devices; stopped after `chunks` chunks."""
    config = resolve(dataclasses.replace(config, workdir=str(workdir), **flags))
    with jax.numpy_dtype_promotion("standard"):  # optax's own code promotes
        return loop.train(config, jax.devices()[:devices], None if chunks is None else StopAfter(chunks))


def rows(path):
    """The rows of a CSV file, as dictionaries."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder):
    """Every file below a folder with its content."""
    return {path: path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}
