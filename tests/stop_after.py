"""As SIGTERM after a number of chunks, without a signal."""

from trainer.preemption import StopRequest


class StopAfter(StopRequest):
    """Asks to stop once `chunks` chunks have begun."""

    def __init__(self, chunks):
        self.left = chunks

    @property
    def given(self):
        self.left -= 1
        return self.left < 0
