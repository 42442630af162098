"""Comparisons that belong together, by name: `python train/compare.py --workdir FOLDER --study NAME`.

A study is nothing but flags of that command, a set for each comparison, in the order in which they are worth having.
All was written down before the first run; README.md says what for, and what was changed since.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lab.options import CompareOptions, Comparison, comparisons, label
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


def _gravity(*alphas: float) -> tuple[str, ...]:
    return tuple(f"gravity:alpha={alpha},first_step=0" for alpha in alphas)


WIDTH_ARMS: Arms = {
    "Gravity, alpha 0.01": _gravity(0.01),
    "Gravity, alpha scaled": _gravity(*(scaled_alpha(width) for width in WIDTHS["vgg16"] if width < 1)),
    "from rest": _gravity(0),
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
    "from rest": _gravity(0),
    "damping off": ("gravity:first_step=0,max_step_grad=none",),
    "momentum": ("momentum",),
    "momentum, He's weights": ("momentum:init=he",),
    "Adam": ("adam",),
    "Adam, V_0's noise": ("adam:init_noise=0.0192",),
}


def _ablation(workload: str, setting: str, schedule: str, arms: Arms) -> dict[str, Any]:
    settings = (*SETTINGS[setting], *SCHEDULES[schedule])
    return {"optimizers": _entrants(arms), "settings": settings, **WORKLOADS[workload], **PROTOCOL}


def _width(workload: str, width: float) -> dict[str, Any]:
    named = (*_gravity(*dict.fromkeys((0.01, scaled_alpha(width))), 0), "momentum", "momentum:init=he")
    return {**WORKLOADS[workload], "optimizers": named, "width": width, "rates": 3, "widen": 0, "search_seeds": 3}


def _baselines(warmup_epochs: float, **size: Any) -> dict[str, Any]:
    settings = ("init=he", "norm=group", "augment=crop-flip", "schedule=cosine", f"warmup_epochs={warmup_epochs}")
    return {"optimizers": _entrants(BASELINE_ARMS), "settings": settings, "seeds": 5, **size}


def _entrants(arms: Arms) -> tuple[str, ...]:
    return tuple(text for texts in arms.values() for text in texts)


def arm_of(arms: Arms) -> dict[str, str]:
    """The arm of each entrant, by the entrant's name in the runs."""
    return {label(text): arm for arm, texts in arms.items() for text in texts}


@dataclasses.dataclass(frozen=True)
class Study:
    title: str
    arms: Arms
    comparisons: list[dict[str, Any]]  # flags


_ON_CPU = {"model": "vgg11", "epochs": 4, "limit": 7_500, "batch_size": 64, "rates": 5, "widen": 4, "search_seeds": 3}
_ON_GPU = {"model": "vgg16", "width": 0.5, "epochs": 20, "rates": 7, "search_seeds": 1}
_START = {"datasets": ("cifar100_fine",), "model": "vgg16", "width": 1.0, "epochs": 10, "batch_size": 128}
_START |= {"optimizers": _entrants(START_ARMS), "rates": 3, "widen": 0, "search_seeds": 1, "seeds": 3}
_OVER_WIDTHS = [_width(workload, width) for workload, widths in WIDTHS.items() for width in widths]
_BASELINES = [_baselines(1.0, datasets=(dataset,), **_ON_GPU) for dataset in ("cifar10", "cifar100_fine")]
_WHO = "Who is best where all train?"
STUDIES = {
    "ablation": Study("Which parts of Gravity matter?", ARMS, [_ablation(*cell) for cell in _ABLATION]),
    "width": Study("Does alpha have to follow the width?", WIDTH_ARMS, _OVER_WIDTHS),
    "baselines": Study(_WHO, BASELINE_ARMS, [_baselines(0.5, datasets=("cifar10",), **_ON_CPU)]),
    "baselines-gpu": Study(_WHO, BASELINE_ARMS, _BASELINES),
    "start": Study("Is Gravity's early lead in the paper its initialization?", START_ARMS, [_START]),
}


def plan(options: CompareOptions) -> list[Comparison]:
    """The comparisons that the flags ask for: a study's on `options.datasets`, if they name one."""
    every = _expanded(options) if options.study else [options]
    return [comparison for flags in every for comparison in comparisons(flags)]


def _expanded(options: CompareOptions) -> list[CompareOptions]:
    """The flags of each comparison of the study; UsageError for flags that it sets."""
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
