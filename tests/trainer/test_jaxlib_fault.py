"""The way around jaxlib's fault: taken where it is needed, and nowhere else."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from trainer import jaxlib_fault

FLAG = "--xla_cpu_experimental_ynn_fusion_type="


@pytest.fixture
def machine(monkeypatch):
    """A CPU with jaxlib 0.12.0, whatever is really there; `machine(name, value)` changes a part of it."""
    version, points = importlib.metadata.version, importlib.metadata.entry_points
    state = {"version": "0.12.0", "known": True, "plugins": [], "devices": []}
    monkeypatch.setattr(importlib.metadata, "version", lambda n: state["version"] if n == "jaxlib" else version(n))
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: state["plugins"] if group == "jax_plugins" else points(group)
    )
    monkeypatch.setattr(jaxlib_fault, "_is_known", lambda: state["known"])
    monkeypatch.setattr(
        jaxlib_fault.glob, "glob", lambda pattern: [d for d in state["devices"] if d[:7] == pattern[:7]]
    )
    monkeypatch.setattr(jaxlib_fault.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return state.__setitem__


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0", "0.11.2", "0.12.0.1", "0.13.0.dev20260901", "1.0.0"])
def test_a_faulty_jaxlib_has_its_fusion_turned_off_and_a_line_says_so(machine, version):
    machine("version", version)
    line = jaxlib_fault.work_around()
    assert version in line and FLAG in line and "\n" not in line
    assert os.environ["XLA_FLAGS"] == FLAG


@pytest.mark.parametrize("version", ["0.7.2", "0.9.1", "0.10.0", "0.10.1"])
def test_an_older_jaxlib_is_left_alone(machine, version):
    machine("version", version)
    assert jaxlib_fault.work_around() is None and "XLA_FLAGS" not in os.environ


def test_a_jaxlib_that_does_not_know_the_flag_is_left_alone(machine):
    machine("known", False)
    assert jaxlib_fault.work_around() is None and "XLA_FLAGS" not in os.environ


def test_the_users_own_flags_stay(machine, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    jaxlib_fault.work_around()
    assert os.environ["XLA_FLAGS"].split() == [FLAG, "--xla_force_host_platform_device_count=4"]


def test_the_users_own_choice_of_fusions_stays(machine, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", FLAG + "1")
    assert jaxlib_fault.work_around() is None and os.environ["XLA_FLAGS"] == FLAG + "1"


@pytest.mark.parametrize(
    ("platforms", "devices", "plugins", "turned_off"),
    [
        ("cpu", ["/dev/nvidia0"], ["cuda12"], True),
        ("cuda", [], [], False),
        ("cuda,cpu", ["/dev/nvidia0"], ["cuda12"], False),
        ("tpu", ["/dev/accel0"], [], False),
        ("", ["/dev/nvidia0"], ["cuda12"], False),
        ("", ["/dev/nvidia0"], [], True),  # no plugin: jax runs on the CPU
        ("", [], ["cuda12"], True),  # no GPU: likewise
    ],
)
def test_runs_on_accelerators_are_left_alone(machine, monkeypatch, platforms, devices, plugins, turned_off):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    machine("devices", devices)
    machine("plugins", plugins)
    assert (jaxlib_fault.work_around() is not None) == turned_off


def test_the_installed_jaxlib_computes_right_behind_it():
    program = (
        "from trainer.jaxlib_fault import work_around; work_around()\n"
        "from trainer.devices import check_arithmetic; check_arithmetic()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
