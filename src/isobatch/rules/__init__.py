"""The rules: one object a rule, one row an optimizer, numbers in and numbers out."""

from isobatch.renamed import old_names
from isobatch.rules.average import lag, scale_decay
from isobatch.rules.batch_norm import scale_batch_norm
from isobatch.rules.betas import power, sde
from isobatch.rules.clip import scale_clip
from isobatch.rules.critical_batch import optimal_lr, samples_factor, steps_factor
from isobatch.rules.epsilon import scale_eps
from isobatch.rules.gain import adascale_gain, efficiency, gain, goodput
from isobatch.rules.lr import LEARNING_RATES, lr_rule
from isobatch.rules.lr.legw import legw
from isobatch.rules.lr.linear import linear
from isobatch.rules.lr.noise_aware import noise_aware
from isobatch.rules.lr.square_root import square_root
from isobatch.rules.momentum import buffer_factor, lr_factor, scale_momentum
from isobatch.rules.noise_share import drift_error, noise_share, noise_share_after, recommend, second_moment_factor
from isobatch.rules.optimizers import OPTIMIZERS, optimizer_row
from isobatch.rules.rule import Change, Confidence, OptimizerRow, Rule, RuleWarning, Severity, Side
from isobatch.rules.state import STATE, StateChange, state_factors
from isobatch.rules.weight_decay import scale_weight_decay

__all__ = [
    "LEARNING_RATES",
    "OPTIMIZERS",
    "STATE",
    "Change",
    "Confidence",
    "OptimizerRow",
    "Rule",
    "RuleWarning",
    "Severity",
    "Side",
    "StateChange",
    "adascale_gain",
    "buffer_factor",
    "drift_error",
    "efficiency",
    "gain",
    "goodput",
    "lag",
    "legw",
    "linear",
    "lr_factor",
    "lr_rule",
    "noise_aware",
    "noise_share",
    "noise_share_after",
    "optimal_lr",
    "optimizer_row",
    "power",
    "recommend",
    "samples_factor",
    "scale_batch_norm",
    "scale_clip",
    "scale_decay",
    "scale_eps",
    "scale_momentum",
    "scale_weight_decay",
    "sde",
    "second_moment_factor",
    "square_root",
    "state_factors",
    "steps_factor",
]

__getattr__ = old_names(
    __name__,
    {
        "FAMILIES": "isobatch.rules.OPTIMIZERS",
        "Family": "isobatch.rules.OptimizerRow",
        "family": "isobatch.rules.optimizer_row",
    },
)
