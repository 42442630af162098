"""Event files for TensorBoard, written with tensorboardX, which needs no TensorFlow."""

import socket
import time

from etils import epath

from trainer.records import Epoch

_PER_EPOCH = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_second")
_PREFIX = "events.out.tfevents."


class EventFiles:
    """One more file in a folder, over the training steps done since the run began.

    TensorBoard shows a folder's files as one run. Of earlier files it leaves out what lies after the step from which
    this one goes on, such as epochs that come again after a resume.
    """

    def __init__(self, folder: str, step: int):
        """`step`: how many training steps are done."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        path = epath.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._writer = RecordWriter(str(path / f"{_PREFIX}{_next_number(path):010d}.{socket.gethostname()}"))
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add_chunk(self, step: int, loss: float) -> None:
        """The mean loss of a chunk that ended with `step`."""
        self._add("chunk/loss", loss, step)

    def add_epoch(self, step: int, row: Epoch) -> None:
        """The row of an epoch that ended with `step`; it is on disk when this returns."""
        for name in _PER_EPOCH:
            self._add(f"epoch/{name}", getattr(row, name), step)
        self._writer.flush()

    def close(self) -> None:
        """The file is whole."""
        self._writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        from tensorboardX.summary import scalar

        self._write(step=step, summary=scalar(name, value))

    def _write(self, **what) -> None:
        self._writer.write(self._event(wall_time=time.time(), **what).SerializeToString())


def _next_number(folder: epath.Path) -> int:
    """Seconds since 1970, as is usual, or more: TensorBoard reads the files by name, and a clock may be set back."""
    numbers = [path.name.removeprefix(_PREFIX)[:10] for path in folder.iterdir() if path.name.startswith(_PREFIX)]
    return max(int(time.time()), *(int(number) + 1 for number in numbers if number.isdecimal()), 0)


class NoEventFiles(EventFiles):
    """Without --tensorboard, and in the other processes."""

    def __init__(self): ...

    def add_chunk(self, step: int, loss: float) -> None: ...

    def add_epoch(self, step: int, row: Epoch) -> None: ...

    def close(self) -> None: ...
