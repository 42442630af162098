"""How batches are split, where arrays lie, and the check of jaxlib."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import devices
from trainer.config import UserError


def test_a_batch_that_does_not_divide_is_filled_up_and_every_picture_is_kept_once():
    batches = np.arange(30, dtype=np.int32).reshape(3, 10)
    parts = devices.Replicas(jax.devices()).split(batches)
    assert parts.shape == (8, 3, 2)
    for step in range(3):
        pictures = parts[:, step].ravel()
        np.testing.assert_array_equal(np.sort(pictures[pictures >= 0]), batches[step])


def test_what_is_replicated_is_not_copied_again_when_a_program_is_called():
    replicas = devices.Replicas(jax.devices())
    tree = replicas.replicate({"w": jnp.ones((1000, 1000))})
    batches = replicas.split(np.ones((1, 8), np.int32))
    function = lambda tree, pictures, batches: jax.tree.map(
        lambda x: x + devices.sum_over_devices(batches.sum().astype(x.dtype)), tree
    )
    program = devices.Program(replicas, function, tree, tree["w"][:1], batches, donate_first=True).compile()
    before = [s.data.unsafe_buffer_pointer() for s in tree["w"].addressable_shards]
    out = program(tree, replicas.replicate(tree["w"][:1]), batches)
    assert tree["w"].is_deleted(), "the state was copied, not donated"
    assert [s.data.unsafe_buffer_pointer() for s in out["w"].addressable_shards] == before
    np.testing.assert_array_equal(out["w"], np.full((1000, 1000), 9.0))
    assert out["w"].sharding.is_fully_replicated


class FakeLowered:
    """What a compiler makes that knows no options, and fails where it is `broken`."""

    broken = False

    def compile(self, compiler_options=None):
        if compiler_options or self.broken:
            raise jax.errors.JaxRuntimeError(
                "the option is unknown" if compiler_options else "the program is too large"
            )
        return "compiled"


def test_a_tpu_compiler_that_refuses_the_option_compiles_without_it():
    assert devices._compile(FakeLowered(), "tpu") == devices._compile(FakeLowered(), "cpu") == "compiled"


def test_a_program_that_a_tpu_compiler_cannot_compile_fails_with_its_own_message(monkeypatch):
    monkeypatch.setattr(FakeLowered, "broken", True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="too large"):
        devices._compile(FakeLowered(), "tpu")


def test_the_installed_jaxlib_computes_right():
    devices.check_arithmetic()


def test_a_jaxlib_that_computes_wrong_is_refused_by_version(monkeypatch):
    monkeypatch.setattr(devices.jax, "jit", lambda f: lambda a: -jnp.inf)
    with pytest.raises(UserError, match=rf"jax {jax.__version__} with jaxlib .* computes wrong results.*pip install"):
        devices.check_arithmetic()


@pytest.mark.parametrize(
    ("setting", "platform", "used"),
    [("auto", "cpu", False), ("auto", "tpu", True), ("auto", "gpu", True), ("on", "cpu", True), ("off", "tpu", False)],
)
def test_compiled_programs_are_kept_on_accelerators_or_when_asked_for(monkeypatch, setting, platform, used):
    settings = {}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax.config, "update", settings.__setitem__)
    devices.use_compilation_cache(setting)
    assert ("jax_compilation_cache_dir" in settings) == used


@pytest.mark.parametrize(
    "flags, slow", [("fma avx2 avx512f", True), ("avx2 avx512_bf16", False), ("asimd bf16", False)]
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cpu_without_bfloat16_instructions_says_so(flags, slow, precision, tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    lines = list(devices.hints(precision, tmp_path))
    assert len(lines) == (slow and precision == "bfloat16")
    assert all(line.startswith("--precision bfloat16 is far slower than float32") for line in lines)


@pytest.mark.parametrize("file", ["proc/driver/nvidia/version", "dev/nvidia0"])
def test_a_gpu_that_jax_does_not_see_is_named_unless_the_platform_was_chosen(file, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert list(devices.hints("float32", tmp_path)) == []
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    (line,) = devices.hints("float32", tmp_path)
    assert "NVIDIA GPU" in line and "cuda12" in line
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert list(devices.hints("float32", tmp_path)) == []


def test_without_a_home_there_is_no_cache_and_no_folder_named_tilde(monkeypatch, caplog):
    settings = {}
    monkeypatch.setattr("jax.config.update", settings.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    devices.use_compilation_cache("on")
    assert not settings and "JAX_COMPILATION_CACHE_DIR" in caplog.text
