"""The recorded studies, in `notebooks/{ablation,width,baselines}`, and what READMEs say of them."""

import pathlib
import re

import pandas as pd
import pytest

from lab import arms, figures, frames, runs, search, studies
from lab.options import CompareOptions, comparisons

ROOT = pathlib.Path(__file__).parents[2]
DATASETS = {"ablation": ("digits", "cifar10"), "width": ("digits", "cifar10"), "baselines": ("cifar10",)}
RUNS = {name: runs.read(ROOT / "notebooks" / name / "runs.csv") for name in DATASETS}
PAGE = (ROOT / "train" / "lab" / "README.md").read_text()
TEXT, FRONT = " ".join(PAGE.split()), (ROOT / "README.md").read_text()
COSINE = "schedule=cosine warmup_epochs=0.5"
DONE = {"softmax": "softmax regression", "mlp": "MLP"}  # cells whose final runs are told of, all along the cosine
WHOLE = {*((model, COSINE) for model in DONE), ("mlp", ""), ("mlp", "init=he")}
CHOSEN = [*dict.fromkeys(("momentum", *studies.ARMS))]
AT_ONE_RATE = ("momentum", "Gravity", "damping off", "from rest", "from rest, damping off", "Gravity, clipped")
STARTS = ("momentum", "momentum, V_0's noise", "Gravity", "damping off", "from rest")
LABELS = {"Gravity": "Gravity", "momentum": "SGD with momentum", "from rest": "Gravity from rest"} | {
    "damping off": "Gravity, damping off",
    "from rest, damping off": "Gravity from rest, damping off",
    "momentum, V_0's noise": "momentum, $V_0$'s noise on the weights",
    "m = k rms": "Gravity, m = k times the gradient's rms",
}


def table(study, name):
    path = ROOT / "notebooks" / study / "report" / f"{name}.csv"
    found = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"settings": str})
    return found.fillna({"settings": ""} if "settings" in found else {})


ARMS, RATES, POOLED = (table("ablation", name) for name in ("arms", "rates", "pooled"))


def markdown(rows):
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def label(arm):
    return LABELS.get(arm, arm)


def cell(frame, model, settings):
    return frame[(frame["model"] == model) & (frame["settings"] == settings)].set_index("arm")


def rate_table():
    """Training losses of the MLP by Gravity's learning rate."""
    losses = cell(RATES, "mlp", COSINE).reset_index().pivot(index="arm", columns="momentum_rate", values="loss")
    losses = losses[[rate for rate in losses if losses[rate]["momentum"] == losses[rate]["momentum"]]]
    losses = losses.dropna(axis=1, how="all")[[r for r in losses if 3e-4 < r < 0.4]].loc[list(AT_ONE_RATE)]
    head = [["", *(f"{10 * rate:.3g}" for rate in losses)], ["---", *["---:"] * losses.shape[1]]]
    return losses, markdown([*head, *([label(arm), *(f"{x:.3f}" for x in row)] for arm, row in losses.iterrows())])


def arm_table():
    """Test accuracies of the cells that are done."""
    rows = [["", *(text for name in DONE.values() for text in (name, "minus momentum", "p", "p, none"))]]
    rows.append(["---", *["---:"] * 8])
    for arm in CHOSEN:
        cells = [label(arm)]
        for model in DONE:
            row = cell(ARMS, model, COSINE).loc[arm]
            cells.append(accuracy(row))
            interval = f"{row['minus_momentum']:+.3f} ({row['from']:+.3f} to {row['to']:+.3f})"
            p = [f"{row[name]:.2g}" for name in ("p_holm", "p_equivalent")]
            cells += ["", "", ""] if arm == "momentum" else [interval, *p]
        rows.append(cells)
    return markdown(rows)


