"""One row a learning-rate rule: the rate at 4 times and at a quarter of the batch over the reference's, in literals.

At batch 8, with f = 0.6 and a critical batch of 40 samples, for plain SGD and for AdamW.
"""

from math import sqrt

LR_ROWS = {
    "linear": {"sgd": (4, 1 / 4), "adamw": (4, 1 / 4)},
    "sqrt": {"sgd": (2, 1 / 2), "adamw": (2, 1 / 2)},
    "noise-aware": {"sgd": (4 * sqrt(0.55), sqrt(2.8) / 4), "adamw": (4 * sqrt(0.55), sqrt(2.8) / 4)},
    "speed": {"sgd": (6 / 2.25, 6 / 21), "adamw": (sqrt(6 / 2.25), sqrt(6 / 21))},
    "legw": {"sgd": (2, 1 / 2), "adamw": (2, 1 / 2)},
    "keep": {"sgd": (1, 1), "adamw": (1, 1)},
}
"""Word of rules.lr -> optimizer -> the two ratios."""
