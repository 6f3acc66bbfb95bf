"""One row a shape of a curve: what is left of the fall at a share of the decay, written out."""

import math

SHAPE_ROWS = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1 - share,
    "minus-sqrt": lambda share: 1 - share**0.5,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}
"""Name -> share of the decay, from 0 to 1 -> what is left."""
