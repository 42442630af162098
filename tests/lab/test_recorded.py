"""What is recorded under `notebooks/`, and every table, number and statement of a README that comes from it."""

import io
import math
import pathlib

import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from lab import arms, evidence, figures, frames, inference, published, runs, search, studies, tables
from lab.laboratory import split
from lab.options import CompareOptions, comparisons
from trainer import data
from trainer.config import default_learning_rate

ROOT = pathlib.Path(__file__).parents[2]
READMES = {"front": "README.md", "lab": "train/lab/RESULTS.md", "paper": "train/paper/README.md"}
TEXT = {page: " ".join((ROOT / path).read_text().split()) for page, path in READMES.items()}
STUDIES, MACHINES = ("ablation", "width", "baselines"), {"CPU": "comparison", "H100": "comparison_h100"}
RUNS = {folder: runs.read(ROOT / "notebooks" / folder / "runs.csv") for folder in (*STUDIES, *MACHINES.values())}
FRAMES = {folder: frames.of_comparison(made) for folder, made in RUNS.items()}
FIRST, ON_GPU = (frames.load(ROOT / "notebooks" / folder).epochs for folder in ("results", "results_h100"))


def read_table(file):
    found = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype={"settings": str})
    return found.fillna({"settings": ""} if "settings" in found else {})


RECORDED = {
    folder: {path.stem: read_table(path) for path in (ROOT / "notebooks" / folder / "report").glob("*.csv")}
    for folder in RUNS
}


def recomputed(folder):
    if folder not in STUDIES:
        return {table.__name__: table(FRAMES[folder]) for table in evidence.TABLES}
    made = {"arms": arms.cells, "rates": arms.rates, "pooled": arms.pooled}
    return {name: table(FRAMES[folder], studies.STUDIES[folder].arms) for name, table in made.items()}


@pytest.mark.parametrize("folder", RUNS)
def test_the_recorded_tables_are_those_of_the_runs_which_hold_no_times(folder):
    expected = recomputed(folder)
    assert expected.keys() == RECORDED[folder].keys()
    for name, table in expected.items():
        made = read_table(io.StringIO(table.to_csv(index=False)))
        pd.testing.assert_frame_equal(RECORDED[folder][name], made, check_dtype=False, rtol=1e-5, atol=2e-6)
    assert {outcome.seconds for outcome in RUNS[folder].values()} == {None}


# The studies

COSINE = "schedule=cosine warmup_epochs=0.5"
STARTS = ("momentum", "momentum, V_0's noise", "Gravity", "damping off", "from rest")
AT_ONE_RATE = ("momentum", "Gravity", "damping off", "from rest", "from rest, damping off", "Gravity, clipped")
LABELS = {
    "momentum": "SGD with momentum",
    "from rest": "Gravity from rest",
    "damping off": "Gravity, damping off",
    "from rest, damping off": "Gravity from rest, damping off",
    "momentum, V_0's noise": "momentum, $V_0$'s noise on the weights",
    "m = k rms": "Gravity, m = k times the gradient's rms",
}
CELLS = {key: found.set_index("arm") for key, found in RECORDED["ablation"]["arms"].groupby(["model", "settings"])}
SOFTMAX, MLP, MLP_GLOROT, MLP_HE = (
    CELLS[key] for key in (("softmax", COSINE), ("mlp", COSINE), ("mlp", ""), ("mlp", "init=he"))
)
KINDS = {"Glorot": "", "He": "init=he", "group norm": "norm=group"}
SCHEDULES = {"constant": "", "cosine": COSINE}
VGG11 = {
    f"{kind}, {schedule}": CELLS["vgg11", f"{setting} {more}".strip()]
    for kind, setting in KINDS.items()
    for schedule, more in SCHEDULES.items()
}
GLOROT, HE, NORMED = (VGG11[f"{kind}, constant"] for kind in KINDS)
TRAINED_ARMS = pd.concat([cell for name, cell in VGG11.items() if "Glorot" not in name])
NOISE = NORMED.loc["momentum, V_0's noise", ["minus_momentum", "p_holm"]]
NARROW, WIDE = (found.set_index("arm") for _, found in RECORDED["width"]["arms"].groupby("width"))
POOLED, BASELINES = RECORDED["ablation"]["pooled"].set_index("arm"), RECORDED["baselines"]["arms"].set_index("arm")
LOSSES = RECORDED["ablation"]["rates"].query("model == 'mlp' and settings == @COSINE and 3e-4 < momentum_rate < 0.4")
LOSSES = LOSSES.pivot(index="arm", columns="momentum_rate", values="loss").loc[[*AT_ONE_RATE]].dropna(axis=1)


