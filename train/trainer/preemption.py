"""Requests to stop a run that can be resumed: SIGTERM from a scheduler or a preempted machine, SIGHUP from a lost
terminal, or an interrupt in a notebook. Stopping itself is in `loop`.
"""

import logging
import signal
from typing import Any

from trainer import command
from trainer.config import RunAgain

log = logging.getLogger("train")


class StopRequest:
    """Whether a stop was requested. Until training watches for it, a signal ends the process: nothing needs saving."""

    reason = "SIGTERM"

    def __init__(self):
        self.given = False
        self.watched = False

    def listen(self) -> None:
        """Handles the signals until the command ends."""
        command.on_stop(self.receive, signal.SIGTERM, signal.SIGHUP)

    def receive(self, number: int = signal.SIGTERM, frame: Any = None) -> None:
        """The signals' handler."""
        self.give(signal.Signals(number).name)
        if not self.watched:
            log.error(f"error: stopped on {self.reason} before training; start again with the same flags and --resume.")
            command.end_now(RunAgain.exit_code)

    def give(self, reason: str) -> None:
        """Asks the run to stop at the next chunk of steps, with a checkpoint."""
        self.reason, self.given = reason, True
