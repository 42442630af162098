"""A request to stop, so that the run can be resumed: SIGTERM, which preemptible machines and schedulers send before
they take the machine away, SIGHUP of a terminal that is lost, or an interrupt in a notebook.
"""

import logging
import signal
from typing import Any

from trainer import command
from trainer.config import RunAgain

log = logging.getLogger("train")


class StopRequest:
    """Whether it has come. Until somebody looks at `given`, there is nothing to save, and a signal ends the process."""

    reason = "SIGTERM"

    def __init__(self):
        self.given = False
        self.watched = False

    def listen(self) -> None:
        """Has the signals handled here until the command ends."""
        command.on_stop(self.receive, signal.SIGTERM, signal.SIGHUP)

    def receive(self, number: int = signal.SIGTERM, frame: Any = None) -> None:
        """The signals' handler."""
        self.give(signal.Signals(number).name)
        if not self.watched:
            log.error(f"error: stopped on {self.reason} before training; start again with the same flags and --resume.")
            command.end_now(RunAgain.exit_code)

    def give(self, reason: str) -> None:
        """The run ends at its next step, with a checkpoint."""
        self.reason, self.given = reason, True
