"""Setting up jax: the workaround for a fault of jaxlib, available platforms, environment settings, compilation cache.

How work is spread over devices and processes is in `devices`.
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
from jax.experimental.compilation_cache import compilation_cache

from trainer.config import UserError, brief

log = logging.getLogger("train")

# From jaxlib 0.10.2 on (up to 0.12.0.1, the newest at this writing), XLA:CPU silently computes wrong results where a
# reduction follows a product with a constant (jax-ml/jax issue 39103). Without the fusion introduced in that release
# the results are right.
FIRST_FAULTY = (0, 10, 2)
RIGHT = "0.10.1"  # on every Python that has a wheel of it: 3.11 to 3.14
_said: list[str] = []  # what `work_around` has logged
_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")


def work_around() -> str | None:
    """Turns the faulty fusion off if jax will compute on a CPU with an affected jaxlib; call it before jax is used.

    It adds a flag to XLA_FLAGS, keeps the others, and changes nothing if that flag is already set.

    Returns:
      A line that says so, for the log; None if nothing was changed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    version = importlib.metadata.version("jaxlib")
    if _FLAG in flags or _numbers(version) < FIRST_FAULTY or not _is_known() or not _on_cpu():
        return None
    os.environ["XLA_FLAGS"] = f"{_FLAG}= {flags}".rstrip()
    _said.append(f"jaxlib {version} computes wrong results on CPUs with one of its fusions: turned off ({_FLAG}=)")
    return _said[-1]


def what_was_said() -> list[str]:
    """The line of `work_around`, to be logged later; empty if nothing was changed."""
    return _said[-1:]


def find_devices() -> None:
    """Starts jax's platforms; UserError if one that JAX_PLATFORMS names is not available or a plugin fails to start."""
    failures: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        """Jax logs a plugin's exception with its traceback and continues without the plugin."""
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
    except Exception as error:  # RuntimeError, AssertionError for cuda without its plugin, or a driver's own
        failures.append(brief(error) if str(error) else "its plugin for jax is not installed")
        jax.config.update("jax_platforms", None if wanted else "cpu")
        jax.config.update("jax_platform_name", "")
    finally:
        logger.removeFilter(keep)
    available = ", ".join(sorted(jax.extend.backend.backends()))
    raise UserError(
        f"{wanted}, which is not available here ({failures[0]}); available platforms: {available};"
        " set it to one of them or unset it, or install what it needs."
        if wanted
        else f"JAX_PLATFORMS is not set, and an installed platform fails to start ({failures[0]}); available platforms:"
        f" {available}; repair or uninstall its plugin, or set JAX_PLATFORMS to one of them."
    )


def override_settings() -> None:
    """Overrides debugging settings of the environment that would stop the trainer.

    JAX_TRANSFER_GUARD finds unintended transfers: ours are intended. JAX_DISABLE_JIT runs functions line by line: ours
    are compiled ahead of time.
    """
    jax.config.update("jax_transfer_guard", "allow")
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        log.info("JAX_DISABLE_JIT is set and has no effect here: programs are compiled ahead of time")
        jax.config.update("jax_disable_jit", False)


def use_compilation_cache(setting: str) -> None:
    """Turns on JAX's persistent compilation cache if `Config.compilation_cache` says so; call it before compiling.

    "off" also turns off one that the environment asks for.
    """
    jax.config.update("jax_enable_compilation_cache", setting != "off")
    compilation_cache.reset_cache()  # jax decides at its first program whether there is one
    if setting == "off" or (setting == "auto" and jax.default_backend() == "cpu"):
        return
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = os.path.expanduser("~/.cache/gravity-optax")
        if folder.startswith("~"):
            log.warning("HOME is not set, so there is no compilation cache; to have one, set JAX_COMPILATION_CACHE_DIR")
            return
        jax.config.update("jax_compilation_cache_dir", folder)
    # By default only programs that compile for a second are kept; the initial state is drawn by many small ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def hints(precision: str, root: str = "/") -> Iterator[str]:
    """Lines to log at the start of a run on a CPU; `root` is the folder that holds proc and dev."""
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
            f" entry of a product is {got}, not 784); on Python {platform.python_version()} this version is right:"
            f" pip install 'jax=={RIGHT}' 'jaxlib=={RIGHT}'"
        )


def _numbers(version: str) -> tuple[int, ...]:
    """(0, 10, 2) of 0.10.2, and of 0.10.2.dev20260101."""
    parts = version.split(".")[:3]
    return tuple(int(part) if part.isdecimal() else 0 for part in parts)


def _is_known() -> bool:
    """Whether this jaxlib has the flag; XLA aborts on an unknown one."""
    spec = importlib.util.find_spec("jaxlib")
    assert spec is not None and spec.origin is not None
    for library in pathlib.Path(spec.origin).parent.glob("*.so"):
        if library.stat().st_size:
            with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(_FLAG.lstrip("-").encode()) >= 0:
                    return True
    return False


def _on_cpu() -> bool:
    """Whether jax will compute on the CPU: because it is told to, or for lack of an accelerator or its plugin."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms.split(",")[0].strip() == "cpu"
    plugin = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    return not (plugin and any(glob.glob(pattern) for pattern in _ACCELERATORS))
