"""Wrong invocations of main.py, in bulk: each is answered within seconds, in one line, and nothing is overwritten."""

import json
import logging
import os
import pathlib
import shutil
import signal
import time

import pytest

import main
import tfds_fixture

# Invalid flags -> what the answer must contain, beside the flag and the value. Exit code 2.
USAGE = [
    ("--epochs 0", "between 1 and 1000000"),
    ("--epochs -3", "between 1 and 1000000"),
    ("--epochs 1e9", "a whole number"),
    ("--epochs 1.5", "a whole number"),
    ("--epochs ten", "a whole number"),
    ("--epochs 99999999999999999999", "between 1 and 1000000"),
    ("--batch-size 0", "between 1 and 65536"),
    ("--batch-size -1", "between 1 and 65536"),
    ("--batch-size 1000000000", "between 1 and 65536"),
    ("--batch-size 32.0", "a whole number"),
    ("--limit 0", "at least 1"),
    ("--limit -5", "at least 1"),
    ("--limit all", "a whole number"),
    ("--seed -1", "between 0 and 2**32 - 1"),
    ("--seed 4294967296", "between 0 and 2**32 - 1"),
    ("--seed 0.5", "a whole number"),
    ("--width 0", "above 0 and at most 16"),
    ("--width -1", "above 0 and at most 16"),
    ("--width 1e9", "above 0 and at most 16"),
    ("--width inf", "above 0 and at most 16"),
    ("--width nan", "above 0 and at most 16"),
    ("--width wide", "a number"),
    ("--learning-rate 0", "a finite number above 0"),
    ("--learning-rate -0.1", "a finite number above 0"),
    ("--learning-rate inf", "a finite number above 0"),
    ("--learning-rate nan", "a finite number above 0"),
    ("--learning-rate 0,1", "a number"),
    ("--alpha -0.01", "a finite number of at least 0"),
    ("--alpha inf", "a finite number of at least 0"),
    ("--alpha small", "a number"),
    ("--beta 1.5", "between 0 and 1"),
    ("--beta -0.1", "between 0 and 1"),
    ("--beta nan", "between 0 and 1"),
    ("--first-step -1", "between 0 and 1000000000"),
    ("--first-step 99999999999", "between 0 and 1000000000"),
    ("--first-step one", "a whole number"),
    ("--alpha 0.01 --optimizer adam", "--optimizer is adam; only gravity has it"),
    ("--beta 0.9 --optimizer rmsprop", "--optimizer is rmsprop; only gravity has it"),
    ("--first-step 0 --optimizer adam", "--optimizer is adam; only gravity has it"),
    ("--optimizer lion", "gravity, sgd, momentum"),
    ("--model vgg13", "vgg11, vgg16, vgg19"),
    ("--model VGG16", "vgg11, vgg16, vgg19"),
    ("--dataset imagenet", "cifar100_fine"),
    ("--dataset cifar100", "cifar100_coarse, cifar100_fine"),
    ("--precision float16", "float32, default, bfloat16"),
    ("--checkpoint-every 0", "between 1 and 1000000"),
    ("--checkpoint-every often", "a whole number"),
    ("--keep 0", "between 1 and 1000000"),
    ("--keep -2", "between 1 and 1000000"),
    ("--num-processes 0", "between 1 and 1000000"),
    ("--num-processes 2", "--coordinator and --process-id must be given too"),
    ("--process-id 0", "--coordinator and --num-processes must be given too"),
    ("--coordinator 10.0.0.2:8476", "--num-processes and --process-id must be given too"),
    ("--process-id -1 --coordinator a:1 --num-processes 2", "at least 0"),
    ("--process-id 2 --coordinator a:1 --num-processes 2", "between 0 and 1"),
    ("--coordinator nowhere --num-processes 2 --process-id 0", "HOST:PORT"),
    ("--coordinator a:99999 --num-processes 2 --process-id 0", "HOST:PORT"),
    ("--coordinator :80 --num-processes 2 --process-id 0", "HOST:PORT"),
]
USAGE += [
    ("--learning-rate 1e39", "float32"),
    ("--learning-rate 1e-46", "float32"),
    ("--learning-rate 1e999", "a finite number above 0"),
    ("--alpha 1e39", "float32"),
    ("--alpha 1e-46", "float32"),
    ("--alpha nan", "a finite number of at least 0"),
    ("--alpha 1e20 --learning-rate 1e-20", "beyond float32"),
    ("--alpha 1e-30 --learning-rate 1e30", "beyond float32"),
    ("--alpha 1 --learning-rate 1.2e-38", "beyond float32"),
    ("--workdir ~nobody-of-this-name/run", "no such user"),
    ("--data-dir ~nobody-of-this-name/data", "no such user"),
    ("--optimizer Adam", "adamax"),
    ("--velocity zeros", "he_normal"),
    ("--max-step-grad mean", "inverse_std"),
    ("--compilation-cache never", "auto, on, off"),
    ("--keep some", "a whole number"),
    ("--process-id first", "a whole number"),
    ("--num-processes two", "a whole number"),
]
# Where the value is the flag itself, or there is none.
USAGE_WITHOUT_VALUE = [
    ("--learning-rat 0.1", "did you mean --learning-rate?"),
    ("--batchsize 32", "did you mean --batch-size?"),
    ("--nonsense", "--help"),
    ("digits", "--help"),
    ("--resume yes", "takes no value"),
    ("--epochs", "needs a value: a whole number"),
    ("--workdir --epochs 3", "--workdir needs a value"),
    ("--resume", "--resume needs --workdir"),
]