def labelled(arm, *cells):
    return [LABELS.get(arm, arm), *cells]


def mean(row):
    return f"{row['accuracy']:.3f} ± {row['accuracy_sd']:.3f}"


def accuracy(row):
    return mean(row) + (f" ({row['failed']} of {row['seeds']} failed)" if row["failed"] else "")


def beside_momentum(row):
    if math.isnan(row["minus_momentum"]):
        return [accuracy(row), "", "", ""]
    interval = f"{row['minus_momentum']:+.3f} ({row['from']:+.3f} to {row['to']:+.3f})"
    return [accuracy(row), interval, f"{row['p_holm']:.2g}", f"{row['p_equivalent']:.2g}"]


def over_all_cells(arm):
    row = POOLED.loc[arm] if arm in POOLED.index else None
    pooled = ["", "", ""] if row is None else [f"{row.cells:.0f}", f"{row.minus_momentum:+.4f}", f"{row.p_holm:.2g}"]
    return [accuracy(MLP_GLOROT.loc[arm]), accuracy(MLP_HE.loc[arm]), *pooled]


def baselines():
    for arm, row in BASELINES.iterrows():
        decay = row["entrant"].rpartition(" ")[2]
        yield labelled(arm, decay, f"{row['learning_rate']:g}", *beside_momentum(row))


def differ(a, b):
    small = LOSSES[[rate for rate in LOSSES if rate < 0.2]]
    return (small.loc[a] / small.loc[b] - 1).abs().max()


def test_what_the_tables_do_not_show_of_the_studies_is_what_was_recorded():
    assert differ("Gravity", "damping off") < 0.01
    assert max(differ(arm, "momentum") for arm in ("Gravity", "damping off")) < 0.12
    rates = MLP["learning_rate"] * MLP["entrant"].map(lambda entrant: 0.1 if entrant.startswith("gravity") else 1)
    lower = rates.drop(["AdamW", "m = k rms"]) < 0.04
    assert {*lower.index[lower]} == {"momentum", "Gravity", "damping off", "from rest"}
    assert min(MLP_GLOROT["p_holm"].min(), MLP_HE["p_holm"].min()) > 0.05
    assert min(cell["p_holm"].min() for name, cell in VGG11.items() if "Glorot" in name) > 0.1
    assert [*TRAINED_ARMS.query("p_holm < 0.05").index] == ["momentum, V_0's noise"]
    equivalent = TRAINED_ARMS.query("p_equivalent < 0.05")["p_equivalent"]
    assert equivalent.round(2).to_dict() == {"from rest": 0.02, "damping off": 0.02}
    assert NORMED["learning_rate"]["momentum, V_0's noise"] == 10 * NORMED["learning_rate"]["momentum"]
    assert [bool(cell["counts"].all()) for cell in VGG11.values()] == [False] * 2 + [True] * 4
    edges = [{*found.index[~found["inside"].astype(bool)]} for found in (NARROW, WIDE)]
    assert edges == [{"momentum", "momentum, He's weights", "Gravity, alpha 0.01"}, {"momentum"}]
    reached = [found["reached"]["Gravity, alpha scaled"] for found in (NARROW, WIDE)]
    assert [*reached, WIDE["reached"]["Gravity, alpha 0.01"]] == [10] * 3
    assert BASELINES["inside"].all() and BASELINES["seeds"].sum() == 25


def test_a_hyperplane_separates_the_digits():
    digits = data.load("digits")
    part, _ = split(len(digits.train_labels))
    images, labels = digits.train_images[part].reshape(len(part), -1) / 255, digits.train_labels[part]
    assert LogisticRegression(C=1e6, max_iter=2000).fit(images, labels).score(images, labels) == 1


