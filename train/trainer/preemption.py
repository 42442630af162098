"""A request to stop: SIGTERM, which preemptible machines and schedulers send before they take the machine away."""

import logging
import os

from trainer.config import RunAgain

log = logging.getLogger("train")


class StopRequest:
    """Whether the signal has come. Until somebody looks at `given`, there is nothing to save, and the process ends."""

    def __init__(self):
        self.given = False
        self.watched = False

    def receive(self, *_) -> None:
        """The signal's handler."""
        self.given = True
        if not self.watched:
            log.error("error: stopped on SIGTERM before training; start again with the same flags and --resume.")
            logging.shutdown()
            os._exit(RunAgain.exit_code)