def start_table():
    """VGG11's test accuracies from both starts, with the runs that stayed at the chance level."""
    rows = [["VGG11, weights of", *map(label, STARTS)], ["---", *["---:"] * len(STARTS)]]
    for setting, name in (("", "Glorot"), ("init=he", "He")):
        found = cell(ARMS, "vgg11", setting).loc[list(STARTS)]
        assert (found["seeds"] == 10).all() and found["inside"].all()
        rows.append([name, *(accuracy(row) for _, row in found.iterrows())])
    return markdown(rows)


def pooled_table():
    """Test accuracies of the MLP at a constant rate, and the differences from momentum over all cells that count."""
    rows = [["", "MLP, Glorot", "MLP, He", "cells", "minus momentum", "p"], ["---", *["---:"] * 5]]
    for arm in CHOSEN:
        both = [cell(ARMS, "mlp", settings).loc[arm] for settings in ("", "init=he")]
        cells = [accuracy(row) for row in both]
        if arm == "momentum":
            rows.append([label(arm), *cells, "", "", ""])
        else:
            row = POOLED.set_index("arm").loc[arm]
            rows.append(
                [label(arm), *cells, f"{row['cells']:.0f}", f"{row['minus_momentum']:+.4f}", f"{row['p_holm']:.2g}"]
            )
    return markdown(rows)


def width_table():
    """VGG11's test accuracies by width, with the runs that stayed at the chance level."""
    found = table("width", "arms").set_index(["arm", "width"])
    widths = sorted({width for _, width in found.index})
    rows = [["", *(f"width {width:g}" for width in widths)], ["---", *["---:"] * len(widths)]]
    for arm in ("momentum", *studies.WIDTH_ARMS):
        if arm != "momentum" or len(rows) == 2:
            rows.append([label(arm), *(accuracy(found.loc[arm, width]) for width in widths)])
    return markdown(rows)


def baseline_table():
    """Test accuracies of each optimizer at its best learning rate and weight decay."""
    rows = [["", "weight decay", "learning rate", "test accuracy", "minus momentum", "p", "p, none"]]
    rows.append(["---", *["---:"] * 6])
    for _, row in table("baselines", "arms").iterrows():
        interval = f"{row['minus_momentum']:+.3f} ({row['from']:+.3f} to {row['to']:+.3f})"
        compared = [interval, *(f"{row[name]:.2g}" for name in ("p_holm", "p_equivalent"))]
        decay = row["entrant"].rpartition(" ")[2]
        cells = [label(row["arm"]), decay, f"{row['learning_rate']:g}", accuracy(row)]
        rows.append([*cells, *(["", "", ""] if row["arm"] == "momentum" else compared)])
    return markdown(rows)


def accuracy(row):
    failed = f" ({row['failed']} of {row['seeds']} failed)" if row["failed"] else ""
    return f"{row['accuracy']:.3f} ± {row['accuracy_sd']:.3f}{failed}"


@pytest.mark.parametrize("study", DATASETS)
def test_the_tables_are_those_of_the_runs(study):
    for name, made in (("arms", arms.cells), ("rates", arms.rates), ("pooled", arms.pooled)):
        found = made(frames.of_comparison(RUNS[study])[0], studies.STUDIES[study].arms).reset_index(drop=True)
        pd.testing.assert_frame_equal(table(study, name), found, check_dtype=False, rtol=1e-5)


