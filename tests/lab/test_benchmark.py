"""The evaluation as one command: its plan, what it skips, and what it does when a cell fails or it is stopped."""

import dataclasses
import functools
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import benchmark
import fake_results
import processes
from lab import cells, grid, published
from lab.store import Store
from trainer.config import TABLE_5, Config, default_learning_rate, resolve
from trainer.flags import parse
from trainer.ownership import Ownership

TRAIN = pathlib.Path(benchmark.__file__).parent
COLUMNS = ",".join(fake_results.COLUMNS)
# Takes the trainer's flags. Adam breaks, RMSProp on VGG19 is killed, and momentum goes on until it is stopped.
TRAINER = f"""
import os, pathlib, signal, sys, time
flags = dict(zip(sys.argv[1:-1], sys.argv[2:]))
folder = pathlib.Path(flags["--workdir"])
sys.path.insert(0, {str(TRAIN)!r})
from trainer.ownership import Ownership
own = Ownership(folder)
(folder / "config.json").write_text("{{}}")
with open(folder / "started.txt", "a") as file:
    file.write("started\\n")
if flags["--optimizer"] == "adam":
    sys.exit("error: the loss is not finite at epoch 1, step 2 of 7")
if flags["--optimizer"] == "rmsprop" and flags["--model"] == "vgg19":
    os.kill(os.getpid(), signal.SIGKILL)
with open(folder / "history.csv", "w") as file:
    file.write({COLUMNS!r} + "\\n")
    for epoch in range(1, int(flags["--epochs"]) + 1):
        file.write(f"{{epoch}},0.5,0.8,0.6,0.7,1.5,100,0.5\\n")
        file.flush()
        if flags["--optimizer"] == "momentum":
            time.sleep(60)
"""


@pytest.fixture
def trainer(tmp_path_factory, monkeypatch):
    """That script in the trainer's place."""
    file = tmp_path_factory.mktemp("program") / "trainer.py"
    file.write_text(TRAINER)
    monkeypatch.setattr(cells, "_MAIN", file)
    return file


@pytest.fixture
def bench(trainer, run):
    """benchmark.py with that trainer, in this process."""
    return functools.partial(run, benchmark)


def process(trainer, *flags, **options):
    """benchmark.py with that trainer, in a separate process."""
    code = f"import sys, pathlib; sys.path.insert(0, {str(TRAIN)!r}); import benchmark\nfrom lab import cells\n"
    code += f"cells._MAIN = pathlib.Path({str(trainer)!r}); sys.exit(benchmark.main())\n"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, flags)], **options)


def started(folder):
    return [*folder.rglob("started.txt")]


def has_an_epoch(folder):
    return any(processes.rows(path.parent) for path in started(folder))


def plan(workdir, **options):
    return grid.plan(grid.BenchmarkOptions(str(workdir), **options))


# The plan


def test_the_plan_is_the_papers_evaluation_or_a_part_of_it_with_seeds_one_after_another():
    planned = plan("R")
    assert len(planned) == len({cell.workdir for cell in planned}) == 30
    for cell in planned:
        assert (cell.epochs, cell.batch_size, cell.width, cell.precision) == (100, 128, 1.0, "float32")
        assert cell.learning_rate == default_learning_rate(cell.dataset, cell.model, cell.optimizer)
        assert cell.first_step == (0 if cell.optimizer == "gravity" else None)
        assert cell.workdir == f"R/{cell.dataset}/{cell.model}/{cell.optimizer}/seed_0"
    assert {cell.dataset for cell in planned} == set(TABLE_5)
    narrow = {"datasets": ("mnist", "cifar10"), "models": ("vgg19",), "optimizers": ("gravity", "nadam", "gravity")}
    planned = plan("R", **narrow, seeds=(3, 1), epochs=2, limit=10)
    expected = [(seed, d, o, 2, 10) for seed in (3, 1) for d in ("mnist", "cifar10") for o in ("gravity", "nadam")]
    assert [(c.seed, c.dataset, c.optimizer, c.epochs, c.limit) for c in planned] == expected


