"""A fault of jaxlib on CPUs, and the way around it, which must be taken before jax is first used.

From jaxlib 0.10.2 on (up to 0.12.0.1, the newest at this writing), XLA:CPU silently computes wrong results where a
reduction follows a product with a constant (jax-ml/jax issue 39103). It is right without the fusion that came with that
release. Nothing heavy is imported here.
"""

import glob
import importlib.metadata
import importlib.util
import mmap
import os
import pathlib

FIRST_FAULTY = (0, 10, 2)
# Right on every Python that has a wheel of it: 3.11 to 3.14.
RIGHT = "0.10.1"
_said: list[str] = []  # the line of a change that was made
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def work_around() -> str | None:
    """Turns the faulty fusion off, where jax is about to compute on a CPU with a jaxlib that has it.

    It adds a flag to XLA_FLAGS, whose other flags stay, and changes nothing where that flag is set already.

    Returns:
      A line that says so, for the log; None where nothing was changed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    version = importlib.metadata.version("jaxlib")
    if _FLAG in flags or _numbers(version) < FIRST_FAULTY or not _is_known() or not _on_cpu():
        return None
    os.environ["XLA_FLAGS"] = f"{_FLAG}= {flags}".rstrip()
    _said.append(f"jaxlib {version} computes wrong results on CPUs with one of its fusions: turned off ({_FLAG}=)")
    return _said[-1]


def what_was_said() -> list[str]:
    """The line of `work_around`, for a log that begins later; none where nothing was changed."""
    return _said[-1:]


def _numbers(version: str) -> tuple[int, ...]:
    """(0, 10, 2) of 0.10.2, and of 0.10.2.dev20260101."""
    parts = version.split(".")[:3]
    return tuple(int(part) if part.isdecimal() else 0 for part in parts)


def _is_known() -> bool:
    """Whether this jaxlib has the flag: XLA aborts at one that it does not know."""
    spec = importlib.util.find_spec("jaxlib")
    assert spec is not None and spec.origin is not None
    for library in pathlib.Path(spec.origin).parent.glob("*.so"):
        if library.stat().st_size:
            with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(_FLAG.lstrip("-").encode()) >= 0:
                    return True
    return False


def _on_cpu() -> bool:
    """Whether jax will compute on the CPU: it is told to, or has no accelerator here, or no plugin for one."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0].strip() == "cpu"
    plugin = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    return not (plugin and any(glob.glob(pattern) for pattern in _ACCELERATORS))
