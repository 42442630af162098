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
import threading
import time
import uuid
import warnings
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool

from trainer.config import UserError, brief

log = logging.getLogger("train")

_HEARTBEAT, _GRACE = 10, 60  # seconds: between heartbeats, and without one until a worker counts as gone
_TRIES, _SECONDS_BETWEEN = 5, 1.0  # two workers that start together may both create the tables
_ENDED = ValueError, UpdateFinishedTrialError  # raised for a trial that has already ended


class Claim:
    """A run claimed by this worker, until `finish` or `fail`; as a context it is released at its end."""

    def __init__(self, study: optuna.Study, trial: Any):
        self._study, self._number, self._id = study, trial.number, trial._trial_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._ended.is_set():
            self.fail()

    def report(self, epoch: int, value: float) -> None:
        """Records the validation accuracy after an epoch, for dashboards."""
        with contextlib.suppress(*_ENDED):
            self._study._storage.set_trial_intermediate_value(self._id, epoch, value)

    def finish(self, value: float, outcome: dict[str, str]) -> bool:
        """The run is finished; False if this worker counted as gone and another one has claimed the run."""
        return self._end(TrialState.COMPLETE, value, outcome=outcome)

    def fail(self, why: str | None = None) -> None:
        """The run failed and is not tried again; without a reason it was not finished, and any worker may claim it."""
        self._end(TrialState.FAIL, why=why)

    def _end(self, state: TrialState, value: float | None = None, **attributes: Any) -> bool:
        self._ended.set()
        self._thread.join()
        try:
            for name, content in attributes.items():
                self._study._storage.set_trial_user_attr(self._id, name, content)
            self._study.tell(self._number, value, state)
        except _ENDED:
            return False
        return True

    def _beat(self) -> None:
        while True:
            try:
                self._study._storage.record_heartbeat(self._id)  # type: ignore[attr-defined]
            except Exception as error:  # of the database, which may be back before the grace period is over
                log.warning(f"the heartbeat could not be written to --storage ({brief(error)[:100]})")
            if self._ended.wait(_HEARTBEAT):
                return


class Store:
    """The study for one kind of experiment."""

    def __init__(self, url: str, kind: str, fix: str = ""):
        """Creates the study if it does not exist. UserError, which ends in `fix`, if the storage cannot be used."""
        for attempt in range(1, _TRIES + 1):
            try:
                self._study = _study(url, kind)
                break
            except Exception as error:  # of SQLAlchemy, of the database's driver, or a missing driver
                if attempt == _TRIES or isinstance(error, ImportError):
                    where = url.rpartition("@")[2]  # no password
                    what = f"{where.removeprefix('sqlite:///')} " if fix else f"--storage is {where}, which "
                    raise UserError(f"{what}cannot be used ({brief(error)}).{fix}") from error
                time.sleep(_SECONDS_BETWEEN)
        self._first = len(self._trials())

    def outcomes(self) -> dict[str, dict[str, str]]:
        """The results of the finished runs, by name, in the order in which they were started."""
        found: dict[str, dict[str, str]] = {}
        for trial in self._trials(TrialState.COMPLETE):
            found.setdefault(trial.user_attrs["run"], trial.user_attrs["outcome"])
        return found

    def running(self) -> set[str]:
        """The names of the runs claimed by live workers."""
        self._free()
        return {trial.user_attrs["run"] for trial in self._trials(TrialState.RUNNING)}

    def failures(self, since_start: bool = False) -> dict[str, str]:
        """Why runs failed, if their last attempt did: all of them, or those started since this store was opened."""
        last = {trial.user_attrs["run"]: trial for trial in self._trials()}
        return {
            name: trial.user_attrs["why"]
            for name, trial in last.items()
            if trial.user_attrs.get("why") and trial.number >= self._first * since_start
        }

    def add(self, name: str, value: float, outcome: dict[str, str]) -> None:
        """Adds a run that was finished without this storage."""
        self._study.add_trial(optuna.create_trial(value=value, user_attrs={"run": name, "outcome": outcome}))

    def claim(self, name: str) -> Claim | None:
        """Claims a run for this worker; None if it is finished or claimed by another."""
        self._free()
        if self._standing(name):
            return None
        attributes = {"run": name, "worker": _worker(), "claim": uuid.uuid4().hex}
        self._study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs=attributes))
        standing = self._standing(name)
        (ours,) = [trial for trial in standing if trial.user_attrs.get("claim") == attributes["claim"]]
        if ours is standing[0]:
            return Claim(self._study, ours)
        self._fail(ours)
        return None

    def _standing(self, name: str) -> list[Any]:
        """The finished and running attempts at a run, in order."""
        standing = self._trials(TrialState.COMPLETE, TrialState.RUNNING)
        return [trial for trial in standing if trial.user_attrs["run"] == name]

    def _free(self) -> None:
        """Fails the attempts of workers that are gone: no heartbeat, or no such process on this machine."""
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            optuna.storages.fail_stale_trials(self._study)
        machine, pid = _worker()
        for trial in self._trials(TrialState.RUNNING):
            theirs, number = trial.user_attrs["worker"]
            if theirs == machine and number != pid and not _alive(int(number)):
                self._fail(trial)

    def _fail(self, trial: Any) -> None:
        with contextlib.suppress(*_ENDED):
            self._study.tell(trial.number, state=TrialState.FAIL)

    def _trials(self, *states: TrialState) -> list[Any]:
        trials = self._study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in trials if "run" in trial.user_attrs]


def _study(url: str, kind: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # No connection outlives its transaction; SQLite waits for another writer.
    options = {"poolclass": NullPool} | ({"connect_args": {"timeout": 100}} if url.startswith("sqlite") else {})
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        storage = optuna.storages.RDBStorage(url, options, heartbeat_interval=_HEARTBEAT, grace_period=_GRACE)
    return optuna.create_study(storage=storage, study_name=kind, direction="maximize", load_if_exists=True)


def _worker() -> list[str]:
    """This process: its machine since boot, and its process id."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return [f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}", str(os.getpid())]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