def test_the_study_is_the_authors_variants_and_every_row_of_theirs_is_one_or_has_an_undefined_rule():
    planned = {cell.workdir: cell for cell in plan("R", study=True, seeds=(0, 1))}
    assert len(planned) == 2 * len(grid.VARIANTS)
    at = "R/study/cifar10/vgg16"
    cell, short = planned[f"{at}/from_rest_beta_0.99/seed_1"], planned[f"{at}/velocity_he_normal/seed_0"]
    assert (cell.beta, cell.alpha, cell.epochs, cell.seed, short.epochs) == (0.99, 0.0, 100, 1, 50)
    assert {c.dataset for c in plan("R", study=True, datasets=("mnist",))} == {"mnist"}
    comments = published.tuning()["authors_comment"]
    undefined = [row for row, comment in comments.items() if "1-total_effect" in comment or comment == "Z_score"]
    rows = [row for variant in grid.VARIANTS for row in variant.rows]
    assert len(undefined) == 2 and sorted([*rows, *undefined]) == list(range(len(comments)))


@pytest.mark.parametrize("variant", grid.VARIANTS, ids=lambda v: f"{v.dataset}-{v.name}")
def test_a_variant_is_what_the_authors_rows_say(variant):
    resolved = resolve(Config(variant.dataset, "vgg16", **variant.settings))
    runs = [*published.tuning().iloc[[*variant.rows]].itertuples()]
    assert variant.epochs == max(run.epochs for run in runs)
    for run in runs:
        assert (run.dataset, run.model) == (variant.dataset, "vgg16")
        assert (resolved.learning_rate, resolved.beta) == (run.learning_rate, run.beta)
        comment = run.authors_comment.replace(" ", "")
        rule = {
            "inverse_range": "1/(max_grad-min_grad+self.epsilon)",
            "inverse_std": "1/(tf.math.reduce_std(grad)+self.epsilon)",
            "max": "=tf.math.reduce_max(grad)",
            "max_abs": "=tf.math.reduce_max(tf.math.abs(grad))",
            "inverse_max_abs": "=1/",
        }[resolved.max_step_grad]
        assert rule in comment
        constant_beta = "beta_hat" not in comment and "alphaadded" not in comment
        assert resolved.first_step == (10**9 if constant_beta else 0)  # so late that beta-hat is beta
        assert (resolved.velocity if resolved.velocity != "normal" else "") in comment
        assert (resolved.alpha == 0) == ("initializer" not in comment and "alphaadded" not in comment)


def test_the_command_of_a_cell_gives_it_back():
    study = plan("R", study=True, datasets=("mnist",))
    for cell in [*plan("R", data_dir="D", precision="bfloat16", datasets=("cifar10",)), *study]:
        words = cells.command_line(cell)
        assert words[1] == str(TRAIN / "main.py") and resolve(parse(words[2:])) == cell


# The command


@pytest.mark.parametrize(
    ("flag", "said"),
    [("--models vgg19", "Gravity on VGG16: omit --models"), ("--datasets digits", "is digits, on which")],
)
def test_a_study_of_another_network_or_dataset_is_refused(bench, tmp_path, flag, said):
    code, _, error = bench("--workdir", tmp_path / "R", "--study", *flag.split())
    assert code == 2 and error.startswith("error: ") and said in error and not (tmp_path / "R").exists()


