"""What a run leaves behind in its folder: config.json, history.csv (a row per epoch, as it ends) and history.png."""

import csv
import dataclasses
import datetime
import json
import pathlib
import tempfile

from config import Config, UserError


@dataclasses.dataclass(frozen=True)
class Epoch:
    """A row of history.csv. Training figures are running means over the epoch's batches, as Keras reports them."""

    epoch: int  # from 1
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float  # training alone, without compilation and evaluation
    images_per_second: float  # likewise
    val_seconds: float


class Workdir:
    """The folder of one run. One that already holds a history is refused."""

    def __init__(self, config: Config):
        self.path = pathlib.Path(config.workdir or _fresh_name(config))
        self._history = self.path / "history.csv"
        if self._history.exists():
            raise UserError(
                f"--workdir is {self.path}, which holds the results of a run already; choose another folder."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            why = f"where nothing can be written ({error.strerror})"
            raise UserError(f"--workdir is {self.path}, {why}; choose another folder.") from error

    def write_config(self, config: Config, facts: dict) -> None:
        """config.json: the resolved values, and facts such as versions and devices."""
        text = json.dumps(dataclasses.asdict(config) | {"workdir": str(self.path)} | facts, indent=2)
        (self.path / "config.json").write_text(text + "\n")

    def write_epoch(self, row: Epoch) -> None:
        """Appends the row to history.csv, where it is safe from whatever comes next."""
        values = {k: v if isinstance(v, int) else f"{v:.6g}" for k, v in dataclasses.asdict(row).items()}
        with open(self._history, "a", newline="") as file:
            writer = csv.DictWriter(file, values)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(values)

    def write_figure(self, config: Config, history: list[Epoch]) -> None:
        """history.png: the paper's four panels (Figures 10-19)."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 6), layout="constrained")
        FigureCanvasAgg(figure)
        epochs = [row.epoch for row in history]
        panels = {"loss": "training loss", "accuracy": "training accuracy"}
        panels |= {"val_loss": "validation loss", "val_accuracy": "validation accuracy"}
        for axes, (field, label) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
            axes.plot(epochs, [getattr(row, field) for row in history], marker=".", label=config.optimizer)
            axes.set(xlabel="epoch", ylabel=label)
            axes.grid(alpha=0.3)
            axes.xaxis.get_major_locator().set_params(integer=True)
        model = f"{config.model} x {config.width:g}"
        figure.suptitle(f"{config.dataset}, {model}, {config.optimizer}, learning rate {config.learning_rate:g}")
        figure.savefig(self.path / "history.png", dpi=100)


def _fresh_name(config: Config) -> pathlib.Path:
    now = datetime.datetime.now()
    stem = f"{now:%Y%m%d-%H%M%S}-{config.dataset}-{config.model}-{config.optimizer}-seed{config.seed}"
    candidates = (pathlib.Path("runs") / f"{stem}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    return next(path for path in candidates if not path.exists())