def test_the_figure_has_the_recorded_values_and_leaves_out_arms_that_it_does_not_draw():
    runs = frames.of_comparison(RUNS["ablation"])[0]
    finals = arms.final_runs(runs, studies.ARMS)
    more = finals[(finals["model"] == "vgg11") & (finals["arm"] == "momentum")].assign(arm="AdamW")
    left, right = figures.draw_ablation(pd.concat([finals, more]), arms.rates(runs, studies.ARMS)).axes
    losses = rate_table()[0]
    drawn = {line.get_label(): line for line in left.lines}
    for arm in ("momentum", "Gravity", "damping off", "from rest", "Gravity, clipped"):
        x, y = drawn[label(arm)].get_data()
        shown = dict(zip((x / 10).round(6), y, strict=True))
        assert all(shown[round(rate, 6)] == pytest.approx(loss, rel=1e-5) for rate, loss in losses.loc[arm].items())
    seeds = [line.get_xdata() for line in right.lines if not line.get_label().startswith("_")]
    means = [cell(ARMS, "vgg11", setting)["accuracy"] for setting in ("", "init=he")]
    assert sorted(float(x.mean()) for x in seeds) == pytest.approx(sorted(pd.concat(means)), abs=1e-5)
    assert [tick.get_text() for tick in right.get_yticklabels()].count("Gravity") == 2


@pytest.mark.parametrize("study", DATASETS)
def test_recorded_runs_are_the_plans_and_hold_no_times(study):
    recorded, options = RUNS[study], CompareOptions("unused", study=study, datasets=DATASETS[study])
    plan = [comparison for flags in studies.expanded(options) for comparison in comparisons(flags)]
    assert set(recorded) <= {trial for comparison in plan for trial in search.known(comparison, recorded)}
    assert {outcome.seconds for outcome in recorded.values()} == {None}
    for comparison in plan:
        if (config := comparison.config).dataset == "digits" and (config.model, comparison.settings) in WHOLE:
            assert not search.undecided(comparison, recorded)
            assert set(search.known(comparison, recorded)) <= set(recorded)


def test_the_tables_of_the_readmes_are_what_was_recorded():
    losses, at_one_rate = rate_table()
    assert losses.shape == (len(AT_ONE_RATE), 7)
    for made in (at_one_rate, arm_table(), pooled_table(), start_table(), width_table(), baseline_table()):
        assert made in PAGE
    assert baseline_table() in FRONT
    both = [cell(ARMS, "vgg11", weights).loc[arm] for weights in ("", "init=he") for arm in ("Gravity", "momentum")]
    said = "Gravity has a test accuracy of {} and momentum of {}; from He's, {} and {}."
    assert said.format(*(accuracy(row).partition(" (")[0] for row in both)) in " ".join(FRONT.split())


def test_what_is_said_of_equal_rates_is_what_was_recorded():
    losses = rate_table()[0]
    small = losses[[rate for rate in losses if rate < 0.2]]
    differ = lambda a, b: (small.loc[a] / small.loc[b] - 1).abs().max()
    assert differ("Gravity", "damping off") < 0.01 and "differ by less than 1%" in TEXT
    assert max(differ(arm, "momentum") for arm in ("Gravity", "damping off")) < 0.12 and "by less than 12%" in TEXT
    last = losses[max(losses)]
    assert last["Gravity, clipped"] < last["momentum"] and last["from rest"] > 5 * last["from rest, damping off"]


def test_what_is_said_of_test_accuracies_is_what_was_recorded():
    done = ARMS[ARMS["model"].isin(DONE) & (ARMS["settings"] == COSINE)]
    assert done["failed"].sum() == 0 and set(done["failed_to"].round(2)) == {0.31} and done["counts"].all()
    assert done["inside"].all()
    softmax, mlp = cell(ARMS, "softmax", COSINE), cell(ARMS, "mlp", COSINE)
    assert f"momentum ends at {softmax.loc['momentum', 'loss']:.3f}" in TEXT
    factor = lambda row: 0.1 if row["entrant"].startswith("gravity") else 1
    rate = {arm: row["learning_rate"] * factor(row) for arm, row in mlp.drop(["AdamW", "m = k rms"]).iterrows()}
    lower = {arm for arm, value in rate.items() if value < 0.04}
    assert lower == {"momentum", "Gravity", "damping off", "from rest"}


