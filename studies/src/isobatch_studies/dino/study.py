"""isobatch study dino: the average is the teacher, and its centre an average too."""

from functools import partial

from isobatch_studies.teachers import judging
from isobatch_studies.teachers.study import run as run_teachers

NAME = "dino"
JUDGES = {"dino/rule-same": judging.rule_same, "dino/centre-on-the-clock": judging.centre_on_the_clock}
run = partial(run_teachers, NAME, JUDGES)
