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
warm-up, each optimizer with two values of weight decay: 240 runs that need a GPU. Before the first
run, a pilot on that card should check the width and the epochs: momentum must reach 0.85 on CIFAR-10.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from lab.options import CompareOptions
from trainer.config import UsageError, flag

MAIN_ARMS = {
    "Gravity": "gravity",
    "momentum": "momentum",
    "momentum, V_0's noise": "momentum:init_noise=0.0283",
    "from rest": "gravity:alpha=0",
    "damping off": "gravity:max_step_grad=none",
}
OTHER_ARMS = {
    "from rest, damping off": "gravity:alpha=0,max_step_grad=none",
    "momentum, clipped": "momentum:clip_norm=1",
    "Gravity, clipped": "gravity:clip_norm=1",
    "AdamW": "adam:weight_decay=0.01",
    "m = 1 rms": "gravity:max_step_grad=rms,max_step_grad_factor=1",
    "m = 3 rms": "gravity:max_step_grad=rms,max_step_grad_factor=3",
    "m = 10 rms": "gravity:max_step_grad=rms,max_step_grad_factor=10",
}
ARMS = MAIN_ARMS | OTHER_ARMS
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
DECAYS = {
    "gravity": (0.0005, 0.005),
    "momentum": (0.0005, 0.005),
    "nesterov": (0.0005, 0.005),
    "adam": (0.01, 0.1),
    "rmsprop": (0.01, 0.1),
}


def alphas(width: float) -> tuple[float, ...]:
    """The paper's, and the one in full width's ratio to the standard deviation of Glorot's weights."""
    return tuple(dict.fromkeys((0.01, round(0.01 / width**0.5, 4))))


def _ablation() -> Iterator[dict[str, Any]]:
    for workload, setting, schedule, arms in _ABLATION:
        settings = (*SETTINGS[setting], *SCHEDULES[schedule])
        yield {"optimizers": tuple(arms.values()), "settings": settings, **WORKLOADS[workload], **PROTOCOL}


def _width() -> Iterator[dict[str, Any]]:
    for workload, widths in WIDTHS.items():
        for width in widths:
            arms = [f"gravity:alpha={alpha},first_step=0" for alpha in (*alphas(width), 0)]
            arms += ["momentum", "momentum:init=he"]
            size = {"width": width, "rates": 3, "widen": 0, "search_seeds": 3}
            yield {**WORKLOADS[workload], **size, "optimizers": tuple(arms)}


def _baselines() -> Iterator[dict[str, Any]]:
    for dataset in ("cifar10", "cifar100_fine"):
        yield {
            "datasets": (dataset,),
            "model": "vgg16",
            "width": 0.5,
            "epochs": 20,
            "optimizers": tuple(f"{name}:weight_decay={decay}" for name, both in DECAYS.items() for decay in both),
            "settings": ("init=he", "norm=group", "augment=crop-flip", "schedule=cosine", "warmup_epochs=1"),
            "rates": 7,
            "search_seeds": 1,
            "seeds": 5,
        }


STUDIES = {"ablation": tuple(_ablation()), "width": tuple(_width()), "baselines": tuple(_baselines())}


def expanded(options: CompareOptions) -> list[CompareOptions]:
    """The flags of each comparison of `options.study` on `options.datasets`; UsageError for flags that it sets."""
    own = ("workdir", "datasets", "data_dir", "study", "storage", "list_only", "report_only")
    for field in dataclasses.fields(CompareOptions):
        if field.name not in own and (value := getattr(options, field.name)) != field.default:
            raise UsageError(f"{flag(field.name)} is {value}, which --study {options.study} sets: leave one out.")
    every = STUDIES[str(options.study)]
    if not (chosen := [flags for flags in every if flags["datasets"][0] in options.datasets]):
        known = " ".join(dict.fromkeys(flags["datasets"][0] for flags in every))
        given = " ".join(options.datasets)
        raise UsageError(f"--datasets is {given}, on which --study {options.study} has nothing; it has {known}.")
    return [dataclasses.replace(options, study=None, **flags) for flags in chosen]
