"""A run's configuration: defaults, the paper's Table 5; and wrong invocations of main.py, each answered in one line."""

import os
import re

import pytest

import main
from processes import snapshot
from trainer.config import Config, resolve

GRAVITY_ONLY = ("--alpha 0", "--beta 0", "--first-step 0", "--max-step-grad none", "--velocity he_normal")
TOGETHER = "--coordinator a:1 --num-processes 2"
# What the answer must contain in addition to the flag and its value -> invalid flags. Exit code 2.
USAGE = {
    "between 1 and 1000000": ("--epochs 0", "--checkpoint-every 0", "--keep 0", "--accumulate 0"),
    " number": ("--epochs 1.5", "--epochs", "--width wide"),
    "between 1 and 65536": ("--batch-size 65537",),
    "at least 1": ("--limit 0",),
    "between 0 and 2**32 - 1": ("--seed 4294967296",),
    "above 0 and at most 16": ("--width 0", "--width nan"),
    "above 0": ("--learning-rate 0", "--learning-rate inf", "--clip-norm 0", "--clip-value nan"),
    "float32": ("--learning-rate 1e39", "--alpha 1e20 --learning-rate 1e-20", "--alpha 1 --learning-rate 1.2e-38"),
    "at least 0": ("--alpha -0.01", "--init-noise -0.1", "--weight-decay -0.1", "--warmup-epochs -1"),
    "between 0 and 1": ("--beta 1.5", "--beta nan", f"--process-id 2 {TOGETHER}"),
    "between 0 and 1000000000": ("--first-step -1",),
    "gravity, sgd, momentum": ("--optimizer Adam",),
    "; it must be one of": ("--model vgg13", "--precision float16", "--velocity zeros", "--max-step-grad mean"),
    "digits, mnist": ("--dataset imagenet", "--dataset tfds:", "--dataset tfds:a:b:c", "--dataset tfds:../x"),
    "leave one of them out": ("--clip-norm 1 --clip-value 1",),
    "choose cosine, linear or step": ("--final-learning-rate 0.01",),
    "at most --learning-rate, 0.1": ("--final-learning-rate 0.2 --schedule cosine",),
    "with --schedule step it must be above 0": ("--final-learning-rate 0 --schedule step",),
    "below --epochs, 25": ("--warmup-epochs 25",),
    "below half of --epochs, 1": ("--warmup-epochs 1 --epochs 2 --schedule step",),
    "--max-step-grad rms": ("--max-step-grad-factor 2",),
    "leave --alpha out": ("--alpha 0.01 --velocity he_normal",),
    "only gravity uses it: leave": tuple(f"{flag} --optimizer adam" for flag in GRAVITY_ONLY),
    "--coordinator and --process-id must be given too": ("--num-processes 2",),
    "--process-id is -1; it must be at least 0": (f"--process-id -1 {TOGETHER}",),
    "HOST:PORT": tuple(f"--coordinator {it} --num-processes 2 --process-id 0" for it in ("nowhere", "a:99999")),
    "no such user": ("--workdir ~nobody-of-this-name/run", "--data-dir ~nobody-of-this-name/data"),
    # The value is the flag itself, or there is none.
    "--learning-rate?": ("--learning-rat 0.1",),
    "--help": ("--nonsense", "digits"),
    "takes no value": ("--resume yes",),
    "--workdir needs a value": ("--workdir --epochs 3",),
    "--workdir": ("--resume",),
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"model": "vgg11", "learning_rate": 0.1, "alpha": 0.01, "beta": 0.9, "first_step": 1}),
        ({"dataset": "cifar10"}, {"model": "vgg16", "width": 1.0, "batch_size": 128, "epochs": 100}),
        ({"model": "vgg19", "width": 0.5, "epochs": 1, "batch_size": 7}, {"max_step_grad_factor": None}),
        ({"learning_rate": 0.3, "alpha": 0.0, "beta": 0.0, "first_step": 0}, {"optimizer": "gravity"}),
    ],
)
def test_a_given_value_is_kept_and_the_defaults_are_the_papers_protocol_and_our_advice(given, expected):
    assert vars(resolve(Config(**given))).items() >= (given | expected).items()


