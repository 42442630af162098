"""The runs, their claims and their results: a study in an Optuna storage, shared by any number of workers.

A trial of the study is one attempt at a run, whose name is in its attribute `run`. An attempt is claimed by adding a
trial in the state RUNNING; if several claim the same run, the lowest number wins. A worker's heartbeat shows that it is
alive. COMPLETE has the run's `outcome`; FAIL has the reason (`why`), or none if the attempt was stopped or its worker
is gone, in which case the run is free again.
"""

import contextlib
import logging
import os
import pathlib
import socket
import tempfile
import threading
import time
import uuid
import warnings
from typing import Any

from trainer.config import UserError, brief

log = logging.getLogger("train")

FILE = "runs.db"  # the storage in the workdir, if no other is given
_HEARTBEAT, _GRACE = 10, 60  # seconds: between heartbeats, and without one until a worker counts as gone
_TRIES, _SECONDS_BETWEEN = 5, 1.0  # two workers that start together may both create the tables


class Claim:
    """A run claimed by this worker, until `finish`, `fail` or `release`."""

    def __init__(self, study: Any, trial: Any):
        self._study, self._number, self._id = study, trial.number, trial._trial_id
        self._ended = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()

    def report(self, epoch: int, value: float) -> None:
        """Records the validation accuracy after an epoch, for dashboards."""
        with contextlib.suppress(*_gone()):
            self._study._storage.set_trial_intermediate_value(self._id, epoch, value)

    def finish(self, value: float, outcome: dict[str, str]) -> bool:
        """The run is finished; False if this worker counted as gone and another one has claimed the run."""
        return self._end("COMPLETE", value, outcome=outcome)

    def fail(self, why: str) -> None:
        """The run failed and is not tried again."""
        self._end("FAIL", None, why=why)

    def release(self) -> None:
        """The run was not finished; another worker may claim it."""
        self._end("FAIL", None)

    def _end(self, state: str, value: float | None, **attributes: Any) -> bool:
        import optuna

        self._ended.set()
        self._thread.join()
        try:
            for name, content in attributes.items():
                self._study._storage.set_trial_user_attr(self._id, name, content)
            self._study.tell(self._number, value, optuna.trial.TrialState[state])
        except _gone():
            return False
        return True

    def _beat(self) -> None:
        self._study._storage.record_heartbeat(self._id)

    def _keep_beating(self) -> None:
        while not self._ended.wait(_HEARTBEAT):
            try:
                self._beat()
            except Exception as error:  # of the database, which may be back before the grace period is over
                log.warning(f"the heartbeat could not be written to --storage ({brief(error)[:100]})")


class Store:
    """The study for one kind of experiment."""

    def __init__(self, url: str, kind: str):
        """Creates the study if it does not exist. UserError if the storage cannot be used."""
        for attempt in range(1, _TRIES + 1):
            try:
                self._study = _study(url, kind)
                break
            except Exception as error:  # of SQLAlchemy, of the database's driver, or that there is no driver
                if attempt == _TRIES or isinstance(error, ImportError):
                    where = url.rpartition("@")[2]  # no password
                    raise UserError(f"--storage is {where}, which cannot be used ({brief(error)}).") from error
                time.sleep(_SECONDS_BETWEEN)
        self._first = len(self._trials())

    def outcomes(self) -> dict[str, dict[str, str]]:
        """The results of the finished runs, by name, in the order in which they were started."""
        found: dict[str, dict[str, str]] = {}
        for trial in self._trials():
            if trial.state.name == "COMPLETE":
                found.setdefault(trial.user_attrs["run"], trial.user_attrs["outcome"])
        return found

    def running(self) -> set[str]:
        """The names of the runs claimed by live workers."""
        self._free()
        return {trial.user_attrs["run"] for trial in self._trials() if trial.state.name == "RUNNING"}

    def failures(self, since_start: bool = False) -> dict[str, str]:
        """Why runs failed, if their last attempt did: all of them, or those started since this store was opened."""
        last = {trial.user_attrs["run"]: trial for trial in self._trials()}
        return {
            name: trial.user_attrs["why"]
            for name, trial in last.items()
            if "why" in trial.user_attrs and trial.number >= self._first * since_start
        }

    def add(self, name: str, value: float, outcome: dict[str, str]) -> None:
        """Adds a run that was made without this storage."""
        import optuna

        attributes = {"run": name, "outcome": outcome}
        self._study.add_trial(optuna.create_trial(value=value, user_attrs=attributes))

    def claim(self, name: str) -> Claim | None:
        """Claims a run for this worker; None if it is finished or claimed by another."""
        import optuna

        self._free()
        if self._standing(name):
            return None
        attributes = {"run": name, "worker": _worker(), "claim": uuid.uuid4().hex}
        running = optuna.trial.TrialState.RUNNING
        self._study.add_trial(optuna.create_trial(state=running, user_attrs=attributes))
        first, *others = self._standing(name)
        if first.user_attrs.get("claim") == attributes["claim"]:
            return Claim(self._study, first)
        for trial in others:
            if trial.user_attrs["claim"] == attributes["claim"]:
                self._end(trial)
        return None

    def _standing(self, name: str) -> list[Any]:
        """The finished and running attempts at a run, in order."""
        return [
            trial
            for trial in self._trials()
            if trial.user_attrs["run"] == name and trial.state.name in ("COMPLETE", "RUNNING")
        ]

    def _free(self) -> None:
        """Fails the attempts of workers that are gone: no heartbeat, or no such process on this machine."""
        import optuna

        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            optuna.storages.fail_stale_trials(self._study)
        machine, pid = _worker()
        for trial in self._trials():
            if trial.state.name == "RUNNING":
                theirs, number = trial.user_attrs["worker"]
                if theirs == machine and number != pid and not _alive(number):
                    self._end(trial)

    def _end(self, trial: Any) -> None:
        import optuna

        with contextlib.suppress(*_gone()):
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def _trials(self) -> list[Any]:
        return [trial for trial in self._study.get_trials(deepcopy=False) if "run" in trial.user_attrs]


def url_of(folder: pathlib.Path, storage: str | None) -> str:
    """The given storage, or a file in the folder."""
    return storage or f"sqlite:///{(folder / FILE).absolute()}"


def prepare(folder: pathlib.Path, storage: str | None, kind: str) -> "Store":
    """Creates the folder and opens the store. UserError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--workdir is {folder}, where nothing can be written ({error.strerror}).") from error
    return Store(url_of(folder, storage), kind)


def existing(folder: pathlib.Path, storage: str | None, kind: str) -> Store | None:
    """The store, if it exists; creates no file."""
    return Store(url_of(folder, storage), kind) if storage or (folder / FILE).exists() else None


def _study(url: str, kind: str) -> Any:
    import optuna
    from sqlalchemy.pool import NullPool

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # No connection outlives its transaction; SQLite waits for another writer.
    options = {"poolclass": NullPool} | ({"connect_args": {"timeout": 100}} if url.startswith("sqlite") else {})
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        storage = optuna.storages.RDBStorage(url, options, heartbeat_interval=_HEARTBEAT, grace_period=_GRACE)
    return optuna.create_study(storage=storage, study_name=kind, direction="maximize", load_if_exists=True)


def _gone() -> tuple[type[Exception], ...]:
    """What Optuna raises for a trial that has already ended."""
    import optuna

    return ValueError, optuna.exceptions.UpdateFinishedTrialError


def _worker() -> list[str]:
    """This process: its machine since boot, and its process id."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return [f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}", str(os.getpid())]


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