def test_the_recorded_searches_of_vggs_chose_rates_within_a_decade_of_the_trainers():
    finals = [trial for made in RUNS.values() for trial in made if trial.part == "final" and "vgg" in trial.model]
    own = [default_learning_rate(trial.dataset, trial.model, trial.optimizer.split(",")[0]) for trial in finals]
    assert all(0.099 < trial.learning_rate / rate < 10.1 for trial, rate in zip(finals, own, strict=True))


def test_the_figure_of_the_ablation_has_the_recorded_values():
    finals = arms.final_runs(FRAMES["ablation"], studies.ARMS)
    left, right = figures.draw_ablation(finals, RECORDED["ablation"]["rates"]).axes
    drawn = {line.get_label(): {round(x / 10, 5): y for x, y in line.get_xydata()} for line in left.lines}
    for arm in ("momentum", "Gravity", "damping off", "from rest", "Gravity, clipped"):
        assert [drawn[LABELS.get(arm, arm)][round(rate, 5)] for rate in LOSSES] == pytest.approx([*LOSSES.loc[arm]])
    seeds = [float(line.get_xdata().mean()) for line in right.lines if not line.get_label().startswith("_")]
    expected = pd.concat([GLOROT, HE, NORMED])["accuracy"]
    assert sorted(seeds) == pytest.approx(sorted(expected), abs=1e-5)
    assert [tick.get_text() for tick in right.get_yticklabels()].count("Gravity") == 3


@pytest.mark.parametrize(("study", "whole"), [("ablation", 10), ("width", 2), ("baselines", 1)])
def test_the_runs_of_a_study_are_the_plans_and_as_many_comparisons_are_whole_as_is_said(study, whole):
    options, made = CompareOptions("unused", study=study, datasets=("digits", "cifar10")), {*RUNS[study]}
    trials = [{*search.plan(one, RUNS[study])} for one in studies.plan(options)]
    assert made <= set().union(*trials) and sum(planned <= made for planned in trials) == whole


# The comparisons

# The entrants of the digits, and their names in the table of rates.
ENTRANTS = {
    "gravity": "Gravity, the paper's alpha and beta",
    "gravity:beta=0.99": "Gravity, beta 0.99",
    "gravity:alpha=0.1,beta=0.5": "Gravity, alpha 0.1, beta 0.5",
    "adam": "Adam",
    "rmsprop": "RMSProp",
    "momentum": "SGD with momentum",
}
(DIGITS,) = comparisons(CompareOptions("unused", optimizers=tuple(ENTRANTS)))
SCORES = {name: search.search(DIGITS, name, RUNS["comparison"]).scores for name in DIGITS.entrants}
ROWS = [
    *(("CPU", "digits"), ("H100", "fashion_mnist"), ("CPU", "cifar10"), ("H100", "cifar10")),
    *(("CPU", "cifar100_coarse"), ("CPU", "cifar100_fine"), ("H100", "cifar100_fine")),
]


def of(machine, dataset, optimizer):
    """Its search and its final runs."""
    frame = FRAMES[MACHINES[machine]]
    found = frame[(frame["dataset"] == dataset) & (frame["optimizer"] == optimizer)]
    return found[found["part"] == "search"], found[found["chosen"]]


def rates(optimizer):
    tested = of("CPU", "digits", optimizer)[1]["test_accuracy"]
    scores = [f"{SCORES[optimizer][step]:.2f}" for step in (-2, -1, 0, 1, 2)]
    return [*scores, f"{tested.mean():.3f} ± {tested.std():.3f}"]


def standing_of(machine, dataset):
    yield f"{frames.DATASET_NAMES[dataset].removeprefix('scikit-learn ')}, {machine}"
    for name in ("gravity", "adam", "rmsprop", "momentum"):
        searched, finals = of(machine, dataset, name)
        trained = (~finals["at_chance"]).sum()
        some = "" if trained == len(finals) else f" ({trained}/{len(finals)})"
        some = " (no rate trained)" if searched["at_chance"].all() and not trained else some
        yield f"{finals['test_accuracy'].mean():.3f} ± {finals['test_accuracy'].std():.3f}{some}"
    standings = RECORDED[MACHINES[machine]]["standings"].set_index(["dataset", "optimizer"])
    yield "{:+.3f} ({:+.3f} to {:+.3f})".format(*standings.loc[(dataset, "gravity"), ["minus adam", "from", "to"]])