@pytest.mark.parametrize("flag", ["--list", "--help"])
@pytest.mark.parametrize("name", ["benchmark", "compare"])
def test_list_and_help_answer_before_anything_heavy_is_imported_and_make_nothing(tmp_path, name, flag):
    code = (
        f"import sys; sys.path.insert(0, {str(TRAIN)!r})\n"
        f"sys.argv = ['{name}.py', '--workdir', {str(tmp_path / 'R')!r}, '{flag}']\n"
        f"import {name}; assert {name}.main() == 0\n"
        "assert not {'jax', 'flax', 'matplotlib', 'pandas', 'scipy', 'optuna'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("time left: not measured yet\n" if flag == "--list" else "--storage") in done.stdout
    assert not (tmp_path / "R").exists()


def test_the_list_says_what_is_done_under_way_running_failed_to_do_or_another_run(bench, tmp_path):
    done, more, part, running, failed, todo = plan(tmp_path, datasets=("mnist",), epochs=3)
    for cell, epochs, seconds in ((done, 3, 2), (more, 5, 2), (part, 2, 10), (running, 1, 4), (failed, 1, 6)):
        fake_results.write(tmp_path, cell.folder.parts[-4:-1], 0, [(0.5, 0.8, 0.6, 0.7)] * epochs, seconds - 2)
    shared = Store(f"sqlite:///{tmp_path}/runs.db", "benchmark")
    shared.claim(cells.cell_name(failed)).fail("no memory")
    flags = ["--workdir", tmp_path, "--datasets", "mnist", "--epochs", 3, "--list"]
    ownership = Ownership(running.folder)
    _, out, _ = bench(*flags)
    ownership.release()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[1:-1] == [
        "mnist vgg16 gravity 0 done: 3 epochs",
        "mnist vgg16 adam 0 done: 5 epochs",
        "mnist vgg16 rmsprop 0 under way: 2 of 3 epochs, stopped",
        "mnist vgg19 gravity 0 under way: 1 of 3 epochs, running now",
        "mnist vgg19 adam 0 failed after 1 of 3 epochs: no memory",
        "mnist vgg19 rmsprop 0 to do: 3 epochs",
    ]
    # 1 + 2 + 2 epochs at 10, 4 and 6 s are left, and 3 of the last at the mean of its network's others.
    counts = "6 runs: 2 done, 1 under way, 1 running, 1 failed, 1 to do; 10 of 18 epochs; time left: about 0:00:45"
    assert lines[-1] == counts
    claim = shared.claim(cells.cell_name(todo))
    assert "vgg19  rmsprop    0     under way: 0 of 3 epochs, running now" in bench(*flags)[1]
    claim.finish(0.5, {})
    assert "vgg19  rmsprop    0     done: 3 epochs" in bench(*flags)[1]
    (done.folder / "config.json").write_text(json.dumps(dataclasses.asdict(done) | {"limit": 128, "data_dir": "D"}))
    _, out, _ = bench(*flags)
    assert "another run is in this folder: --limit was 128, now None; choose another --workdir" in out
    assert "1 other run" in out
    assert bench("--workdir", tmp_path, "--datasets", "mnist", "--models", "vgg16", "--optimizers", "gravity")[0] == 1


def test_finished_cells_are_skipped_and_broken_ones_reported_while_the_others_go_on(bench, tmp_path):
    flags = ["--workdir", tmp_path, "--datasets", "mnist", "--epochs", 2]
    code, out, err = bench(*flags)
    assert code == 1
    adam = r"^mnist/vgg16/adam/seed_0 failed: the loss is not finite at epoch 1, step 2 of 7 \(exit code 1; full output"
    assert re.search(adam, out, re.MULTILINE) and re.search(r"vgg19/rmsprop/seed_0 failed: .*\(killed by SIGKILL", out)
    assert out.splitlines()[-1] == "6 runs: 3 done, 3 failed; 6 of 12 epochs; time left: about 0:00:00"
    assert out.count("epoch 2 of 2") == 3 and "\r" not in out + err
    _, out, _ = bench(*flags, "--list")
    assert [out.count(f"  {kind}") for kind in ("done: 2 epochs", "failed after 0 of 2 epochs: ")] == [3, 3]
    assert bench(*flags)[0] == 1
    assert sorted(path.read_text().count("\n") for path in started(tmp_path)) == [1, 1, 1, 2, 2, 2]
    assert bench(*flags, "--optimizers", "gravity")[0] == 0


def test_a_cell_made_on_another_machine_is_written_to_its_folder(bench, tmp_path):
    flags = ["--datasets", "mnist", "--optimizers", "gravity", "--epochs", 2, "--storage", f"sqlite:///{tmp_path}/s.db"]
    assert bench("--workdir", tmp_path / "here", *flags)[0] == 0
    code, out, _ = bench("--workdir", tmp_path / "there", *flags)
    assert code == 0 and "2 runs: 2 done" in out and not started(tmp_path / "there")
    here, there = (sorted((tmp_path / where).rglob("history.csv")) for where in ("here", "there"))
    assert [path.read_text() for path in here] == [path.read_text() for path in there] and len(here) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_cell_and_no_other_is_started(bench, tmp_path, number, code):
    def stop():
        while not has_an_epoch(tmp_path):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    begun, flags = time.monotonic(), ("--workdir", tmp_path, "--datasets", "mnist", "--optimizers", "momentum")
    got, out, _ = bench(*flags, "--epochs", 2)
    assert got == code and time.monotonic() - begun < 40  # it would take 60
    assert out.splitlines()[-1].endswith("the same command resumes from here")
    assert len(started(tmp_path)) == 1
    assert "2 runs: 1 under way, 1 to do" in bench(*flags, "--epochs", 2, "--list")[1]


def test_a_trainer_whose_worker_was_killed_is_waited_for_and_then_resumed(trainer, tmp_path):
    flags = ["--workdir", tmp_path, "--datasets", "mnist", "--optimizers", "momentum", "--models", "vgg16"]
    first = process(trainer, *flags, stdout=subprocess.DEVNULL)
    processes.wait_for(first, lambda: has_an_epoch(tmp_path), 60)
    first.kill()  # what it started lives on, and so does its lock
    first.communicate()
    second = process(trainer, *flags, stdout=subprocess.PIPE, text=True)
    waits = "waiting for other workers, which are doing all that is left (runs: 1)"
    assert any(waits in line for line in second.stdout)
    (file,) = started(tmp_path)
    assert file.read_text().count("\n") == 1
    os.kill(int(re.search(r"process (\d+)", (file.parent / "lock").read_text())[1]), signal.SIGKILL)
    processes.wait_for(second, lambda: file.read_text().count("\n") == 2, 60)
    second.terminate()
    second.communicate(timeout=20)
    assert second.returncode == 75


def test_a_terminal_has_a_progress_bar_over_all_epochs(trainer, tmp_path):
    controller, terminal = pty.openpty()
    flags = ["--workdir", tmp_path, "--datasets", "mnist", "--optimizers", "gravity", "--epochs", 3]
    command = process(trainer, *flags, stdout=terminal, stderr=terminal, env={**os.environ, "COLUMNS": "120"})
    os.close(terminal)
    text = b""
    with pytest.raises(OSError):  # the other end is closed
        while True:
            text += os.read(controller, 4096)
    assert command.wait(30) == 0
    assert re.search(rb"3/6 epochs \|.*time left: about [\d:]+; mnist/vgg16/gravity", text)


@pytest.mark.slow
def test_a_grid_that_is_stopped_is_resumed_by_the_same_command(tmp_path):
    flags = ("--datasets", "digits", "--models", "mlp", "--optimizers", "gravity", "--epochs", 20, "--limit", 512)
    start = functools.partial(processes.start, "--workdir", tmp_path, *flags, program=(str(TRAIN / "benchmark.py"),))
    first = start()
    assert any(re.search(r"epoch [1-9]\d* of 20", line) for line in first.stdout)
    first.send_signal(signal.SIGTERM)
    processes.finish(first, codes=(75,))
    processes.finish(start())
    rows = cells.history(tmp_path / "digits" / "mlp" / "gravity" / "seed_0")
    assert [int(row["epoch"]) for row in rows] == [*range(1, 21)]
