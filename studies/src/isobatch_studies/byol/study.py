"""isobatch study byol: the average is the teacher."""

from functools import partial

from isobatch_studies.teachers import judging
from isobatch_studies.teachers.study import run as run_teachers

NAME = "byol"
JUDGES = {
    "byol/rule-same": judging.rule_same,
    "byol/unscaled-loses-probe": judging.loses_probe,
    "byol/progressive-mends": judging.progressive_mends,
}
run = partial(run_teachers, NAME, JUDGES)
