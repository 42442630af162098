"""Event files for TensorBoard, written with tensorboardX, which needs no TensorFlow."""

from trainer.records import Epoch

_PER_EPOCH = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_second")


class EventFiles:
    """One more file in a folder, over the training steps done since the run began.

    TensorBoard shows a folder's files as one run. Of earlier files it leaves out what lies after the step from which
    this one goes on, such as epochs that come again after a resume.
    """

    def __init__(self, folder: str, step: int):
        """`step`: how many training steps are done."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def add_chunk(self, step: int, loss: float) -> None:
        """The mean loss of a chunk that ended with `step`."""
        self._writer.add_scalar("chunk/loss", loss, step)

    def add_epoch(self, step: int, row: Epoch) -> None:
        """The row of an epoch that ended with `step`; it is on disk when this returns."""
        for name in _PER_EPOCH:
            self._writer.add_scalar(f"epoch/{name}", getattr(row, name), step)
        self._writer.flush()

    def close(self) -> None:
        """Ends the thread that writes."""
        self._writer.close()


class NoEventFiles(EventFiles):
    """Without --tensorboard, and in the other processes."""

    def __init__(self): ...

    def add_chunk(self, step: int, loss: float) -> None: ...

    def add_epoch(self, step: int, row: Epoch) -> None: ...

    def close(self) -> None: ...