BOTH = {at: [of(*at, name)[1] for name in ("gravity", "adam")] for at in ROWS}
LOST = {at: any(finals["at_chance"].any() for finals in both) for at, both in BOTH.items()}
TRAINED = [[finals["test_accuracy"].to_numpy() for finals in both] for at, both in BOTH.items() if not LOST[at]]
BEHIND, ALONE = [b.mean() - a.mean() for a, b in TRAINED], [inference.welch(*pair)["p"] for pair in TRAINED]
POOLED_P = inference.permutation_test(TRAINED)[1]
SHARED = [trial for trial in RUNS["comparison"] if trial.part == "final" and trial in RUNS["comparison_h100"]]
TWICE = {(t.dataset, t.optimizer, t.seed): [RUNS[at][t].test_accuracy for at in MACHINES.values()] for t in SHARED}
CHANCE = {"cifar10": 0.101, "cifar100_fine": 0.0101}
MOVED = [abs(a - b) for (dataset, *_), (a, b) in TWICE.items() if min(a, b) > CHANCE[dataset]]
GROWTHS = {machine: RECORDED[folder]["growths"].set_index(["few", "many"]) for machine, folder in MACHINES.items()}
CHANGES = {at: found.loc[("cifar10", "cifar100_fine"), ["change", "from", "to"]] for at, found in GROWTHS.items()}
SEARCHES = [of(machine, "cifar10", "gravity")[0].groupby("learning_rate") for machine in MACHINES]
SCORED = [score for found in SEARCHES for score in found["validation_accuracy"].mean()[[0.1, 0.3162]]]


def test_what_the_tables_do_not_show_of_the_comparisons_is_what_was_recorded():
    assert len(TRAINED) == 5
    for machine, rate in (("CPU", 0.3162), ("H100", 0.1)):
        assert {*BOTH[machine, "cifar10"][0]["learning_rate"]} == {rate}
        assert FRAMES[MACHINES[machine]].query("dataset == 'cifar100_fine'")["test_accuracy"].max() < 0.13


@pytest.mark.parametrize(("machine", "dataset"), ROWS)
def test_the_runs_of_a_comparison_are_its_plan_and_whole(machine, dataset):
    made = RUNS[MACHINES[machine]]
    (one,) = comparisons(CompareOptions("unused", datasets=(dataset,))) if dataset != "digits" else [DIGITS]
    assert {*search.plan(one, made)} == {trial for trial in made if trial.dataset == dataset}


# The paper's evaluation

ORDER = ["gravity", "adam", "rmsprop"]


def on_gpu(dataset, metric="val_accuracy"):
    """Our runs on VGG16 and the published ones: a frame each, with a column for each optimizer."""
    here = [all[(all["dataset"] == dataset) & (all["model"] == "vgg16")] for all in (ON_GPU, published.epochs())]
    return [epochs.pivot(index="epoch", columns="optimizer", values=metric)[ORDER] for epochs in here]


def beside(dataset, epoch, metric="val_accuracy", digits=3):
    ours, theirs = (values.loc[epoch] if epoch else values.max() for values in on_gpu(dataset, metric))
    return [f"{ours[name]:.{digits}f} / {theirs[name]:.{digits}f}" for name in ORDER]


def by_epoch(dataset, *epochs):
    return [[str(epoch or "the best of all"), *beside(dataset, epoch)] for epoch in epochs]


def first_epochs():
    names, before = frames.DATASET_NAMES | frames.MODEL_NAMES | figures.OPTIMIZER_NAMES, ""
    theirs = published.epochs().set_index([*published.CELL, "epoch"])
    in_order = FIRST.sort_values(published.CELL, key=lambda column: column.map([*names].index), kind="stable")
    for (*cell, epoch), found in in_order.groupby([*published.CELL, "epoch"], sort=False):
        row, label = theirs.loc[(*cell, epoch)], ", ".join(names[name] for name in cell)
        values = found.set_index("seed")["val_accuracy"].map("{:.3f}".format).reindex(range(3), fill_value="")
        last = "(20 outputs)" if row["mark"] else f"{row['val_accuracy']:.3f}"
        yield ["" if label == before else label, str(epoch), *values, last]
        before = label


