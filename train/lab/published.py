"""The runs that the paper's authors published, as frames: `epochs()` and `tuning()`.

The numbers are facts taken from the result archives that Dariush Bahrami and Sadegh Pouriyan Zadeh published with their
code (github.com/dariush-bahrami/gravity.optimizer, state of July 2021); the paper is arXiv 2101.09192. None of their
code is here. In train/paper, `published_histories.csv` holds the 30 runs of Figures 10-19, `published_tuning.csv` 28
earlier runs of Gravity with the authors' comment on each. One run per cell (dataset, model, optimizer); no seed was
recorded.

The protocol of the 30 runs: Keras' VGG16 and VGG19 for 32 x 32 pictures, glorot-uniform kernels, no dropout and no
normalisation; pixels divided by 255; MNIST and Fashion-MNIST with one channel, resized from 28 x 28 inside the model;
the training set reshuffled every epoch; batches of 128, the last partial one kept; 100 epochs; float32. `loss` and
`accuracy` are running means over the epoch, `val_loss` and `val_accuracy` are over the whole test set after it.
Gravity: alpha 0.01, beta 0.9, t = 0 at the first update.
"""

import functools
import pathlib

import pandas as pd

METRICS = ["loss", "accuracy", "val_loss", "val_accuracy"]
CELL = ["dataset", "model", "optimizer"]
CLASSES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100_coarse": 20, "cifar100_fine": 100}
FOLDER = pathlib.Path(__file__).parents[1] / "paper"


@functools.cache
def epochs() -> pd.DataFrame:
    """The 30 benchmark runs, a row per epoch: `CELL`, epoch, `METRICS`, learning_rate, num_outputs, run and mark.

    `mark` is empty, but "20-way run" for ("cifar100_fine", "vgg19", "gravity"): its last layer is 20 wide, as for the
    coarse labels, and its first epoch's loss, 2.87, fits that (chance is ln 20 = 3.00; the other fine-label runs, where
    chance is ln 100 = 4.61, end their first epoch between 4.35 and 4.48). It did not train on the 100 fine labels and
    is not comparable with the others.
    """
    found = pd.read_csv(FOLDER / "published_histories.csv")
    found["run"] = "published " + found["dataset"] + " " + found["model"] + " " + found["optimizer"]
    wrong = found["num_outputs"] != found["dataset"].map(CLASSES)
    found["mark"] = (found["num_outputs"].astype(str) + "-way run").where(wrong, "")
    return found.assign(whose="published", study=False, departures="", sizes="", comparable=~wrong, seed=-1)


def ends() -> pd.DataFrame:
    """The last epoch of each, by `CELL`."""
    return epochs().groupby(CELL).last()


@functools.cache
def tuning() -> pd.DataFrame:
    """The 28 runs of the authors' tuning study, in the order of their notes."""
    return pd.read_csv(FOLDER / "published_tuning.csv", keep_default_na=False)
