"""The file names under which the finished runs of every grid of every study are kept."""

import hashlib
from dataclasses import asdict

from isobatch.critical.sweeping import Point
from isobatch.critical.trial import Trial, at
from isobatch.critical.trial import file_name as trial_name
from isobatch.verify.cells import hashed
from isobatch.verify.cells import name as cell_name
from isobatch_studies.adam import grid as adam
from isobatch_studies.adam.shares import shares_name
from isobatch_studies.adaptive import late
from isobatch_studies.adaptive.paths import Drive
from isobatch_studies.adaptive.paths import file_name as drive_name
from isobatch_studies.adaptive.study import arms as adaptive_arms
from isobatch_studies.autowu import grid as autowu
from isobatch_studies.batch_augmentation import grid as views
from isobatch_studies.batch_augmentation.variance import jobs as variance_jobs
from isobatch_studies.claims import criteria
from isobatch_studies.concurrent_adversarial import grid as adversary
from isobatch_studies.concurrent_adversarial.overlap import Timing
from isobatch_studies.decentlam.digits import cells as decentlam_cells
from isobatch_studies.legw import grid as legw
from isobatch_studies.noise_scale import decay
from isobatch_studies.noise_scale import grid as domains
from isobatch_studies.noise_scale.probing import file_name as probe_name
from isobatch_studies.polyak.study import file_name as width_name
from isobatch_studies.polyak.study import width_jobs
from isobatch_studies.progressive import grid as progressive
from isobatch_studies.pseudo_label import grid as labels
from isobatch_studies.teachers import grid as teachers


def flat(groups):
    return [job for group in groups for job in group]


def adam_names(rules, quick):
    plan, found = rules["quick" if quick else "grid"], []
    for task in (task for task in plan if task != "quadratic"):
        for batch in plan[task]["batches"]:
            found.append(shares_name(adam.reference(task, batch, plan[task])))
            groups = adam.groups(task, batch, plan[task], rules["seeds"], 100.0)
            found += [cell_name(job) for group in groups for job in group]
    return found


def adaptive_names(rules, quick):
    part = rules | (rules["quick"] if quick else {})
    arms = (late.arms(rules) if "switch" in rules else adaptive_arms(rules, part["fixed"])).items()
    drives = [Drive(a, r, s, n, rules["look_every"]) for n, (a, r) in enumerate(arms) for s in range(part["seeds"])]
    return [drive_name(job) for job in drives]


def autowu_names(rules, quick):
    found = []
    for cell in autowu.cells(rules, quick=quick):
        found += autowu.selection(cell, rules["peaks"], rules["selection_seeds"])
        best = dict.fromkeys(range(5), rules["peaks"][0])
        found += flat(autowu.reported(cell, best, (rules["quick"] if quick else rules)["seeds"]))
    return [cell_name(job) for job in found]


def views_names(rules, quick):
    part, rates = rules["quick"] if quick else rules, dict.fromkeys(range(5), rules["rates"][0])
    jobs = views.selection(rules, part["selection_seeds"]) + flat(views.reported(rules, rates, part["seeds"]))
    measured = [] if "controls" in rules else flat(variance_jobs(rates, part["seeds"]))
    return [cell_name(job) for job in jobs] + [hashed("variance", cell_name(job)) for job in measured]


def adversary_names(rules, quick):
    part = rules["quick"] if quick else rules
    rate, eps, noise = (dict.fromkeys(range(5), rules[key][0]) for key in ("rates", "eps", "noise_eps"))
    jobs = adversary.rate_selection(rules, part["selection_seeds"])
    jobs += adversary.eps_selection(rules, rate, part["selection_seeds"])
    jobs += flat(adversary.reported(rules, rate, eps, noise, part["seeds"]))
    if "controls" in rules:
        return [cell_name(job) for job in jobs]
    timing = Timing(**{**rules["overlap"], "rounds": part["rounds"] if quick else rules["overlap"]["rounds"]})
    return [cell_name(job) for job in jobs] + [hashed("overlap", vars(timing))]


def decentlam_names(rules, quick):
    plan, seeds = rules["quick" if quick else "grid"], rules["seeds"]
    found = [hashed(asdict(cell)) for cell in decentlam_cells(plan["digits"], seeds)]
    keys = {"bias": plan["least_squares"], "batch": plan["least_squares"], "rates": plan["rates"]}
    return found + [hashed(name, keys[name], seeds) for name in keys]


def legw_names(rules, quick):
    part, found = rules["quick"] if quick else rules, []
    for task in part["tasks"]:
        spec, folds = rules["tasks"][task], legw.folds(task)
        found += legw.selection(task, spec, part["selection_seeds"])
        found += flat(legw.reported(task, spec, dict.fromkeys(range(folds), spec["rates"][0]), part["seeds"]))
    return [cell_name(job) for job in found]


def noise_names(rules, quick):
    part, count = rules["quick" if quick else "grid"], rules["window"]["stops"]
    if "marks" in part:
        return [cell_name(job) for job in flat(decay.groups(part))]
    known = domains.domains(part)
    probes = flat(domains.beside(part, known, part["seeds"], count).values())
    found = []
    for domain in known:
        rate = domain.recipe.optimizer.lr
        probes += domains.along(domain, Point(domain.batches[0], rate, 64.0, 0.0, (64.0,), False), part["seeds"], count)
        for batch in domain.batches:
            made = at(domain.recipe, batch, rate)
            trial = Trial(made, 0, domain.goals[-1], domain.metric, 0.1, domain.limit)
            found.append(trial_name(trial))
    return found + [probe_name(job) for job in probes]


def progressive_names(rules, quick):
    plan = rules["quick" if quick else "grid"]
    groups = [group for task, part in plan.items() for group in progressive.groups(task, part, rules["seeds"])]
    return [cell_name(job) for job in flat(groups)]


def label_names(rules, quick):
    part = rules["quick" if quick else "grid"]
    arms = [labels.Arm("control", labels.REFERENCE, labels.reference(part)), *labels.arms(part, 50.0)]
    return [cell_name(job) for job in flat(labels.groups(part, part["seeds"], arms, "cpu"))]


def teacher_names(rules, quick):
    part, found = rules["quick" if quick else "grid"], []
    for variant in part["variants"]:
        for device in DEVICES.get(rules["study"], ("cpu", "cuda,bf16")):
            found += [cell_name(job) for job in flat(teachers.groups(part, variant, part["seeds"], device))]
        if rules["study"] == "polyak":
            found += [width_name(job) for job in width_jobs(part, variant, part["seeds"], "cpu")]
    return found


DEVICES = {"byol-24576": ("cpu,channels-last",)}
"""Where a study's runs are trained, in the words that their names hold."""

NAMES = {
    "adam": adam_names,
    "adaptive": adaptive_names,
    "autowu": autowu_names,
    "batch-augmentation": views_names,
    "byol": teacher_names,
    "byol-24576": teacher_names,
    "concurrent-adversarial": adversary_names,
    "decentlam": decentlam_names,
    "dino": teacher_names,
    "legw": legw_names,
    "noise-scale": noise_names,
    "polyak": teacher_names,
    "progressive": progressive_names,
    "pseudo-label": label_names,
}


def stored(study, *, quick=False, grid=""):
    """How many runs a grid keeps, the first one's name, and a hash of all names."""
    names = NAMES[study](criteria(study, grid), quick)
    return len(names), names[0], hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:24]
