"""What jax is told before its first use and what is checked then: a fault of jaxlib, platform, settings, caches.

How work is spread over devices and processes once jax runs is in `devices`.
"""

import contextlib
import glob
import importlib.metadata
import importlib.util
import logging
import mmap
import os
import pathlib
import platform
from collections.abc import Iterator

import jax
import jax.extend
import jax.numpy as jnp

from trainer.config import UserError, brief

log = logging.getLogger("train")

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


def find_devices() -> None:
    """UserError for a platform that JAX_PLATFORMS names and that is not there, and for a plugin that does not start."""
    failures: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        """Jax logs the exception of a plugin, with its traceback, and continues without it."""
        if record.exc_info and record.exc_info[1]:
            failures.append(brief(record.exc_info[1]))
        return not record.exc_info

    names = [name for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)]
    wanted = " and ".join(f"{name} is {os.environ[name]}" for name in names)
    logger = logging.getLogger("jax._src.xla_bridge")
    logger.addFilter(keep)
    try:
        jax.devices()
        if wanted or not failures:
            return
    except Exception as error:  # RuntimeError, AssertionError for cuda without its plugin, whatever a driver raises
        failures.append(brief(error) if str(error) else "its plugin for jax is not installed")
        jax.config.update("jax_platforms", None if wanted else "cpu")
        jax.config.update("jax_platform_name", "")
    finally:
        logger.removeFilter(keep)
    there = ", ".join(sorted(jax.extend.backend.backends()))
    raise UserError(
        f"{wanted}, which is not available here ({failures[0]}); the platforms that are there: {there};"
        " set it to one of them or unset it, or install what it needs."
        if wanted
        else f"JAX_PLATFORMS is not set, and a platform that is installed does not start ({failures[0]}); the platforms"
        f" that are there: {there}; repair or uninstall its plugin, or set JAX_PLATFORMS to one of them."
    )


def override_settings() -> None:
    """Settings of the environment that are meant for finding faults in a program, and that end this one.

    JAX_TRANSFER_GUARD finds transfers that are not meant: all of these are. JAX_DISABLE_JIT runs functions line by
    line: these are compiled ahead of time.
    """
    jax.config.update("jax_transfer_guard", "allow")
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        log.info("JAX_DISABLE_JIT is set and has no effect here: programs are compiled ahead of time")
        jax.config.update("jax_disable_jit", False)


def use_compilation_cache(setting: str) -> None:
    """Turns JAX's persistent compilation cache on, as `Config.compilation_cache` says; before anything is compiled."""
    if setting == "off" or (setting == "auto" and jax.default_backend() == "cpu"):
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = os.path.expanduser("~/.cache/gravity-optax")
        if folder.startswith("~"):
            log.warning(
                "there is no home folder (HOME is not set) and so no compilation cache; to have one, set"
                " JAX_COMPILATION_CACHE_DIR to a folder"
            )
            return
        jax.config.update("jax_compilation_cache_dir", folder)
    # Many small programs draw the initial state; each takes less than the second that JAX finds worth keeping.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def hints(precision: str, root: str = "/") -> Iterator[str]:
    """What a run on the CPU of this machine should know at the start, a line each; `root` is of /proc and /dev."""
    if jax.default_backend() != "cpu":
        return
    cards = [path for path in ("proc/driver/nvidia/version", "dev/nvidia0") if os.path.exists(os.path.join(root, path))]
    if cards and "JAX_PLATFORMS" not in os.environ:
        yield (
            "an NVIDIA GPU is in this machine, but jax does not see it; to train on it, install jax for it:"
            ' pip install -e ".[cuda12]" (or cuda13, for a driver of CUDA 13)'
        )
    flags: set[str] = set()
    with contextlib.suppress(OSError), open(os.path.join(root, "proc/cpuinfo")) as file:  # Linux has it
        flags = set(file.read().split())
    if precision == "bfloat16" and "avx2" in flags and not flags & {"avx512_bf16", "amx_bf16"}:
        yield "--precision bfloat16 is far slower than float32 on this CPU, which has no bfloat16 instructions"


def check_arithmetic() -> None:
    """Refuses a jaxlib that computes wrong results (jax-ml/jax issue 39103: -inf for this maximum on CPU)."""
    got = float(jax.jit(lambda a: (a @ jnp.ones((784, 64))).max())(jnp.ones((100, 784))))
    if got != 784.0:
        jaxlib = importlib.metadata.version("jaxlib")
        raise UserError(
            f"jax {jax.__version__} with jaxlib {jaxlib} computes wrong results on this machine (the largest"
            f" entry of a product is {got}, not 784); on Python {platform.python_version()} this one is right:"
            f" pip install 'jax=={RIGHT}' 'jaxlib=={RIGHT}'"
        )


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
