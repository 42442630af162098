"""The workaround for jaxlib's fault, taken only where it is needed; the compilation cache; hints."""

import importlib.metadata
import os

import jax
import jax.numpy as jnp
import pytest

from trainer import jax_setup
from trainer.config import UserError

FLAG = "--xla_cpu_experimental_ynn_fusion_type="


@pytest.fixture
def machine(monkeypatch):
    """A CPU with jaxlib 0.12.0, whatever is really installed; `machine(name, value)` changes a part of it."""
    version, points = importlib.metadata.version, importlib.metadata.entry_points
    state = {"version": "0.12.0", "known": True, "plugins": [], "devices": []}
    monkeypatch.setattr(importlib.metadata, "version", lambda n: state["version"] if n == "jaxlib" else version(n))
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: state["plugins"] if group == "jax_plugins" else points(group)
    )
    monkeypatch.setattr(jax_setup, "_is_known", lambda: state["known"])
    monkeypatch.setattr(jax_setup.glob, "glob", lambda pattern: [d for d in state["devices"] if d[:7] == pattern[:7]])
    monkeypatch.setattr(jax_setup.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return state.__setitem__


@pytest.mark.parametrize("version", ["0.10.2", "0.13.0.dev20260901"])
def test_a_faulty_jaxlib_has_its_fusion_turned_off_and_a_line_says_so(machine, monkeypatch, version):
    machine("version", version)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    line = jax_setup.work_around()
    assert version in line and FLAG in line and "\n" not in line
    assert os.environ["XLA_FLAGS"].split() == [FLAG, "--xla_force_host_platform_device_count=4"]


@pytest.mark.parametrize(
    ("version", "known", "flags"),
    [("0.10.1", True, ""), ("0.12.0", False, ""), ("0.12.0", True, FLAG + "1")],
    ids=["old", "without the flag", "the user's own choice"],
)
def test_another_jaxlib_or_the_users_own_choice_is_not_changed(machine, monkeypatch, version, known, flags):
    machine("version", version)
    machine("known", known)
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert jax_setup.work_around() is None and os.environ["XLA_FLAGS"] == flags


@pytest.mark.parametrize(
    ("platforms", "devices", "plugins", "turned_off"),
    [
        ("cpu", ["/dev/nvidia0"], ["cuda12"], True),
        ("cuda", [], [], False),
        ("cuda,cpu", ["/dev/nvidia0"], ["cuda12"], False),
        ("tpu", ["/dev/accel0"], [], False),
        ("", ["/dev/nvidia0"], ["cuda12"], False),
        ("", ["/dev/nvidia0"], [], True),  # no plugin: jax runs on the CPU
        ("", [], ["cuda12"], True),  # no GPU either
    ],
)
def test_runs_on_accelerators_are_not_changed(machine, monkeypatch, platforms, devices, plugins, turned_off):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    machine("devices", devices)
    machine("plugins", plugins)
    assert (jax_setup.work_around() is not None) == turned_off


def test_a_jaxlib_that_computes_wrong_is_refused_by_version(monkeypatch):
    monkeypatch.setattr(jax_setup.jax, "jit", lambda f: lambda a: -jnp.inf)
    with pytest.raises(UserError, match=rf"jax {jax.__version__} with jaxlib .* computes wrong results.*pip install"):
        jax_setup.check_arithmetic()


@pytest.mark.parametrize(
    ("setting", "platform", "used"),
    [("auto", "cpu", False), ("auto", "tpu", True), ("auto", "gpu", True), ("on", "cpu", True), ("off", "tpu", False)],
)
def test_compiled_programs_are_kept_on_accelerators_or_when_asked_for(monkeypatch, setting, platform, used):
    settings = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    jax_setup.use_compilation_cache(setting)
    assert ("jax_compilation_cache_dir" in settings) == used


@pytest.mark.parametrize(
    "flags, slow", [("fma avx2 avx512f", True), ("avx2 avx512_bf16", False), ("asimd bf16", False)]
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cpu_without_bfloat16_instructions_says_so(flags, slow, precision, tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    lines = list(jax_setup.hints(precision, tmp_path))
    assert len(lines) == (slow and precision == "bfloat16")
    assert all(line.startswith("--precision bfloat16 is far slower than float32") for line in lines)


@pytest.mark.parametrize("file", ["proc/driver/nvidia/version", "dev/nvidia0"])
def test_a_gpu_that_jax_does_not_see_is_named_unless_the_platform_was_chosen(file, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert list(jax_setup.hints("float32", tmp_path)) == []
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    (line,) = jax_setup.hints("float32", tmp_path)
    assert "NVIDIA GPU" in line and "cuda12" in line
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert list(jax_setup.hints("float32", tmp_path)) == []


def test_without_a_home_there_is_no_cache_and_no_folder_named_tilde(monkeypatch, caplog):
    settings = {}
    monkeypatch.setattr("jax.config.update", settings.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    jax_setup.use_compilation_cache("on")
    assert not settings and "HOME is not set" in caplog.text and "JAX_COMPILATION_CACHE_DIR" in caplog.text
