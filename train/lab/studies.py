"""Comparisons that belong together, by name: `python train/compare.py --workdir FOLDER --study NAME`.

A study is nothing but flags of that command, a set for each comparison, in the order in which they are worth having.
All was written down before the first run. Changed since, after softmax regression, the MLP along the cosine and three
runs of VGG11: the order, so that VGG11 at a constant rate came first, from Glorot's and from He's weights.

**ablation: which parts of Gravity matter?** Each arm takes one away or gives it to SGD with momentum. In all, V_0 adds
normal noise of 2.83 alpha to each weight (beta 0.9, first_step 1, a constant learning rate), so momentum with its noise
starts from weights with N(0, 0.0283^2) added. A warm-up takes most of V_0 away, as its first steps are small: with half
an epoch of the digits' 41 steps 0.6 alpha remain. So the arms without V_0 are told apart at the constant rate. AdamW
has PyTorch's weight decay. With group norm the weights are Glorot's. Softmax regression has no hidden layer, and one
setting. Accuracies to count epochs to are the datasets' (`rules.py`).
"""

import dataclasses
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
ABLATION = [
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


def expanded(options: CompareOptions) -> list[CompareOptions]:
    """The flags of each comparison of `options.study`, on `options.datasets`; UsageError for flags that it sets."""
    own = ("workdir", "datasets", "data_dir", "study", "storage", "list_only", "report_only")
    for field in dataclasses.fields(CompareOptions):
        if field.name not in own and (value := getattr(options, field.name)) != field.default:
            raise UsageError(f"{flag(field.name)} is {value}, which --study {options.study} sets: leave one out.")
    return [
        dataclasses.replace(
            options,
            study=None,
            optimizers=tuple(arms.values()),
            settings=(*SETTINGS[setting], *SCHEDULES[schedule]),
            **WORKLOADS[workload] | PROTOCOL,
        )
        for workload, setting, schedule, arms in ABLATION
        if WORKLOADS[workload]["datasets"][0] in options.datasets
    ]
