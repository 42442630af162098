"""A run's configuration: the flags of `python train/main.py`, defaults per dataset, checks of values; and the errors.

Nothing heavy is imported here, so that `--help` and a mistyped flag are answered at once. `flags` parses the arguments.
"""

import dataclasses
import os
import pathlib
import re
import typing
from typing import Any, Literal

DatasetName = Literal["digits", "mnist", "fashion_mnist", "cifar10", "cifar100_coarse", "cifar100_fine"]
# Any set of TFDS: its name, optionally with its configuration and label.
TFDS_SET = re.compile(r"tfds:(?P<name>\w+(/[\w.+-]+)?)(:(?P<label>\w+))?")
ModelName = Literal["vgg11", "vgg16", "vgg19", "mlp", "softmax"]
OptimizerName = Literal[
    "gravity", "sgd", "momentum", "adagrad", "adadelta", "rmsprop", "nesterov", "adam", "adamax", "nadam", "amsgrad"
]
MaxStepGradName = Literal["inverse_max_abs", "inverse_range", "inverse_std", "max", "max_abs", "none", "rms"]
VelocityName = Literal[
    "normal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "random_normal",
    "random_uniform",
    "truncated_normal",
]

# The paper's Table 5: dataset -> (VGG16 Adam, VGG16 RMSProp, VGG19 Adam, VGG19 RMSProp). Gravity has 0.1 everywhere.
TABLE_5 = {
    "mnist": (2.5e-4, 1e-4, 2.5e-4, 2.5e-5),
    "fashion_mnist": (2.5e-4, 5e-5, 1e-5, 5e-5),
    "cifar10": (1e-4, 5e-5, 1e-4, 2.5e-5),
    "cifar100_coarse": (1e-4, 2.5e-4, 7.5e-5, 1e-4),
    "cifar100_fine": (1e-4, 1e-4, 5e-5, 1e-4),
}
# Where Table 5 has no entry: for the digits and VGG11, and Keras' defaults (not tuned) for the other optimizers.
OTHER_LEARNING_RATES = {
    "gravity": 0.1,
    "adam": 2.5e-4,
    "rmsprop": 1e-4,
    **dict.fromkeys(("sgd", "momentum", "nesterov"), 0.01),
    **dict.fromkeys(("adagrad", "adadelta", "adamax", "nadam", "amsgrad"), 0.001),
}

# Not part of the paper's runs; the defaults have no effect.
RECIPE = (
    *("norm", "schedule", "warmup_epochs", "final_learning_rate", "weight_decay", "clip_norm", "clip_value"),
    *("accumulate", "init", "init_noise", "augment", "max_step_grad_factor"),
)
# These identify a run: `--resume` refuses other values (see `same_run`). Other flags may differ.
SAME_RUN = (
    *("dataset", "model", "width", "optimizer", "learning_rate", "alpha", "beta", "first_step"),
    *("max_step_grad", "velocity", "batch_size", "seed", "limit", "precision", *RECIPE),
)


FLOAT32_TINY, FLOAT32_MAX = 1.1754944e-38, 3.4028234e38  # normal numbers
_FLOAT32 = "1.2e-38 to 3.4e38"


class UserError(Exception):
    """An error that the user can fix; the message is one line and names the flag, its value and the fix."""

    exit_code = 1


class UsageError(UserError):
    """An invalid flag."""

    exit_code = 2


