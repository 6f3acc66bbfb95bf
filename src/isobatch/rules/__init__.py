"""The rules: one file a hyperparameter, numbers in and numbers out."""

from isobatch.rules.average import lag, scale_decay
from isobatch.rules.batch_norm import scale_batch_norm
from isobatch.rules.betas import power, sde
from isobatch.rules.critical_batch import optimal_lr, samples_factor, steps_factor, surge_lr
from isobatch.rules.epsilon import scale_eps
from isobatch.rules.families import FAMILIES, Family, family
from isobatch.rules.gain import adascale_gain, efficiency, gain, goodput
from isobatch.rules.learning_rate import linear, noise_aware, square_root
from isobatch.rules.linear_epoch import legw
from isobatch.rules.momentum import buffer_factor, lr_factor, scale_momentum
from isobatch.rules.noise_share import drift_error, noise_share, noise_share_after, recommend, second_moment_factor
from isobatch.rules.rule import Confidence, Rule
from isobatch.rules.weight_decay import scale_weight_decay

__all__ = [
    "FAMILIES",
    "Confidence",
    "Family",
    "Rule",
    "adascale_gain",
    "buffer_factor",
    "drift_error",
    "efficiency",
    "family",
    "gain",
    "goodput",
    "lag",
    "legw",
    "linear",
    "lr_factor",
    "noise_aware",
    "noise_share",
    "noise_share_after",
    "optimal_lr",
    "power",
    "recommend",
    "samples_factor",
    "scale_batch_norm",
    "scale_decay",
    "scale_eps",
    "scale_momentum",
    "scale_weight_decay",
    "sde",
    "second_moment_factor",
    "square_root",
    "steps_factor",
    "surge_lr",
]
