"""The settings of every test: 8 virtual CPU devices, strict promotion of dtypes, no implicit broadcasting of ranks."""

import contextlib
import gc
import importlib.util
import os
import pathlib
import shutil
import signal
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = "--xla_cpu_parallel_codegen_split_count=1 " + os.environ["XLA_FLAGS"]  # a worker has one core
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

gc.set_threshold(100_000, 20, 20)  # tracing makes many objects; the default takes a twentieth of the time
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_TESTS = pathlib.Path(__file__).parent


def pytest_configure(config):
    """Sets up what the trainer's tests need, unless only the library is tested, which must work without it."""
    # The background of a shell ignores SIGINT and nohup SIGHUP, and so would the processes that tests send them to.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    paths = [pathlib.Path(argument.split("::")[0]).resolve() for argument in config.args]
    library = (_TESTS / "library", _TESTS.parent / "gravity_optax")
    if not all(any(path.is_relative_to(folder) for folder in library) for path in paths):
        from trainer.jax_setup import work_around

        work_around()
        if importlib.util.find_spec("filelock"):  # with which JAX locks its cache
            share_programs(config)


def share_programs(config):
    """Tests and the processes that they start read what one of them has compiled: most of their time is compilation."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")  # the user's, or in a worker that of the first process
    if not folder:
        folder = tempfile.mkdtemp(prefix="gravity-optax-programs-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_compilation_cache_max_size": 2**32,  # bytes; only with a limit are the files locked
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # XLA:CPU warns of processor features with each program that it reads


@pytest.fixture(scope="module", autouse=True)
def forget_programs(request):
    """After each file. Programs take memory maps, of which Linux gives a process 65,530; XLA aborts at the last."""
    yield
    if request.path.parent.name != "library":  # whose programs are small, and shared by its files
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def promotion(request):
    """The notebooks have jax's own promotion of dtypes, on which optax relies."""
    own = request.path.parent.name == "notebooks"
    with jax.numpy_dtype_promotion("standard") if own else contextlib.nullcontext():
        yield


@pytest.fixture
def run(monkeypatch, capfd):
    """`run(command, *flags)`, of a module, in the test's process: its exit code, output and errors."""

    def main(command, *flags):
        monkeypatch.setattr("sys.argv", [f"{command.__name__}.py", *map(str, flags)])
        return command.main(), *capfd.readouterr()

    return main


@pytest.fixture(scope="session")
def tiny_tfds(tmp_path_factory):
    """A data_dir (str) with the sets of tfds_fixture.py and tfds_builders.py, whose code this process does not know."""
    import tfds_fixture  # the library's tests need none of what it imports

    folder = str(tmp_path_factory.mktemp("tfds"))
    temporary = str(tmp_path_factory.mktemp("temporary"))  # TFDS leaves folders there
    tfds_fixture.python(tfds_fixture.__file__, folder, TMPDIR=temporary)
    return folder