class RunAgain(UserError):
    """The run was interrupted and nothing is wrong with it: the same command with --resume resumes it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a VGG with Gravity or another optimizer, data-parallel over all devices. Without flags: the digits."""

    dataset: str = "digits"
    """digits (they come with scikit-learn), mnist, fashion_mnist, cifar10, cifar100_coarse, cifar100_fine, or another
    image set of tensorflow-datasets: tfds:NAME or tfds:NAME:LABEL, such as tfds:kmnist (see --data-dir)."""
    model: ModelName | None = None
    """mlp: VGG's dense layers on the pictures as they are. softmax: softmax regression, which has no width. Default:
    vgg11 for the digits, vgg16 elsewhere."""
    width: float | None = None
    """Multiplier of all layer widths; 1.0 is the paper's. Default: 0.25 for the digits, 1.0 elsewhere."""
    norm: Literal["none", "group"] = "none"
    """group: GroupNorm before each ReLU, 32 groups at width 1 and fewer in narrow layers. The paper has none."""
    init: Literal["glorot", "he"] = "glorot"
    """Distribution of the initial kernels. glorot: Glorot's uniform one, the paper's. he: He's normal one, of variance
    2 / fan-in, truncated at two standard deviations. Biases start at 0."""
    init_noise: float = 0.0
    """Standard deviation of normal noise added to every initial weight, including biases."""
    augment: Literal["none", "crop-flip"] = "none"
    """crop-flip: training sees a random crop of each picture, padded by 4 reflected pixels on each side, and half of
    the time its mirror image. Evaluation sees the pictures as they are."""
    optimizer: OptimizerName = "gravity"
    """Gravity or one of the paper's Table 1, with Keras' default settings, as in the published runs."""
    learning_rate: float | None = None
    """Default: the paper's Table 5 for this dataset, model and optimizer (Gravity: 0.1); Keras' where it has none."""
    alpha: float | None = None
    """Gravity's alpha: size of the first steps due to the initial velocity. Default: 0.01."""
    beta: float | None = None
    """Gravity's beta: decay of the velocity. Default: 0.9."""
    first_step: int | None = None
    """Gravity's t at the first update: 1 as in Algorithm 1, 0 as in the published runs. Default: 1."""
    max_step_grad: MaxStepGradName | None = None
    """Gravity's rule for m. none: no damping. rms: --max-step-grad-factor times the gradient's root mean square. The
    others are from the authors' tuning study. Default: inverse_max_abs (Eq. 20)."""
    max_step_grad_factor: float | None = None
    """Factor of --max-step-grad rms. Default: 3."""
    velocity: VelocityName | None = None
    """Distribution of Gravity's initial velocity; all but the default are Keras initialisers, from the authors' tuning
    study, and take no --alpha. Default: normal, of standard deviation alpha / learning rate (Eq. 27)."""
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    """How the learning rate falls to --final-learning-rate by the last update: along half a cosine, linearly, or by two
    equal factors after 1/2 and 3/4 of the epochs (step)."""
    warmup_epochs: float = 0.0
    """Epochs, or a fraction of one, over which the learning rate rises from 0 at the start. Gravity's initial velocity
    is that of --learning-rate, the peak."""
    final_learning_rate: float | None = None
    """Where the schedule ends. Default: 0, and a hundredth of --learning-rate for step."""
    weight_decay: float | None = None
    """Decoupled, as in AdamW: each update also subtracts learning rate x this x weights, for kernels only (not biases
    or GroupNorm's scales)."""
    clip_norm: float | None = None
    """Scales the gradient of all weights together down to at most this Euclidean norm."""
    clip_value: float | None = None
    """Clips each entry of the gradient to [-this, this]."""
    accumulate: int = 1
    """Steps whose mean gradient makes one update, as with a larger batch: Gravity's rule takes one maximum. Steps left
    over at an epoch's end count in the next epoch; at the end of the run they are dropped."""
    epochs: int | None = None
    """Passes over the training set. Default: 25 for the digits, 100 elsewhere."""
    batch_size: int | None = None
    """Pictures per step over all devices together. Default: 32 for the digits, 128 elsewhere."""
    seed: int = 0
    """Seed of the initial weights, the initial velocity and the order of the pictures."""
    limit: int | None = None
    """Use only the first N training and the first N test examples."""
    data_dir: str | None = None
    """Folder of the prepared datasets. Default: tensorflow-datasets' own (~/tensorflow_datasets)."""
    workdir: str | None = None
    """Folder for the results; must not hold any yet, but see --resume. Default: a new folder under runs/."""
    resume: bool = False
    """Resume the run in --workdir from its last checkpoint, or start it if there is none."""
    checkpoint_every: int = 1
    """Epochs between two checkpoints. The last epoch is always checkpointed."""
    keep: int = 2
    """How many checkpoints are kept, the newest ones."""
    coordinator: str | None = None
    """Address of process 0, HOST:PORT, for a run of several processes. A Cloud TPU finds its own."""
    num_processes: int | None = None
    """Number of processes, with --coordinator. 1: this host alone, even on a Cloud TPU slice of several."""
    process_id: int | None = None
    """Number of this process, from 0, with --coordinator. Only process 0 writes files and shows progress."""
    precision: Literal["float32", "default", "bfloat16"] = "float32"
    """float32: true float32 products on every platform. default: the platform's fast default. bfloat16: bfloat16 layers
    with float32 parameters, loss and optimizer."""
    tensorboard: bool = False
    """Write event files for TensorBoard to WORKDIR/tensorboard: the columns of each epoch, the loss of each chunk."""
    watch: bool = False
    """Write to gradients.csv and gradients.png how strongly Gravity damps the gradient of each leaf at each epoch's end
    (max|G|, and the share of entries with |g| > m), and the norm of its velocity. Costs one gradient per epoch."""
    profile: bool = False
    """Write a jax.profiler trace of a chunk of steps to the workdir, before training; on a copy of the state."""
    compilation_cache: Literal["auto", "on", "off"] = "auto"
    """Keep compiled programs for the next start, in JAX_COMPILATION_CACHE_DIR or ~/.cache/gravity-optax. auto: not
    on a CPU, where reading them prints pages of warnings about processor features."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig(Config):
    """A run with every default filled in. Gravity's own flags are None with another optimizer."""

    model: ModelName
    width: float
    learning_rate: float
    epochs: int
    batch_size: int

    @property
    def folder(self) -> pathlib.Path:
        """The workdir, if it was given."""
        assert self.workdir is not None
        return pathlib.Path(self.workdir)


