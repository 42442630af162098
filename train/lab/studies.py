"""Comparisons that belong together, by name: `python train/compare.py --workdir FOLDER --study NAME`.

A study is nothing but flags of that command, a set for each comparison, in the order in which they are worth having.
All was written down before the first run. Changed since, in the ablation, after softmax regression, the MLP along the
cosine and three runs of VGG11: the order, so that VGG11 at a constant rate came first, from Glorot's and He's weights.

**ablation: which parts of Gravity matter?** Each arm takes one away or gives it to SGD with momentum. In all, V_0 adds
normal noise of 2.83 alpha to each weight (beta 0.9, first_step 1, a constant learning rate), so momentum with its noise
starts from weights with N(0, 0.0283^2) added. A warm-up takes most of V_0 away, as its first steps are small: with half
an epoch of the digits' 41 steps 0.6 alpha remain. So the arms without V_0 are distinguished at the constant rate. AdamW
has PyTorch's weight decay. With group norm the weights are Glorot's. Softmax regression has no hidden layer, and one
setting. Accuracies to count epochs to are the datasets' (`rules.py`).

**width: is it alpha, or alpha beside the weights, that decides who leaves the chance level?** Glorot's weights have a
standard deviation that falls as the square root of the width. So alpha 0.01, the paper's, is compared with an alpha
that keeps full width's ratio to the weights, at the paper's other settings, constant rate and first_step 0 included,
with momentum and Gravity from rest below and He's weights above. Rates are three, since the paper's is known.

**baselines: who is best where all train?** He's weights, group norm, random crops and mirror images, a cosine with a
warm-up, each optimizer with two values of weight decay. For CPU cores (one and a half hours of one): VGG11 at an
eighth of its width, 4 epochs of 7,500 pictures of CIFAR-10. In a pilot, momentum at the trainer's rate had a validation
accuracy of 0.46 after 5 epochs of 10,000 and still rose; the size is what the time allows. Each entrant has five rates
and up to four more until the best lies inside.

**baselines-gpu: the same at half of VGG16's width**, 20 epochs of CIFAR-10 and CIFAR-100 (fine): 240 runs that need a
GPU. Before the first, a pilot on that card should check the width and the epochs: momentum must reach 0.85 on CIFAR-10.

**start: is Gravity's early lead in the paper its initialization?** The first 10 epochs of the paper's own cell, VGG16
at full width on CIFAR-100 (fine), with its batches and constant rates: 42 runs that need a GPU. V_0 adds 1.92 alpha to
each weight there (first_step 0), so Adam with its noise starts from weights with N(0, 0.0192^2) added.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from lab.options import CompareOptions, label_of
from trainer.config import UsageError, flag

Arms = Mapping[str, tuple[str, ...]]  # by name: the entrants of which the best in the search counts

MAIN_ARMS: Arms = {
    "Gravity": ("gravity",),
    "momentum": ("momentum",),
    "momentum, V_0's noise": ("momentum:init_noise=0.0283",),
    "from rest": ("gravity:alpha=0",),
    "damping off": ("gravity:max_step_grad=none",),
}
OTHER_ARMS: Arms = {
    "from rest, damping off": ("gravity:alpha=0,max_step_grad=none",),
    "momentum, clipped": ("momentum:clip_norm=1",),
    "Gravity, clipped": ("gravity:clip_norm=1",),
    "AdamW": ("adam:weight_decay=0.01",),
    "m = k rms": tuple(f"gravity:max_step_grad=rms,max_step_grad_factor={k}" for k in (1, 3, 10)),
}
ARMS: Arms = {**MAIN_ARMS, **OTHER_ARMS}
SETTINGS = {"glorot": (), "he": ("init=he",), "group norm": ("norm=group",)}
SCHEDULES = {"constant": (), "cosine": ("schedule=cosine", "warmup_epochs=0.5")}
WORKLOADS: dict[str, dict[str, Any]] = {
    "softmax": {"datasets": ("digits",), "model": "softmax", "seeds": 10},
    "mlp": {"datasets": ("digits",), "model": "mlp", "seeds": 10},
    "vgg11": {"datasets": ("digits",), "model": "vgg11", "seeds": 10},
    "vgg16": {"datasets": ("cifar10",), "model": "vgg16", "limit": 15_000, "epochs": 4, "seeds": 5},
}
PROTOCOL: dict[str, Any] = {"rates": 7, "widen": 4, "search_seeds": 3}
_ABLATION = [
    ("softmax", "glorot", "cosine", ARMS),
    ("mlp", "glorot", "cosine", ARMS),
    ("vgg11", "glorot", "constant", MAIN_ARMS),
    ("vgg11", "he", "constant", MAIN_ARMS),
    ("mlp", "glorot", "constant", ARMS),
    ("mlp", "he", "constant", ARMS),
    ("vgg11", "group norm", "constant", MAIN_ARMS),
    *[("vgg11", setting, "cosine", MAIN_ARMS) for setting in ("he", "glorot", "group norm")],
    *[("mlp", setting, "cosine", ARMS) for setting in ("he", "group norm")],
    *[("vgg11", setting, schedule, OTHER_ARMS) for schedule in SCHEDULES for setting in SETTINGS],
    ("softmax", "glorot", "constant", ARMS),
    ("mlp", "group norm", "constant", ARMS),
    *[("vgg16", setting, schedule, ARMS) for schedule in ("cosine", "constant") for setting in SETTINGS],
]

WIDTHS = {"vgg11": (0.125, 0.25, 0.5), "vgg16": (0.125, 0.25, 0.5, 1.0)}


def scaled_alpha(width: float) -> float:
    """The alpha that has full width's ratio, that of 0.01, to the standard deviation of Glorot's weights."""
    return round(0.01 / width**0.5, 4)


def _alpha(*values: float) -> tuple[str, ...]:
    return tuple(f"gravity:alpha={value},first_step=0" for value in values)


WIDTH_ARMS: Arms = {
    "Gravity, alpha 0.01": _alpha(0.01),
    "Gravity, alpha scaled": _alpha(*(scaled_alpha(width) for width in WIDTHS["vgg16"] if width < 1)),
    "from rest": _alpha(0),
    "momentum": ("momentum",),
    "momentum, He's weights": ("momentum:init=he",),
}
BASELINE_ARMS: Arms = {
    arm: tuple(f"{name}:weight_decay={decay}" for decay in decays)
    for arm, name, decays in (
        ("Gravity", "gravity", (0.0005, 0.005)),
        ("momentum", "momentum", (0.0005, 0.005)),
        ("Nesterov", "nesterov", (0.0005, 0.005)),
        ("AdamW", "adam", (0.01, 0.1)),
        ("RMSProp", "rmsprop", (0.01, 0.1)),
    )
}
START_ARMS: Arms = {
    "Gravity": ("gravity:first_step=0",),
    "from rest": _alpha(0),
    "damping off": ("gravity:first_step=0,max_step_grad=none",),
    "momentum": ("momentum",),
    "momentum, He's weights": ("momentum:init=he",),
    "Adam": ("adam",),
    "Adam, V_0's noise": ("adam:init_noise=0.0192",),
}


def _ablation() -> Iterator[dict[str, Any]]:
    for workload, setting, schedule, arms in _ABLATION:
        settings = (*SETTINGS[setting], *SCHEDULES[schedule])
        yield {"optimizers": (*entrants(arms),), "settings": settings, **WORKLOADS[workload], **PROTOCOL}


def _width() -> Iterator[dict[str, Any]]:
    for workload, widths in WIDTHS.items():
        for width in widths:
            named = (*_alpha(*dict.fromkeys((0.01, scaled_alpha(width))), 0), "momentum", "momentum:init=he")
            size = {"width": width, "rates": 3, "widen": 0, "search_seeds": 3}
            yield {**WORKLOADS[workload], **size, "optimizers": named}


def _baselines(warmup_epochs: float, **size: Any) -> dict[str, Any]:
    settings = ("init=he", "norm=group", "augment=crop-flip", "schedule=cosine", f"warmup_epochs={warmup_epochs}")
    return {"optimizers": (*entrants(BASELINE_ARMS),), "settings": settings, "seeds": 5, **size}


def entrants(arms: Arms) -> list[str]:
    """As the command line has them."""
    return [text for texts in arms.values() for text in texts]


def entrants_of(arms: Arms) -> dict[str, str]:
    """The arm of each entrant, by the entrant's name in the runs."""
    return {label_of(text): arm for arm, texts in arms.items() for text in texts}