def test_what_is_said_of_all_cells_is_what_was_recorded():
    constant = ARMS[(ARMS["model"] == "mlp") & (ARMS["settings"] != COSINE)]
    assert constant["failed"].sum() == 0 and constant["counts"].all() and constant["inside"].all()
    assert constant["p_holm"].min() > 0.05 and "no difference from momentum is significant in either" in TEXT
    pooled = POOLED.set_index("arm")
    assert set(pooled.index[pooled["p_holm"] < 0.05]) == {"AdamW", "from rest, damping off"}
    assert pooled["cells"].to_dict() == {arm: 5 if arm in STARTS else 4 for arm in pooled.index}
    assert f"Gravity's {pooled.loc['Gravity', 'minus_momentum']:+.4f} has p = {pooled.loc['Gravity', 'p']:.2f}" in TEXT


def test_what_is_said_of_the_start_is_what_was_recorded():
    glorot, he = cell(ARMS, "vgg11", ""), cell(ARMS, "vgg11", "init=he")
    assert not glorot["counts"].any() and he["counts"].all()
    lead = glorot["minus_momentum"]
    said = re.search(r"leads momentum by (0\.\d+) \((0\.\d+) to (0\.\d+)\), momentum with .*? by (0\.\d+)", TEXT)
    of_gravity = glorot.loc["Gravity"]
    assert [*map(float, said.groups())] == pytest.approx(
        [*of_gravity[["minus_momentum", "from", "to"]], lead["momentum, V_0's noise"]], abs=5e-4
    )
    assert lead["from rest"] < 0.3 * lead["Gravity"] and "from rest by 0.09" in TEXT
    assert lead["from rest"] == pytest.approx(0.09, abs=0.005)
    assert he["accuracy"].max() - he["accuracy"].min() < 0.01 and "within 0.01" in TEXT
    others = he.drop("momentum")
    assert (others["p_holm"] == 1).all() and others["p_equivalent"].min() > 0.4


def test_what_is_said_of_the_width_is_what_was_recorded():
    found = table("width", "arms").set_index(["width", "arm"])
    widths = sorted({width for width, _ in found.index})
    assert " and ".join(str(studies.scaled_alpha(width)) for width in widths) in TEXT
    for width in widths:
        rows = found.loc[width]
        scaled, paper, rest = rows.loc[["Gravity, alpha scaled", "Gravity, alpha 0.01", "from rest"], "accuracy"]
        assert scaled > paper > rest and rows.loc["Gravity, alpha scaled", "failed"] == 0
        assert 0 < rows.loc["momentum, He's weights", "accuracy"] - scaled < 0.02
    narrow, wide = (found.loc[width] for width in widths)
    steps = narrow["steps_to_target"]["Gravity, alpha scaled"], wide["steps_to_target"]["Gravity, alpha scaled"]
    assert "after {:.0f} and {:.0f} steps".format(*steps) in TEXT
    reached = [(width["reached"]["Gravity, alpha 0.01"], width["reached"]["from rest"]) for width in (narrow, wide)]
    assert reached == [(5, 3), (10, 4)]
    assert f"all do, after {wide['steps_to_target']['Gravity, alpha 0.01']:.0f} steps" in TEXT
    edges = [{*width.index[~width["inside"].astype(bool)]} for width in (narrow, wide)]
    assert edges == [{"momentum", "momentum, He's weights", "Gravity, alpha 0.01"}, {"momentum"}]


def test_what_is_said_of_the_baselines_is_what_was_recorded():
    found = table("baselines", "arms").set_index("arm")
    assert found["seeds"].sum() == 25 and not found["failed"].any() and found["inside"].all() and found["counts"].all()
    assert found["accuracy_sd"].idxmax() == "Gravity" and found.loc["Gravity", "p_equivalent"] > 0.05
    ours = [found.loc[arm, "p_holm"] for arm in ("Nesterov", "AdamW")]
    said = "momentum (Holm's p = {:.2f}), and so perhaps is AdamW ({:.2f})".format(*ours)
    assert said in TEXT and (found["p_holm"] < 0.05).sum() == 1