LAST, THEIR_LAST = (values.loc[100] for values in on_gpu("cifar100_fine"))
AHEAD = [run["gravity"] - max(run["adam"], run["rmsprop"]) for run in (LAST, THEIR_LAST)]
DISTANCE = tables.distance(FIRST).dropna(subset="in spreads")
OUTSIDE = tables.beyond(DISTANCE, 2)
# One more value of the distribution of three lies within so many of their spreads in 95% of cases.
PREDICTED = stats.t.ppf(0.975, 2) * (1 + 1 / 3) ** 0.5


def test_what_is_said_of_the_evaluation_is_what_was_recorded():
    assert ON_GPU["comparable"].all() and {*ON_GPU["model"]} == {"vgg16"} and {*ON_GPU["seed"]} == {0}
    assert {*DISTANCE["epoch"]} == {1} and len(DISTANCE) == 15 * len(published.METRICS) and round(PREDICTED) == 5
    counted = OUTSIDE.groupby("optimizer")["dataset"]
    assert OUTSIDE["metric"].str.startswith("val_").all() and [*counted.size()] == [3, 5]
    where = {"gravity": {"cifar10", "cifar100_coarse"}, "rmsprop": {"mnist", "fashion_mnist", "cifar10"}}
    assert counted.unique().map(set).to_dict() == where


# What the READMEs say


@pytest.mark.parametrize(
    ("page", "rows"),
    [
        ("lab", [["", *(f"{10 * rate:.3g}" for rate in LOSSES)]]),
        ("lab", [labelled(arm, *(f"{loss:.3f}" for loss in LOSSES.loc[arm])) for arm in AT_ONE_RATE]),
        ("lab", [labelled(a, *beside_momentum(SOFTMAX.loc[a]), *beside_momentum(MLP.loc[a])) for a in MLP.index]),
        ("lab", [labelled(arm, *over_all_cells(arm)) for arm in MLP.index]),
        ("lab", [[name, *(accuracy(cell.loc[a]) for a in STARTS)] for name, cell in VGG11.items()]),
        ("lab", [labelled(arm, accuracy(NARROW.loc[arm]), accuracy(WIDE.loc[arm])) for arm in NARROW.index]),
        ("lab", baselines()),
        ("front", baselines()),
        ("lab", [[label, *rates(name)] for name, label in zip(SCORES, ENTRANTS.values(), strict=True)]),
        ("lab", [[*standing_of(*at)] for at in ROWS]),
        ("paper", by_epoch("cifar100_fine", 1, 2, 5, 10, 20, 50, 100, None)),
        ("paper", by_epoch("cifar10", 1, 2, 5, 10, 20, 29)),
        ("paper", [*first_epochs()]),
    ],
)
def test_a_table_is_what_was_recorded(page, rows):
    assert " ".join(" ".join(f"| {' | '.join(row)} |".split()) for row in rows) in TEXT[page]