@dataclasses.dataclass(frozen=True)
class Study:
    title: str
    arms: Arms
    comparisons: tuple[dict[str, Any], ...]


_ON_CPU = {"model": "vgg11", "epochs": 4, "limit": 7_500, "batch_size": 64, "rates": 5, "widen": 4, "search_seeds": 3}
_START = {"datasets": ("cifar100_fine",), "model": "vgg16", "width": 1.0, "epochs": 10, "batch_size": 128}
_START |= {"optimizers": (*entrants(START_ARMS),), "rates": 3, "widen": 0, "search_seeds": 1, "seeds": 3}
_ON_GPU = {"model": "vgg16", "width": 0.5, "epochs": 20, "rates": 7, "search_seeds": 1}
STUDIES = {
    "ablation": Study("Which parts of Gravity matter?", ARMS, tuple(_ablation())),
    "width": Study("Does alpha have to follow the width?", WIDTH_ARMS, tuple(_width())),
    "baselines": Study(
        "Who is best where all train?", BASELINE_ARMS, (_baselines(0.5, datasets=("cifar10",), **_ON_CPU),)
    ),
    "baselines-gpu": Study(
        "Who is best where all train?",
        BASELINE_ARMS,
        tuple(_baselines(1.0, datasets=(dataset,), **_ON_GPU) for dataset in ("cifar10", "cifar100_fine")),
    ),
    "start": Study("Is Gravity's early lead in the paper its initialization?", START_ARMS, (_START,)),
}


def expanded(options: CompareOptions) -> list[CompareOptions]:
    """The flags of each comparison of `options.study` on `options.datasets`; UsageError for flags that it sets."""
    own = ("workdir", "datasets", "data_dir", "study", "storage", "list_only", "report_only")
    for field in dataclasses.fields(CompareOptions):
        if field.name not in own and (value := getattr(options, field.name)) != field.default:
            raise UsageError(f"{flag(field.name)} is {value}, which --study {options.study} sets: leave one out.")
    every = STUDIES[str(options.study)].comparisons
    if not (chosen := [flags for flags in every if flags["datasets"][0] in options.datasets]):
        known = " ".join(dict.fromkeys(flags["datasets"][0] for flags in every))
        given = " ".join(options.datasets)
        raise UsageError(f"--datasets is {given}, on which --study {options.study} has nothing; it has {known}.")
    return [dataclasses.replace(options, study=None, **flags) for flags in chosen]
