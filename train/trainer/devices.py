"""Devices and processes: where arrays are placed, what runs on all devices, how the processes of a run communicate.

State and datasets are replicated; batches are split. Moving from `jax.pmap` to another SPMD primitive changes this
module only. Each process of a run drives its own devices and does the same as the others; only the primary reads
checkpoints, writes files and shows progress. What is set before jax starts is in `jax_setup`.
"""

import contextlib
import ctypes
import glob
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from trainer.config import ResolvedConfig, RunAgain, UserError, brief

AXIS = "devices"  # the name of the mapped axis
LOST = "another process of this run has ended or cannot be reached; start all of them again, with --resume"
# Seconds: the others end about HEARTBEAT after a process is lost, and WAIT is how long processes wait for each other.
HEARTBEAT, WAIT = 30, 300


class Replicas:
    """All devices of a run, each holding the same state and working on its part of every batch."""

    def __init__(self, devices: Sequence[jax.Device] | None = None):
        self.devices = tuple(devices or jax.devices())
        # The mesh that jax.pmap makes of these devices: arrays replicated over it are not copied again at a call.
        mesh = jax.sharding.Mesh(np.array(self.devices), (AXIS,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self.parted = NamedSharding(mesh, PartitionSpec(AXIS))
        self.local = [i for i, d in enumerate(self.devices) if d.process_index == jax.process_index()]

    @property
    def alone(self) -> bool:
        """Whether this process drives all devices."""
        return len(self.local) == len(self.devices)

    def replicate(self, tree: Any) -> Any:
        """The tree with a copy of every array on each device, its shapes unchanged. The input may be reused.

        With several processes, each must pass the same values.
        """

        def copy(x):
            copies = [jax.device_put(x, self.devices[i], may_alias=False) for i in self.local]
            return jax.make_array_from_single_device_arrays(np.shape(x), self._replicated, copies)

        return jax.tree.map(copy, tree)

    def split(self, batches: np.ndarray) -> np.ndarray:
        """(steps, batch) picture numbers -> (devices, steps, ceil(batch / devices)), padded with -1."""
        n, (count, batch) = len(self.devices), batches.shape
        filled = np.full((count, -(-batch // n) * n), -1, np.int32)
        filled[:, :batch] = batches
        return np.ascontiguousarray(filled.reshape(count, n, -1).swapaxes(0, 1))


class Program:
    """A function of (tree, pictures, batches) on all devices, which is compiled before it is called.

    `batches` are split by `Replicas.split`; the other arguments and the result are replicated.
    """

    executable: jax.stages.Compiled

    def __init__(
        self,
        replicas: Replicas,
        function: Callable,
        tree: Any,
        pictures: Any,
        batches: np.ndarray,
        *,
        donate_first: bool = False,
    ):
        """Lowers it for arguments of these shapes; the tree may be one of `jax.ShapeDtypeStruct`."""
        self._replicas = replicas
        mapped = jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(None, None, 0),
            out_axes=None,
            devices=replicas.devices,
            donate_argnums=(0,) if donate_first else (),
        )
        if not replicas.alone:  # it takes arrays, not shapes, and only this process's parts
            tree = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
            batches = batches[replicas.local]
        self._lowered = mapped.lower(tree, pictures, batches)

    def compile(self) -> "Program":
        """Compiles and returns it; any thread may do so."""
        self.executable = _compile(self._lowered, self._replicas.devices[0].platform)
        del self._lowered
        return self

    def __call__(self, tree: Any, pictures: Any, batches: np.ndarray) -> Any:
        """Runs it; with several processes, in all of them, each with its own part of `batches`."""
        if not self._replicas.alone:
            own = batches[self._replicas.local]
            batches = jax.make_array_from_process_local_data(self._replicas.parted, own)
        return self.executable(tree, pictures, batches)


def sum_over_devices(tree: Any) -> Any:
    """Inside the function of a Program: the sums of each array over the devices, equal on all of them."""
    return jax.lax.psum(tree, AXIS)


# TPU: all gradients in one all-reduce; by default XLA takes two for VGG16's 135 MB. CPU: the products alone by the
# library whose other fusions are faulty (`jax_setup.work_around`), a tenth or more faster (tests/speed/README.md).
_OPTIONS: dict[str, dict[str, Any]] = {
    "tpu": {"xla_jf_crs_combiner_threshold_in_bytes": 2**30},
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"},
}


def _compile(lowered: Any, platform: str) -> Any:
    if options := _OPTIONS.get(platform):
        # Another version of XLA may not have the option. Any other failure occurs again below.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return lowered.compile(compiler_options=options)
    return lowered.compile()


def join_processes(config: ResolvedConfig) -> None:
    """Joins the other processes of the run, if flags name them or this is a Cloud TPU; call it before jax is used."""
    options: Any = {
        "heartbeat_timeout_seconds": HEARTBEAT,
        "shutdown_timeout_seconds": WAIT,
        "initialization_timeout": WAIT,
    }
    try:
        if config.coordinator is not None:
            jax.distributed.initialize(config.coordinator, config.num_processes, config.process_id, **options)
        elif config.num_processes is None and _on_cloud_tpu():
            jax.distributed.initialize(**options)
    except Exception as error:  # RuntimeError from the service, ValueError or ConnectionError from finding a slice
        if config.coordinator is not None:
            where = f"--coordinator is {config.coordinator}, where not all {config.num_processes} processes arrived"
            raise UserError(
                f"{where} ({brief(error)}); start them all within {WAIT} s, with the same address."
            ) from error
        fix = "with --num-processes 1 this host trains alone"
        raise UserError(f"the other hosts of this Cloud TPU were not found ({brief(error)}); {fix}.") from error


def primary() -> bool:
    """Whether this is the process that reads checkpoints, writes files and shows progress."""
    return jax.process_index() == 0


def from_primary(value: Any, arrays: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
    """The primary's `value` (any JSON value) and arrays, in every process; those of the other processes are ignored."""
    if jax.process_count() == 1:
        return value, arrays
    # Sent as bytes: the broadcast is a sum, which would turn -0.0 into 0.0.
    shapes = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    text = np.frombuffer(json.dumps([value, shapes]).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    value, shapes = json.loads(_broadcast(text, length).tobytes())
    received = {}
    for name, (dtype, shape) in shapes.items():
        own = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8) if primary() else np.empty(0, np.uint8)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        received[name] = _broadcast(own, size).view(dtype).reshape(shape)
    return value, received


def _broadcast(sent: np.ndarray, size: int) -> np.ndarray:
    """The primary's uint8 (size,) in every process."""
    return np.asarray(multihost_utils.broadcast_one_to_all(sent if primary() else np.zeros(size, np.uint8)))


def asked_to_stop(asked: bool, count: int) -> bool:
    """Whether all processes should stop now, because this one (`asked`) or another was asked to.

    With several processes, jax watches for SIGTERM. Each must call this with the counts 0, 1, 2, ...
    """
    if jax.process_count() == 1:
        return asked
    return multihost_utils.reached_preemption_sync_point(count)


@contextlib.contextmanager
def lost_peers() -> Iterator[None]:
    """Raises RunAgain if a computation fails because another process is gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise RunAgain(f"{LOST} ({brief(error)})") from error


def leave(exit_code: int, together: bool) -> None:
    """Ends this process if there are others: when all have reached this call (`together`), or at once."""
    if jax.process_count() == 1:
        return
    if together:
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _on_cloud_tpu() -> bool:
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*")
    wanted = os.environ.get("JAX_PLATFORMS", "tpu")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None and "tpu" in wanted


def release_memory() -> None:
    """Returns freed memory to the system; glibc keeps what compiling took, 0.9 GiB for VGG16 on a CPU."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
