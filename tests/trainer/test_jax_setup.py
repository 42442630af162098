"""The workaround for jaxlib's fault, taken only where it is needed; the compilation cache; hints."""

import importlib.metadata
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import jax_setup
from trainer.config import UserError
from trainer.devices import Program, Replicas

FLAG = "--xla_cpu_experimental_ynn_fusion_type="
GPU = {"devices": ["/dev/nvidia0"], "plugins": ["cuda12"]}


@pytest.mark.parametrize(
    ("machine", "turned_off"),
    [
        ({"version": "0.10.2"}, True),
        ({"version": "0.13.0.dev20260901"}, True),
        ({"version": "0.10.1"}, False),
        ({"known": False}, False),  # an older jaxlib without the flag
        ({"flags": FLAG + "1"}, False),  # the user's own choice
        (GPU, False),
        (GPU | {"platforms": "cpu"}, True),
        (GPU | {"plugins": []}, True),  # jax runs on the CPU
        (GPU | {"devices": []}, True),
        ({"platforms": "cuda,cpu"}, False),
        ({"devices": ["/dev/accel0"], "plugins": ["tpu"]}, False),
    ],
)
def test_the_fusion_is_turned_off_where_jaxlib_is_faulty_and_computes_on_a_cpu(monkeypatch, machine, turned_off):
    usual = {"version": "0.12.0", "known": True, "flags": "--xla_x=4", "platforms": "", "devices": [], "plugins": []}
    machine, metadata, version = usual | machine, importlib.metadata, importlib.metadata.version
    found = lambda pattern: [device for device in machine["devices"] if device[:7] == pattern[:7]]
    monkeypatch.setattr(metadata, "version", lambda name: machine["version"] if name == "jaxlib" else version(name))
    monkeypatch.setattr(metadata, "entry_points", lambda group: machine["plugins"])
    monkeypatch.setattr(jax_setup, "_is_known", lambda: machine["known"])
    monkeypatch.setattr(jax_setup.glob, "glob", found)
    monkeypatch.setattr(jax_setup.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("JAX_PLATFORMS", machine["platforms"])
    monkeypatch.setenv("XLA_FLAGS", machine["flags"])
    line = jax_setup.work_around()
    assert os.environ["XLA_FLAGS"].split() == [FLAG] * turned_off + [machine["flags"]]
    assert (line is not None) == turned_off
    assert line is None or (machine["version"] in line and FLAG in line and "\n" not in line)


def test_a_jaxlib_that_computes_wrong_is_refused_by_version(monkeypatch):
    monkeypatch.setattr(jax_setup.jax, "jit", lambda f: lambda a: -jnp.inf)
    with pytest.raises(UserError, match=rf"jax {jax.__version__} with jaxlib .* computes wrong results.*pip install"):
        jax_setup.check_arithmetic()


@pytest.mark.parametrize(
    ("setting", "platform", "home", "used"),
    [
        ("auto", "cpu", "/home", False),
        ("auto", "gpu", "/home", True),
        ("on", "cpu", "/home", True),
        ("off", "tpu", "/home", False),
        ("on", "cpu", "~", False),  # no folder named tilde
    ],
)
def test_programs_are_kept_on_accelerators_or_when_asked_for(monkeypatch, caplog, setting, platform, home, used):
    settings = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    monkeypatch.setattr(jax_setup.compilation_cache, "reset_cache", lambda: settings.update(reset=True))
    monkeypatch.setattr("os.path.expanduser", lambda path: path.replace("~", home))
    jax_setup.use_compilation_cache(setting)
    assert settings["reset"] and settings["jax_enable_compilation_cache"] == (setting != "off")
    assert settings.get("jax_compilation_cache_dir") == ("/home/.cache/gravity-optax" if used else None)
    assert ("HOME is not set" in caplog.text and "JAX_COMPILATION_CACHE_DIR" in caplog.text) == (home == "~")


SLOW, GPU_HERE = "--precision bfloat16 is far slower than float32 on this CPU", 'pip install -e ".[cuda12]"'


@pytest.mark.parametrize(
    ("precision", "file", "text", "platforms", "said"),
    [
        ("bfloat16", "proc/cpuinfo", "flags : fma avx2 avx512f", "cpu", SLOW),
        ("bfloat16", "proc/cpuinfo", "flags : avx2 avx512_bf16", "cpu", ""),
        ("bfloat16", "proc/cpuinfo", "flags : asimd bf16", "cpu", ""),
        ("float32", "proc/cpuinfo", "flags : avx2", "cpu", ""),
        ("float32", "proc/driver/nvidia/version", "", None, GPU_HERE),
        ("float32", "dev/nvidia0", "", None, GPU_HERE),
        ("float32", "dev/nvidia0", "", "cpu", ""),
    ],
)
def test_slow_bfloat16_and_an_unseen_gpu_are_named(precision, file, text, platforms, said, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    if platforms is None:
        monkeypatch.delenv("JAX_PLATFORMS")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    lines = list(jax_setup.hints(precision, tmp_path))
    assert len(lines) == bool(said) and said in "".join(lines)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("reduce", ["max", "min", "sum"])
def test_the_product_of_a_program_with_a_constant_is_right_when_it_is_reduced(reduce, dtype):
    """With the option of `devices` for CPUs. Small integers, whose sums have no rounding error."""
    a = np.random.default_rng(0).integers(-2, 3, (100, 784)).astype(np.float32)
    function = lambda a, pictures, batches: getattr((a @ jnp.ones((784, 64), dtype)).astype(jnp.float32), reduce)()
    arguments = jnp.asarray(a, dtype), np.zeros(1, np.float32), np.zeros((1, 1, 1), np.int32)
    program = Program(Replicas(jax.devices()[:1]), function, *arguments).compile()
    assert program(*arguments) == getattr(a @ np.ones((784, 64), np.float32), reduce)()