def resolve(config: Config) -> ResolvedConfig:
    """The same run with every default filled in, or a UsageError."""
    if config.dataset not in (names := typing.get_args(DatasetName)) and not TFDS_SET.fullmatch(config.dataset):
        raise UsageError(
            f"--dataset is {config.dataset}; it must be one of {', '.join(names)}, or tfds:NAME or tfds:NAME:LABEL."
        )
    digits = config.dataset == "digits"
    model = config.model or ("vgg11" if digits else "vgg16")
    defaults: dict[str, Any] = {
        "model": model,
        "width": 0.25 if digits else 1.0,
        "learning_rate": default_learning_rate(config.dataset, model, config.optimizer),
        "epochs": 25 if digits else 100,
        "batch_size": 32 if digits else 128,
    }
    gravity_only = {
        "alpha": 0.01,
        "beta": 0.9,
        "first_step": 1,
        "max_step_grad": "inverse_max_abs",
        "max_step_grad_factor": 3.0,
        "velocity": "normal",
    }
    if config.optimizer == "gravity":
        defaults |= gravity_only
        if config.max_step_grad != "rms":
            if (factor := config.max_step_grad_factor) is not None:
                raise UsageError(f"--max-step-grad-factor is {factor}; only --max-step-grad rms uses it: leave it out.")
            del defaults["max_step_grad_factor"]
        if config.velocity not in (None, "normal"):
            if config.alpha is not None:
                raise UsageError(f"--alpha is {config.alpha}, but --velocity is {config.velocity}: leave --alpha out.")
            del defaults["alpha"]
    else:
        for name in gravity_only:
            if getattr(config, name) is not None:
                raise UsageError(
                    f"{flag(name)} is {getattr(config, name)}, but --optimizer is {config.optimizer};"
                    f" only gravity uses it: leave {flag(name)} out."
                )
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    for name in ("data_dir", "workdir"):
        if (path := getattr(config, name)) is not None:
            missing[name] = path_given(flag(name), path)
    resolved = ResolvedConfig(**vars(config) | missing)
    _check_ranges(resolved)
    resolved = _with_schedule(resolved)
    _check_processes(resolved)
    if resolved.resume and resolved.workdir is None:
        raise UsageError("--resume needs --workdir, the folder of the run to resume.")
    return resolved


def same_run(config: Config) -> tuple[str, ...]:
    """The fields that must not change on `--resume`: SAME_RUN, and the epochs if the learning rate falls with them."""
    return SAME_RUN if config.schedule == "constant" else (*SAME_RUN, "epochs")


def as_recorded(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json with the defaults of RECIPE, which earlier versions did not record; {} if it is empty."""
    paper = resolve(Config())
    return {name: getattr(paper, name) for name in RECIPE} | config if config else {}


def default_learning_rate(dataset: str, model: str, optimizer: str) -> float:
    """The paper's Table 5 where it has an entry."""
    if optimizer not in ("adam", "rmsprop") or dataset not in TABLE_5 or model not in ("vgg16", "vgg19"):
        return OTHER_LEARNING_RATES[optimizer]
    return TABLE_5[dataset][2 * (model == "vgg19") + (optimizer == "rmsprop")]


def path_given(name: str, path: str) -> str:
    """The path that the flag `name` gives, with ~ expanded; UsageError for an invalid one."""
    if not path.strip():
        raise UsageError(f"{name} is empty; leave it out, or give a path (is a variable in it unset?).")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise UsageError(f"{name} is {path}, and there is no such user; for a folder of that name give ./{path}.")
    try:
        expanded.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} is {path!a}, a name that is not UTF-8; rename it.") from None
    return expanded


def local_path_given(name: str, path: str) -> str:
    """The same, for a path that must be on a local file system."""
    if "://" in path:
        raise UsageError(f"{name} is {path}; it must be a local folder: write the results there and copy them later.")
    return path_given(name, path)