def test_learning_rates_are_table_5():
    table = {
        ("mnist", "vgg16"): (2.5e-4, 1e-4),
        ("mnist", "vgg19"): (2.5e-4, 2.5e-5),
        ("fashion_mnist", "vgg19"): (1e-5, 5e-5),
        ("cifar10", "vgg16"): (1e-4, 5e-5),
        ("cifar100_coarse", "vgg16"): (1e-4, 2.5e-4),
        ("cifar100_fine", "vgg19"): (5e-5, 1e-4),
    }
    for cell, expected in table.items():
        rates = [resolve(Config(*cell, optimizer=name)).learning_rate for name in ("gravity", "adam", "rmsprop")]
        assert rates == [0.1, *expected], cell


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/user")
    config = resolve(Config(workdir="~/run", data_dir="~/data"))
    assert (config.workdir, config.data_dir) == ("/home/user/run", "/home/user/data")


@pytest.fixture
def command(call, tmp_path):
    """`command(flags)`: main.py, which may change no file; (exit code, the line that it prints)."""

    def command(*flags):
        before = snapshot(tmp_path), sorted(tmp_path.iterdir())
        code, *notes, line = call(main, *map(str, flags))
        assert all(note.startswith("the checkpoint ") for note in notes)
        assert (snapshot(tmp_path), sorted(tmp_path.iterdir())) == before
        return code, line

    return command


@pytest.mark.parametrize(("flags", "fix"), [(flags, fix) for fix, every in USAGE.items() for flags in every])
def test_an_invalid_flag(command, flags, fix):
    code, line = command(*flags.split())
    assert code == 2 and fix in line
    name, *value = flags.split()[:2]
    assert name in line
    if given := re.search(rf"{name} is (.+?)[;,]", line):
        assert given[1] == value[0] or float(given[1]) == float(value[0])


@pytest.mark.parametrize("name", ["--workdir", "--data-dir", "--coordinator"])
@pytest.mark.parametrize("value", ["", " ", os.fsdecode(b"/tmp/\xff")], ids=["empty", "blank", "not UTF-8"])
def test_a_path_that_is_empty_or_not_utf8(command, name, value):
    """As with an unset variable; --resume would then start again in a new folder each time."""
    together = ("--num-processes", 2, "--process-id", 0) if name == "--coordinator" else ("--resume",)
    code, line = command(f"{name}={value}", *together)
    assert code == 2 and f"{name} is " in line


@pytest.mark.parametrize(("name", "dataset"), [("--workdir", "digits"), ("--data-dir", "mnist")])
def test_a_scheme_that_cannot_be_read_is_refused_before_anything_is_made(command, monkeypatch, name, dataset):
    monkeypatch.setenv("TFDS_DATA_DIR", "nowhere://x")
    code, line = command(name, "nowhere://bucket/x", "--dataset", dataset)
    assert code == 1 and "nowhere://bucket/x" in line and "choose another" in line


@pytest.mark.parametrize(
    ("workdir", "file"),
    [("run", f"run{file}") for file in ("", "/history.csv", "/config.json")]
    + [(workdir, "file") for workdir in ("/dev/null/below", "/proc/nowhere/run", "x" * 300)],
)
def test_a_workdir_that_holds_something_or_cannot_be_made(command, tmp_path, workdir, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    code, line = command("--workdir", tmp_path / workdir)
    assert code == 1 and f"--workdir is {tmp_path / workdir}, " in line and "choose another folder" in line


@pytest.mark.parametrize(
    ("config", "fix"),
    [
        (None, "put it back"),
        *((text, "config.json cannot be read") for text in ("{", "[1]")),
        ("{}", "can be read; nothing was deleted"),
    ],
)
def test_a_run_that_cannot_be_resumed(command, tmp_path, config, fix):
    """Its only checkpoint is an empty folder."""
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    code, line = command("--workdir", tmp_path, "--resume", "--width", 0.25)
    assert code == 1 and f"--workdir is {tmp_path}, " in line and fix in line
