"""One colour for each optimizer, in every figure of the project."""

# The first eight are Okabe and Ito's, made to be told apart by colour-blind readers too.
COLOURS = {
    "gravity": "#d55e00",
    "adam": "#0072b2",
    "rmsprop": "#009e73",
    "sgd": "#000000",
    "momentum": "#cc79a7",
    "nesterov": "#56b4e9",
    "adagrad": "#e69f00",
    "nadam": "#f0e442",
    "adadelta": "#7f3b08",
    "adamax": "#542788",
    "amsgrad": "#7f7f7f",
}


def colour(name: str) -> str:
    """The colour of an optimizer, as matplotlib and HTML take it; KeyError where it has none."""
    return COLOURS[name]