def flag(field: str) -> str:
    """The flag of a field, as the user types it."""
    return "--" + field.replace("_", "-")


def brief(error: BaseException) -> str:
    """The first line of an error's message, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _check_ranges(config: ResolvedConfig) -> None:
    in_float32 = lambda x: FLOAT32_TINY <= x <= FLOAT32_MAX
    positive = f"a finite number above 0 in float32's range, {_FLOAT32}", in_float32
    nonnegative = (
        f"a finite number of at least 0 in float32's range, 0 or {_FLOAT32}",
        lambda x: x == 0 or in_float32(x),
    )
    whole = "between 1 and 1000000", lambda x: 1 <= x <= 10**6
    ranges = {
        "width": ("a finite number above 0 and at most 16", lambda x: 0 < x <= 16),
        "learning_rate": positive,
        "alpha": nonnegative,
        "beta": ("between 0 and 1", lambda x: 0 <= x <= 1),
        "first_step": ("between 0 and 1000000000", lambda x: 0 <= x <= 10**9),
        "max_step_grad_factor": positive,
        "init_noise": nonnegative,
        "epochs": whole,
        "batch_size": ("between 1 and 65536", lambda x: 1 <= x <= 2**16),
        "warmup_epochs": nonnegative,
        "final_learning_rate": nonnegative,
        "weight_decay": nonnegative,
        "clip_norm": positive,
        "clip_value": positive,
        "accumulate": whole,
        "limit": ("at least 1", lambda x: x >= 1),
        "seed": ("between 0 and 2**32 - 1", lambda x: 0 <= x < 2**32),
        "checkpoint_every": whole,
        "keep": whole,
        "num_processes": whole,
        "process_id": ("at least 0", lambda x: x >= 0),
    }
    for name, (text, valid) in ranges.items():
        value = getattr(config, name)
        if value is not None and not valid(value):
            raise UsageError(f"{flag(name)} is {value}; it must be {text}.")
    # Millions of draws from a normal distribution stay below 8 standard deviations.
    if config.alpha and not FLOAT32_TINY <= config.alpha / config.learning_rate <= FLOAT32_MAX / 8:
        raise UsageError(
            f"--alpha is {config.alpha}, and --learning-rate is {config.learning_rate}: alpha / learning rate, the"
            " standard deviation of the initial velocity, is outside float32's range; bring them closer together."
        )


def _with_schedule(config: ResolvedConfig) -> ResolvedConfig:
    """Fills in `final_learning_rate`; UsageError for flags that contradict each other."""
    if config.clip_norm is not None and config.clip_value is not None:
        raise UsageError(
            f"--clip-norm is {config.clip_norm} and --clip-value is {config.clip_value}: leave one of them out."
        )
    limit, share = (config.epochs / 2, "half of --epochs") if config.schedule == "step" else (config.epochs, "--epochs")
    if config.warmup_epochs >= limit:
        raise UsageError(f"--warmup-epochs is {config.warmup_epochs:g}; it must be below {share}, {limit:g}.")
    rate, final = config.learning_rate, config.final_learning_rate
    if config.schedule == "constant":
        if final is not None:
            raise UsageError(
                f"--final-learning-rate is {final}, but --schedule is constant: choose cosine, linear or step, or leave"
                " it out."
            )
        return config
    if final is None:
        return dataclasses.replace(config, final_learning_rate=rate / 100 if config.schedule == "step" else 0.0)
    if final > rate:
        raise UsageError(f"--final-learning-rate is {final}; it must be at most --learning-rate, {rate:g}.")
    if final == 0 and config.schedule == "step":
        raise UsageError("--final-learning-rate is 0; with --schedule step it must be above 0.")
    return config


def _check_processes(config: Config) -> None:
    together = ("coordinator", "num_processes", "process_id")
    given = [name for name in together if getattr(config, name) is not None]
    if not given or (given == ["num_processes"] and config.num_processes == 1):
        return
    missing = [name for name in together if name not in given]
    if missing:
        values = " and ".join(f"{flag(name)} is {getattr(config, name)}" for name in given)
        raise UsageError(f"{values}; {' and '.join(map(flag, missing))} must be given too.")
    assert config.coordinator is not None and config.num_processes is not None and config.process_id is not None
    if config.process_id >= config.num_processes:
        raise UsageError(
            f"--process-id is {config.process_id}; with --num-processes {config.num_processes}"
            f" it must be between 0 and {config.num_processes - 1}."
        )
    host, _, port = config.coordinator.rpartition(":")
    if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UsageError(f"--coordinator is {config.coordinator}; it must be HOST:PORT, for instance 10.0.0.2:8476.")