@pytest.mark.parametrize(
    ("page", "said", "values"),
    [
        ("front", "accuracy of {} and momentum of {};", [mean(GLOROT.loc[arm]) for arm in ("Gravity", "momentum")]),
        ("front", "from He's, {} and {};", [mean(HE.loc[arm]) for arm in ("Gravity", "momentum")]),
        ("front", "with group norm, {} and {}.", [mean(NORMED.loc[arm]) for arm in ("Gravity", "momentum")]),
        ("lab", "momentum ends at {:.3f}", [SOFTMAX["loss"]["momentum"]]),
        ("lab", "at most {:.2f} of all, with 95% confidence", [max(*SOFTMAX["failed_to"], *MLP["failed_to"])]),
        ("lab", "Gravity's {:+.4f} has p = {:.2f}", POOLED.loc["Gravity", ["minus_momentum", "p"]]),
        ("lab", "momentum by {:.3f} ({:.3f} to {:.3f})", GLOROT.loc["Gravity", ["minus_momentum", "from", "to"]]),
        ("lab", "on its weights leads it by {:.3f}, and", [GLOROT["minus_momentum"]["momentum, V_0's noise"]]),
        ("lab", "and Gravity from rest by {:.2f}; p is", [GLOROT["minus_momentum"]["from rest"]]),
        ("lab", "Gravity is {:.3f} behind", [-VGG11["Glorot, cosine"]["minus_momentum"]["Gravity"]]),
        ("lab", "by {:+.3f} to {:+.3f}. One", TRAINED_ARMS.loc["Gravity", "minus_momentum"].agg(["min", "max"])),
        ("lab", "noise is {:.3f} behind momentum (Holm's p = {:.2f})", NOISE * [-1, 1]),
        ("lab", "p is {:.2f}, {:.2f} and {:.2f}", GLOROT["p"][["Gravity", "momentum, V_0's noise", "from rest"]]),
        ("lab", "at full width: {} and {}.", [studies.scaled_alpha(width) for width in (0.125, 0.25)]),
        ("lab", "{:.0f} and {:.0f} steps", [w["steps_to_target"]["Gravity, alpha scaled"] for w in (NARROW, WIDE)]),
        ("lab", "and {} of 10 seeds reach the target", [NARROW["reached"]["Gravity, alpha 0.01"]]),
        ("lab", "all do, after {:.0f} steps", [WIDE["steps_to_target"]["Gravity, alpha 0.01"]]),
        ("lab", "From rest {} and {} do.", [found["reached"]["from rest"] for found in (NARROW, WIDE)]),
        *((page, "Gravity ends {:.2f} to {:.2f} behind Adam", [min(BEHIND), max(BEHIND)]) for page in ("front", "lab")),
        ("front", "(p = {:.3f} pooled over five comparisons, in none alone below 0.05)", [POOLED_P]),
        ("lab", "(p from {:.2f} to {:.2f}), pooled p = {:.3f}", [min(ALONE), max(ALONE), POOLED_P]),
        ("lab", "scored {:.3f} and {:.3f} on the CPU, with one seed, and {:.3f} and {:.3f} on the H100", SCORED),
        ("lab", "by up to {:.2f} where both runs train", [max(MOVED)]),
        ("lab", "Adam with seed 100 on CIFAR-100 (fine) has {:.3f} and {:.3f}", TWICE["cifar100_fine", "adam", 100]),
        ("lab", "with seed 101 on CIFAR-10 {:.3f} and {:.3f}", TWICE["cifar10", "momentum", 101]),
        ("front", "by {:+.2f} ({:+.2f} to {:+.2f}) on the CPU", CHANGES["CPU"]),
        ("front", "CPU, by {:+.2f} ({:+.2f} to {:+.2f}) on an H100", CHANGES["H100"]),
        ("lab", "by {:+.2f} (95% interval {:+.2f} to {:+.2f})", CHANGES["CPU"]),
        ("lab", "it changes by {:+.2f} ({:+.2f} to {:+.2f})", CHANGES["H100"]),
        ("paper", "loss after 10 epochs is {}, {} and {}.", beside("cifar100_fine", 10, "loss", digits=2)),
        ("paper", "loss after 20 epochs is {}, {} and {}.", beside("cifar10", 20, "loss")),
        ("paper", "by {:.3f}, where the published run does by {:.3f}.", AHEAD),
        ("paper", "({}, {} and {} epochs)", on_gpu("cifar10")[0].count()),
        ("front", "{:.3f} with Gravity, {:.3f} with Adam and {:.3f} with RMSProp", LAST),
        ("front", "the published runs have {:.3f}, {:.3f} and {:.3f}.", THEIR_LAST),
        ("front", "{} of {} published", [len(DISTANCE) - len(tables.beyond(DISTANCE, PREDICTED)), len(DISTANCE)]),
        ("paper", "{} lie within two of our own spreads", [len(DISTANCE) - len(OUTSIDE)]),
    ],
)
def test_a_number_is_what_was_recorded(page, said, values):
    assert said.format(*values) in TEXT[page]
