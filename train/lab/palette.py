"""One colour and one marker for each optimizer, in every figure of the project."""

# Chosen by a search that kept all pairs apart both in full colour vision and for the three kinds of dichromats, and all
# colours apart from white. tests/notebooks/test_plots.py checks the distances, with room for a few more colours.
COLOURS = {
    "gravity": "#000000",
    "adam": "#1B27FF",
    "rmsprop": "#E64FFF",
    "momentum": "#008A00",
    "sgd": "#927F78",
    "nesterov": "#B0CE82",
    "adagrad": "#6B2A5E",
    "adadelta": "#E4C21C",
    "adamax": "#15D7E5",
    "nadam": "#490090",
    "amsgrad": "#0A3D04",
}
MARKERS = dict(zip(COLOURS, "o^sDvP<>Xph", strict=True))  # a second way to tell them apart


def colour(label: str) -> str:
    """The colour of an optimizer's name, or of a label "name, remark"."""
    return COLOURS[_name(label)]


def marker(label: str) -> str:
    """Matplotlib's marker of an optimizer's name, or of a label "name, remark"."""
    return MARKERS[_name(label)]


def _name(label: str) -> str:
    name = label.split(",")[0]
    if name not in COLOURS:
        raise ValueError(f"there is no optimizer {name!r}; a label starts with one of {', '.join(COLOURS)}.")
    return name
