"""The evaluation as one command: its plan, what it skips, and what it does when a cell fails or it is stopped.

Most tests put a script in the trainer's place that writes a history at once; the slow ones train.
"""

import dataclasses
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

import benchmark
import processes
from lab import cells, published, tuning_study, worker
from lab.cells import State
from lab.grid import BenchmarkOptions
from lab.grid import plan as plan_of
from lab.store import Store, url_of
from trainer.config import TABLE_5, UsageError, default_learning_rate
from trainer.ownership import Ownership

TRAIN = pathlib.Path(benchmark.__file__).parent
COLUMNS = "epoch,loss,accuracy,val_loss,val_accuracy,seconds,images_per_second,val_seconds"
ROW = "{epoch},0.5,0.8,0.6,0.7,1.5,100,0.5"
# Takes the trainer's flags. Adam breaks, RMSProp on VGG19 is killed, and momentum goes on until it is stopped.
TRAINER = f"""
import dataclasses
import json
import os
import pathlib
import signal
import sys
import time
flags = dict(zip(sys.argv[1:-1], sys.argv[2:]))
folder = pathlib.Path(flags["--workdir"])
sys.path.insert(0, {str(TRAIN)!r})
from trainer.config import resolve
from trainer.flags import parse
from trainer.ownership import Ownership
own = Ownership(folder)
if flags["--optimizer"] == "adagrad" and os.fork():  # the child stands for another run, which was faster
    sys.exit("error: another run is at work here")
(folder / "config.json").write_text(json.dumps(dataclasses.asdict(resolve(parse(sys.argv[1:])))))
with open(folder / "started.txt", "a") as file:
    file.write(f"{{time.monotonic()}}\\n")
if flags["--optimizer"] == "adam":
    sys.exit("error: the loss is not finite at epoch 1, step 2 of 7")
if flags["--optimizer"] == "rmsprop" and flags["--model"] == "vgg19":
    os.kill(os.getpid(), signal.SIGKILL)
with open(folder / "history.csv", "w") as file:
    file.write({COLUMNS!r} + "\\n")
    for epoch in range(1, int(flags["--epochs"]) + 1):
        file.write({ROW!r}.format(epoch=epoch) + "\\n")
        file.flush()
        if flags["--optimizer"] == "momentum":
            time.sleep(60)
        if flags["--optimizer"] == "adagrad":
            time.sleep(2)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A script that is benchmark.py with that trainer."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "trainer.py").write_text(TRAINER)
    text = f"import sys, pathlib; sys.path.insert(0, {str(TRAIN)!r}); import benchmark\nfrom lab import cells\n"
    text += f"cells._MAIN = pathlib.Path({str(folder / 'trainer.py')!r}); sys.exit(benchmark.main())\n"
    (folder / "program.py").write_text(text)
    return folder / "program.py"


def run(program, *flags):
    command = [sys.executable, str(program), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def start(program, *flags, until):
    """A process, once it has said that."""
    command = [sys.executable, str(program), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert any(until in line for line in process.stdout)
    return process


def write_cell(cell, epochs, **config):
    cell.folder.mkdir(parents=True)
    (cell.folder / "config.json").write_text(json.dumps(dataclasses.asdict(cell) | config))
    rows = [COLUMNS, *(ROW.format(epoch=epoch) for epoch in range(1, epochs + 1))]
    (cell.folder / "history.csv").write_text("\n".join(rows) + "\n")


def plan(workdir, **options):
    return plan_of(BenchmarkOptions(str(workdir), **options))


def test_the_plan_is_the_papers_evaluation():
    planned = plan("R")
    assert len(planned) == len({cell.workdir for cell in planned}) == 30
    for cell in planned:
        assert (cell.epochs, cell.batch_size, cell.width, cell.precision) == (100, 128, 1.0, "float32")
        assert cell.learning_rate == default_learning_rate(cell.dataset, cell.model, cell.optimizer)
        assert cell.first_step == (0 if cell.optimizer == "gravity" else None)
        assert cell.workdir == f"R/{cell.dataset}/{cell.model}/{cell.optimizer}/seed_0"
    assert {cell.dataset for cell in planned} == set(TABLE_5)


def test_flags_narrow_the_plan_and_seeds_come_one_after_another():
    narrow = {"datasets": ("mnist", "cifar10"), "models": ("vgg19",), "optimizers": ("gravity", "nadam")}
    planned = plan("R", **narrow, seeds=(3, 1), epochs=2, limit=10)
    expected = [(seed, d, o) for seed in (3, 1) for d in ("mnist", "cifar10") for o in ("gravity", "nadam")]
    assert [(c.seed, c.dataset, c.optimizer) for c in planned] == expected
    assert {(c.epochs, c.limit, c.model) for c in planned} == {(2, 10, "vgg19")}


def test_the_study_is_the_authors_variants():
    planned = plan("R", study=True, seeds=(0, 1))
    assert len(planned) == 2 * len(tuning_study.VARIANTS)
    by_name = {cells.labels(cell): cell for cell in planned}
    cell = by_name["cifar10", "vgg16", "from_rest_beta_0.99", "seed_1"]
    assert cell.workdir == "R/study/cifar10/vgg16/from_rest_beta_0.99/seed_1"
    assert (cell.beta, cell.alpha, cell.epochs, cell.seed) == (0.99, 0.0, 100, 1)
    assert by_name["cifar10", "vgg16", "velocity_he_normal", "seed_0"].epochs == 50
    assert {c.dataset for c in plan("R", study=True, datasets=("mnist",))} == {"mnist"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"study": True, "models": ("vgg19",)}, "^--study is Gravity on VGG16: omit --models and --optimizers"),
        ({"study": True, "datasets": ("digits",)}, "^the flags select no cells"),
        ({"seeds": ()}, "^the flags select no cells"),
        ({"seeds": (-1,)}, "^--seed is -1; it must be between 0 and"),
        ({"epochs": 0}, "^--epochs is 0; it must be between 1 and 1000000"),
    ],
)
def test_invalid_flags_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        plan("R", **options)


def test_the_command_of_a_cell_gives_it_back():
    import tyro

    from trainer.config import Config, resolve

    for cell in [*plan("R", data_dir="D", precision="bfloat16"), *plan("R", study=True)]:
        words = cells.command_line(cell)
        assert words[1] == str(TRAIN / "main.py")
        assert resolve(tyro.cli(Config, args=words[2:])) == cell


def test_a_cell_is_to_do_under_way_done_running_or_failed(tmp_path):
    planned = plan(tmp_path, datasets=("mnist",), epochs=3)
    done, more, part, running, failed, todo = planned
    for cell, epochs in ((done, 3), (more, 5), (part, 2), (running, 1), (failed, 1)):
        write_cell(cell, epochs)
    with open(part.folder / "history.csv", "a") as file:
        file.write("3,0.1,0.")  # half a row does not count
    shared = Store(url_of(tmp_path, None), cells.KIND)
    shared.claim(cells.cell_name(failed)).fail("no memory")
    ownership = Ownership(running.folder)
    found = cells.states(planned, shared)
    text = cells.listing(planned, shared)
    ownership.release()
    assert [s.kind for s in found] == ["done", "done", "under way", "running", "failed", "to do"]
    assert [s.epochs for s in found] == [3, 5, 2, 1, 1, 0]
    assert found[4].text == "failed after 1 of 3 epochs: no memory" and found[5].text == "to do: 3 epochs"
    lines = text.splitlines()
    assert lines[1].split() == ["mnist", "vgg16", "gravity", "0", "done:", "3", "epochs"]
    # 2 s an epoch, recorded: 1 + 2 + 2 + 3 epochs are left.
    assert lines[-1] == (
        "6 cells: 2 done, 1 under way, 1 running, 1 failed, 1 to do; 10 of 18 epochs; time left: about 0:00:16"
    )
    claim = shared.claim(cells.cell_name(todo))
    assert cells.states(planned, shared)[5].kind == "running"
    claim.finish(0.5, {})
    assert cells.states(planned, shared)[5].kind == "done"


def test_another_run_in_a_cells_folder_is_no_result_of_the_cell(tmp_path):
    (cell,) = plan(tmp_path, datasets=("mnist",), models=("vgg16",), optimizers=("gravity",), epochs=3)
    write_cell(cell, 3, limit=128, precision="bfloat16", data_dir="elsewhere")
    expected = (
        "another run is in this folder: --limit was 128, now None; --precision was bfloat16, now float32;"
        " choose another --workdir"
    )
    assert cells.state(cell) == State("other run", 0, expected)


def test_time_left_is_at_the_pace_of_the_most_similar_runs():
    digits, same_model, other = (("digits", "vgg11"), "vgg11"), (("mnist", "vgg11"), "vgg11"), (("mnist", "mlp"), "mlp")
    assert worker.time_left([(digits, 5)], []) == "not measured yet"
    took = [(digits, 20.0, 10), (digits, 10.0, 5)]
    for run in (digits, same_model, other):
        assert worker.time_left([(run, 5), (digits, 1)], took) == "about 0:00:12"
    took.append((other, 100.0, 5))
    assert worker.time_left([(digits, 5), (same_model, 5), (other, 2)], took) == "about 0:01:00"


@pytest.mark.parametrize("name", ["benchmark", "compare"])
def test_list_answers_before_anything_heavy_is_imported_and_makes_nothing(tmp_path, name):
    code = (
        f"import sys; sys.path.insert(0, {str(TRAIN)!r})\n"
        f"sys.argv = ['{name}.py', '--workdir', {str(tmp_path / 'R')!r}, '--list']\n"
        f"import {name}; assert {name}.main() == 0\n"
        "assert not {'jax', 'flax', 'matplotlib', 'pandas', 'optuna'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("time left: not measured yet")
    assert not (tmp_path / "R").exists()


def test_finished_cells_are_skipped_and_broken_ones_reported_while_the_others_go_on(program, tmp_path):
    flags = ["--workdir", tmp_path, "--datasets", "mnist", "--epochs", 2]
    first = run(program, *flags)
    assert first.returncode == 1
    lines = first.stdout.splitlines()
    assert re.fullmatch(
        r"mnist/vgg16/adam/seed_0 failed: the loss is not finite at epoch 1, step 2 of 7"
        r" \(exit code 1; full output in .*output.txt\)",
        lines[-4],
    )
    assert re.match(r"mnist/vgg19/rmsprop/seed_0 failed: .*\(killed by SIGKILL;", lines[-2])
    assert lines[-1] == f"3 of 6 cells are done; python train/report.py {tmp_path} shows them"
    assert first.stdout.count("epoch 2 of 2") == 3
    assert "\r" not in first.stdout + first.stderr
    listed = run(program, *flags, "--list").stdout
    assert [listed.count(f"  {kind}") for kind in ("done: 2 epochs", "failed after 0 of 2 epochs: ")] == [3, 3]
    assert run(program, *flags).returncode == 1
    starts = {path.parent.parent: len(path.read_text().splitlines()) for path in tmp_path.rglob("started.txt")}
    assert sorted(starts.values()) == [1, 1, 1, 2, 2, 2]
    assert run(program, *flags, "--optimizers", "gravity").returncode == 0


def test_a_cell_made_on_another_machine_is_written_to_its_folder(program, tmp_path):
    flags = ["--datasets", "mnist", "--optimizers", "gravity", "--epochs", 2, "--storage", f"sqlite:///{tmp_path}/s.db"]
    assert run(program, "--workdir", tmp_path / "here", *flags).returncode == 0
    done = run(program, "--workdir", tmp_path / "there", *flags)
    assert done.returncode == 0 and "2 of 2 cells are done" in done.stdout
    histories = [[*(tmp_path / where).rglob("history.csv")] for where in ("here", "there")]
    assert len(histories[0]) == len(histories[1]) == 2 and not [*(tmp_path / "there").rglob("started.txt")]
    assert {path.read_text() for path in histories[0]} == {path.read_text() for path in histories[1]}


@pytest.mark.parametrize(("flag", "value"), [("--workdir", "{}/file/R"), ("--storage", "nosuch://:secret@host/{}")])
def test_what_cannot_be_written_to_is_one_line_and_exit_code_1(program, tmp_path, flag, value):
    (tmp_path / "file").write_text("")
    done = run(program, *(("--workdir", tmp_path) if flag == "--storage" else ()), flag, value.format(tmp_path))
    assert done.returncode == 1 and "secret" not in done.stderr
    assert done.stderr.startswith(f"error: {flag} is ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_cell_and_no_other_is_started(program, tmp_path, number, code):
    flags = ["--workdir", tmp_path, "--datasets", "mnist", "--optimizers", "momentum", "--epochs", 2]
    process = start(program, *flags, until="epoch 1 of 2")
    begun = time.monotonic()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - begun < 5
    assert rest.splitlines()[-1].endswith("the same command resumes from here")
    assert len(list(tmp_path.rglob("started.txt"))) == 1
    planned = plan(tmp_path, datasets=("mnist",), optimizers=("momentum",), epochs=2)
    assert [s.kind for s in cells.states(planned, Store(url_of(tmp_path, None), cells.KIND))] == ["under way", "to do"]


def test_a_trainer_whose_worker_was_killed_is_waited_for_and_then_resumed(program, tmp_path):
    flags = ["--workdir", tmp_path, "--datasets", "mnist", "--optimizers", "momentum", "--models", "vgg16"]
    first = start(program, *flags, until="epoch 1 of")
    first.kill()  # what it started lives on, and so does its lock
    first.communicate()
    second = start(program, *flags, until="waiting for other workers, which are making 1 run of this plan")
    (started,) = tmp_path.rglob("started.txt")
    assert len(started.read_text().splitlines()) == 1
    (pid,) = [int(p) for p in os.listdir("/proc") if p.isdigit() and _works_in(p, started.parent)]
    os.kill(pid, signal.SIGKILL)
    processes.wait_for(second, lambda: started.read_text().count("\n") == 2, 60)
    second.terminate()
    second.communicate(timeout=20)
    assert second.returncode == 75


def _works_in(pid, folder):
    try:
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(folder).encode() in words


def test_a_cell_that_another_run_has_just_begun_is_not_counted_as_failed(program, tmp_path):
    flags = ["--workdir", tmp_path, "--datasets", "mnist", "--optimizers", "adagrad", "--models", "vgg16"]
    done = run(program, *flags, "--epochs", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 cells are done" in done.stdout and "failed" not in done.stdout


def test_a_terminal_has_a_progress_bar_over_all_epochs(program, tmp_path):
    controller, terminal = pty.openpty()
    flags = ["--workdir", tmp_path, "--datasets", "mnist", "--optimizers", "gravity", "--epochs", 3]
    command, environment = [sys.executable, program, *map(str, flags)], {**os.environ, "COLUMNS": "120"}
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    text = b""
    while True:
        try:
            text += os.read(controller, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait(30) == 0
    assert re.search(rb"3/6 epochs \|.*time left: about [\d:]+; mnist/vgg16/gravity", text)


@pytest.mark.slow
def test_a_grid_that_is_stopped_resumes_and_ends_as_one_that_is_not(tmp_path):
    what = {"datasets": ("digits",), "models": ("mlp",), "optimizers": ("gravity",), "epochs": 30, "limit": 512}
    flags = [
        word for name, value in what.items() for word in (f"--{name}", *(value if type(value) is tuple else [value]))
    ]
    options = {"text": True, "env": {**os.environ, "XLA_FLAGS": "", "JAX_NUMPY_DTYPE_PROMOTION": "standard"}}
    command = [sys.executable, str(TRAIN / "benchmark.py"), *map(str, flags), "--workdir"]
    first = subprocess.Popen(
        [*command, str(tmp_path / "a")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    for line in first.stdout:
        if re.search(r"epoch [1-9]\d* of 30", line):
            break
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode == 75
    histories = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        subprocess.run([*command, str(folder)], check=True, capture_output=True, timeout=200, **options)
        (cell,) = plan(folder, **what)
        rows = cells.history(pathlib.Path(cell.workdir))
        histories.append([[row[name] for name in ("epoch", *published.METRICS)] for row in rows])
    stopped, whole = histories
    assert len(whole) == 30
    assert stopped == whole