@pytest.fixture
def command(monkeypatch, capfd):
    """`command(flags)`: main.main() in this process; (exit code, the one line that it says)."""
    log = logging.getLogger("train")
    before = list(log.handlers), log.level, log.propagate
    sigterm = signal.getsignal(signal.SIGTERM)

    def command(*flags):
        monkeypatch.setattr("sys.argv", ["main.py", *map(str, flags)])
        start = time.monotonic()
        code = main.main()
        assert time.monotonic() - start < 10
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        *notes, line = (out + err).splitlines()
        assert line.startswith("error: ") and all(note.startswith("the checkpoint ") for note in notes)
        return code, line

    yield command
    signal.signal(signal.SIGTERM, sigterm)
    log.handlers[:], log.level, log.propagate = before


def snapshot(folder):
    return {path: path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(("flags", "mend"), USAGE)
def test_an_invalid_flag(command, monkeypatch, tmp_path, flags, mend):
    monkeypatch.chdir(tmp_path)
    code, line = command(*flags.split())
    assert code == 2 and mend in line
    name, value = flags.split()[:2]
    assert name in line
    assert value in line or float(value) == float(line.split(" is ")[1].split(";")[0].split(",")[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("flags", "mend"), USAGE_WITHOUT_VALUE)
def test_a_command_line_that_cannot_be_read(command, monkeypatch, tmp_path, flags, mend):
    monkeypatch.chdir(tmp_path)
    code, line = command(*flags.split())
    assert code == 2 and mend in line and flags.split()[0] in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("name", ["--workdir", "--data-dir", "--coordinator"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_path_that_is_empty(command, monkeypatch, tmp_path, name, value, joined):
    """As an unset variable leaves it; --resume with it would begin anew in another folder at each restart."""
    monkeypatch.chdir(tmp_path)
    together = ("--num-processes", 2, "--process-id", 0) if name == "--coordinator" else ("--resume",)
    code, line = command(*([f"{name}={value}"] if joined else [name, value]), *together)
    assert code == 2 and f"{name} is " in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["--workdir", "--data-dir"])
def test_a_path_that_is_not_utf8(command, name):
    code, line = command(name, os.fsdecode(b"/tmp/\xff"))
    assert code == 2 and f"{name} is '/tmp/\\udcff', a name that is not UTF-8" in line


@pytest.mark.parametrize("name", ["--workdir", "--data-dir"])
def test_a_scheme_that_cannot_be_read_is_refused_before_anything_is_made(command, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", "nowhere://x")
    code, line = command(name, "nowhere://bucket/x", "--dataset", "mnist" if name == "--data-dir" else "digits")
    assert code == 1 and "nowhere://bucket/x" in line and "choose another" in line
    assert list(tmp_path.iterdir()) == []


def a_file(tmp_path):
    (tmp_path / "there").write_text("mine")
    return tmp_path / "there"


def below_a_file(tmp_path):
    return a_file(tmp_path) / "below"


def a_link_to_nowhere(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "far")
    return tmp_path / "link" / "run"


def with_results(tmp_path):
    (tmp_path / "history.csv").write_text("epoch\n1\n")
    return tmp_path


def with_a_config(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def read_only(tmp_path):
    return pathlib.Path("/proc/nowhere/run")


def too_long(tmp_path):
    return tmp_path / ("x" * 300)


@pytest.mark.parametrize("where", [a_file, below_a_file, with_results, with_a_config, read_only, too_long])
def test_a_workdir_that_cannot_be_used(command, tmp_path, where):
    workdir = where(tmp_path)
    before = snapshot(tmp_path)
    code, line = command("--workdir", workdir)
    assert code == 1 and f"--workdir is {workdir}, " in line and "choose another folder" in line
    assert snapshot(tmp_path) == before


def no_config(workdir):
    empty_checkpoint(workdir)
    (workdir / "config.json").unlink()


def broken_config(workdir):
    (workdir / "config.json").write_text("{")


def no_config_object(workdir):
    (workdir / "config.json").write_text("[1]")


def other_settings(workdir):
    (workdir / "config.json").write_text(json.dumps({"seed": 7, "width": 0.5}))


def empty_checkpoint(workdir):
    (workdir / "checkpoints" / "8").mkdir()


@pytest.mark.parametrize(
    ("damage", "mend"),
    [
        (no_config, "put it back"),
        (broken_config, "config.json cannot be read"),
        (no_config_object, "config.json cannot be read"),
        (other_settings, "--width was 0.5 and is 0.25; --seed was 7 and is 0. Give the values that it had"),
        (empty_checkpoint, "can be read; nothing was deleted"),
    ],
)
def test_a_run_that_cannot_be_resumed(command, tmp_path, damage, mend):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    damage(tmp_path)
    before = snapshot(tmp_path)
    code, line = command("--workdir", tmp_path, "--resume", "--width", 0.25)
    assert code == 1 and f"--workdir is {tmp_path}, " in line and mend in line
    assert snapshot(tmp_path) == before


def edited(**changes):
    def edit(version):
        path = version / "dataset_info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def corrupt_record(version):
    (path,) = version.glob("*train*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def no_records(version):
    (path,) = version.glob("*test*")
    path.unlink()


def another_version(version):
    version.rename(version.parent / "3.0.0")


def not_prepared(version):
    shutil.rmtree(version)


def nothing_in_it(version):
    for path in version.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edited(version="3.0.0"), "of another version"),
        (another_version, "only 3.0.0"),
        (not_prepared, "is not prepared in"),
        (nothing_in_it, "no dataset_info.json"),
        (corrupt_record, "missing or broken"),
        (no_records, "missing or broken"),
        (edited(splits=[{"name": "train", "shardLengths": ["0"]}]), "split is empty"),
        (edited(fileFormat="tfrecord"), "array_record is needed"),
    ],
)
def test_a_dataset_that_cannot_be_used(command, tiny_tfds, tmp_path, monkeypatch, damage, said):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    version = pathlib.Path(shutil.copytree(f"{tiny_tfds}/mnist", tmp_path / "data" / "mnist")) / "3.0.1"
    damage(version)
    before = snapshot(tmp_path)
    code, line = command("--dataset", "mnist", "--data-dir", tmp_path / "data", "--workdir", tmp_path / "run")
    assert code == 1 and said in line and f"{tmp_path}/data" in line and "data-dir" in line
    assert snapshot(tmp_path) == before


def test_a_data_dir_that_is_a_file(command, tmp_path):
    (tmp_path / "file").write_text("mine")
    flags = ("--dataset", "cifar10", "--data-dir", tmp_path / "file", "--workdir", tmp_path / "run")
    code, line = command(*flags)
    assert code == 1 and f"--data-dir {tmp_path / 'file'} is no readable folder" in line and "choose another" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_from_a_shell(tmp_path):
    """The same in a process of its own: one wrong flag, one wrong folder."""
    a_file(tmp_path)
    for flags, code in ((["--epochs", "0"], 2), (["--workdir", str(tmp_path / "there")], 1)):
        start = time.monotonic()
        done = tfds_fixture.python(main.__file__, *flags, JAX_NUMPY_DTYPE_PROMOTION="standard")
        assert time.monotonic() - start < 10
        assert done.returncode == code
        (line,) = (done.stdout + done.stderr).splitlines()
        assert line.startswith("error: ") and flags[0] in line and flags[1] in line
