"""The authors' tuning study as runs of the trainer: which settings make up which rows of published_tuning.csv.

Their notes are incomplete. Assumed here: where no initialiser is named, the velocity starts at 0 (their first epochs
end at chance, the delay described in Section 2.4); where beta-hat is not named, the average is Eq. 22's, with a
constant beta; "RandomNormal" is Eq. 27's, of standard deviation alpha / l, and a lower-case name is the Keras
initialiser of that name; "alpha added" is Eqs. 26 and 27. Everything else is as in the benchmark runs, including t = 0
at the first update.

Nothing heavy is imported here.
"""

from typing import Any, NamedTuple

# t at the first update. From here on beta-hat (Eq. 26) is beta to 1e-9: the plain average of Eq. 22.
CONSTANT_BETA = 1_000_000_000


class Variant(NamedTuple):
    """Gravity on VGG16 as the authors tried it."""

    name: str
    dataset: str
    rows: tuple[int, ...]  # its runs in published_tuning.csv, counted from 0; more than one where they repeated it
    epochs: int
    settings: dict[str, Any]  # of the trainer's Config


def _variants() -> list[Variant]:
    paper = {"learning_rate": 0.1, "beta": 0.9, "first_step": 0, "max_step_grad": "inverse_max_abs"}
    ranged = paper | {"max_step_grad": "inverse_range"}
    late = {"first_step": CONSTANT_BETA}
    from_rest = late | {"alpha": 0.0}
    drawn = "lecun_uniform he_normal lecun_normal glorot_uniform he_uniform random_normal truncated_normal"
    drawn += " random_uniform glorot_normal"
    slow = ranged | late | {"learning_rate": 0.01}
    return [
        Variant("paper", "cifar10", (7,), 100, paper),
        Variant("m_max", "cifar10", (5,), 100, paper | {"max_step_grad": "max"}),
        Variant("m_max_abs", "cifar10", (6,), 100, paper | {"max_step_grad": "max_abs"}),
        Variant("m_inverse_range", "cifar10", (2, 3), 100, ranged),
        Variant("m_inverse_range_rate_0.01", "cifar10", (0, 1), 100, ranged | {"learning_rate": 0.01}),
        Variant("from_rest_beta_0", "cifar10", (13,), 100, paper | from_rest | {"beta": 0.0}),
        Variant("from_rest_beta_0.9", "cifar10", (15,), 100, paper | from_rest),
        Variant("from_rest_beta_0.99", "cifar10", (14,), 100, paper | from_rest | {"beta": 0.99}),
        Variant("from_rest_beta_0.999", "cifar10", (12,), 100, paper | from_rest | {"beta": 0.999}),
        Variant("from_rest_m_inverse_std", "cifar10", (16,), 100, paper | from_rest | {"max_step_grad": "inverse_std"}),
        Variant("from_rest_m_inverse_range", "cifar10", (18,), 100, ranged | from_rest),
        *(
            Variant(f"velocity_{name}", "cifar10", (row,), 50, slow | {"velocity": name})
            for row, name in enumerate(drawn.split(), start=19)
        ),
        Variant("m_inverse_range", "mnist", (10, 11), 100, ranged),
        Variant("from_rest_m_inverse_range", "mnist", (8,), 100, ranged | from_rest),
        Variant("velocity_random_normal", "mnist", (9,), 100, ranged | late | {"velocity": "random_normal"}),
    ]


VARIANTS = _variants()
# Rows whose rule for m the notes name but do not define: "1-total_effect" and "Z_score".
UNDEFINED_ROWS = (4, 17)
