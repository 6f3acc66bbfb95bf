"""Every printed reason belongs to the branch that computed: formula, reason and confidence in literals."""

import pytest
from tests.optimizer_rows import DECOUPLED, ROWS
from tests.recipes import recipe

LEGW = ("sqrt(kappa)*eta", "LEGW: the peak", "convention")
KEPT = ("eta", "not an equivalent run", "unknown")

everyone = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
WORDS = ("auto", "linear", "sqrt", "noise-aware", "speed")


def plan(name, lr="auto", batch=32, optimizer=None, **chosen):
    share = {"noise_share": 0.6} if lr == "noise-aware" else {}
    return recipe(
        optimizer={"name": name, "weight_decay": 0.1, **(optimizer or {})},
        critical={"batch": 40.0}, rules={"lr": lr, **share, **chosen},
    ).at(batch)  # fmt: skip


def holds(row, formula, reason, confidence):
    assert (row.rule, row.confidence) == (formula, confidence)
    assert reason in row.because


@everyone
@pytest.mark.parametrize("batch", [2, 32])
def test_the_learning_rate_says_why(row, batch):
    name = row.name
    average = {"momentum": 0.9} if name == "muon" else {}
    for word, wanted in zip(WORDS, row.why_lr, strict=True):
        holds(plan(name, word, batch, average).row("optimizer.lr"), *wanted)
    holds(plan(name, "legw").row("optimizer.lr"), *LEGW)
    holds(plan(name, "keep").row("optimizer.lr"), *KEPT)


@everyone
def test_weight_decay_says_why(row):
    name = row.name
    holds(plan(name).row("optimizer.weight_decay"), *row.why_decay)
    holds(plan(name, optimizer={"decay": "decoupled"}).row("optimizer.weight_decay"), *DECOUPLED)
    independent = plan(name, optimizer={"decay": "independent"}).row("optimizer.weight_decay")
    holds(independent, "lambda*kappa", "not multiplied by lr", "derived")
    holds(plan(name, "legw").row("optimizer.weight_decay"), "lambda", "retunes no other number", "convention")


EPS = "eps*eta'/(kappa*eta)"
THE_SQRT = (EPS, "shrinks by the same factor", "derived")
THE_RATE = (EPS, "the learning rate takes to move", "derived")
NEVER = ("eps", "the second moment does not depend on the batch", "derived")


@pytest.mark.parametrize(("name", "lr", "wanted"), [
    ("adamw", "auto", THE_SQRT), ("adam", "sqrt", THE_SQRT), ("rmsprop", "auto", THE_SQRT),
    ("lamb", "auto", ("eps/sqrt(kappa)", "in proportion to sqrt(v) while noise", "derived")),
    ("adamw", "linear", THE_RATE), ("adamw", "noise-aware", THE_RATE), ("adamw", "speed", THE_RATE),
    ("adamw", "keep", (EPS, "the learning rate takes to move", "unknown")),
    ("adamw", "legw", ("eps", "retunes no other number", "convention")),
    *(("invariant-adamw", lr, NEVER) for lr in ("auto", "linear", "sqrt", "noise-aware", "keep", "speed")),
    ("invariant-adamw", "legw", ("eps", "retunes no other number", "convention")),
])  # fmt: skip
def test_eps_says_why(name, lr, wanted):
    holds(plan(name, lr).row("optimizer.eps"), *wanted)


def test_moments_say_why():
    def beta(batch, index=0, **chosen):
        return plan("adamw", batch=batch, **chosen).row(f"optimizer.betas[{index}]")

    holds(beta(32), "beta**kappa", "keeps the half-life", "derived")
    holds(beta(2), "beta**kappa", "keeps the half-life", "derived")
    holds(beta(128), "max(beta**kappa, min(beta, 0.5))", "held at its floor", "convention")
    holds(beta(128, 1), "beta**kappa", "keeps the half-life", "derived")
    holds(beta(1024, 1), "max(beta**kappa, min(beta, 0.95))", "held at its floor", "convention")
    holds(beta(32, betas="linear"), "1-kappa*(1-beta)", "form of the SDE", "theorem")
    holds(beta(32, betas="keep"), "beta", "the recipe says so", "unknown")
    holds(beta(32, lr="legw"), "beta", "retunes no other number", "convention")
    moving = {"momentum": 0.9}
    holds(plan("sgd", optimizer=moving).row("optimizer.momentum"), "mu**kappa", "half-life of the buffer", "derived")
    kept = plan("sgd", optimizer=moving, momentum="keep")
    holds(kept.row("optimizer.momentum"), "mu", "short against the run", "convention")
    assert kept.row("optimizer.lr").rule == "kappa*eta"
    assert plan("sgd", optimizer=moving).row("optimizer.lr").rule == "kappa*eta * (1-mu')/(1-mu)"
    legw = plan("sgd", "legw", optimizer=moving)
    assert (legw.row("optimizer.lr").rule, legw.row("optimizer.momentum").rule) == ("sqrt(kappa)*eta", "mu")


def test_the_average_and_the_run_say_why():
    holds(plan("sgd").row("ema.decay"), "rho**kappa", "keeps the half-life", "theorem")
    holds(plan("sgd", average="keep").row("ema.decay"), "rho", "another average", "unknown")
    for average, formula, reason in (("half-life", "kept in samples", "keeps"), ("keep", "kappa*H", "another average")):
        made = recipe(ema={"decay": None, "half_life": "500 samples"}, rules={"average": average}).at(32)
        assert made.row("ema.half_life").rule == formula
        assert reason in made.row("ema.half_life").because
    holds(plan("sgd").row("schedule.length"), "samples kept", "indexed by samples", "derived")
    holds(plan("sgd", "speed").row("schedule.length"), "E*(1+B'/Bc)/(1+B/Bc)", "samples to the same loss", "measured")
    holds(plan("sgd", "speed").row("schedule.warmup"), "the same share of the run", "stretched", "convention")
    holds(plan("sgd", "legw").row("schedule.warmup"), "kappa*w0", "linear in epochs", "convention")
    found = recipe(optimizer={"lr": 1.0}, schedule={"shape": "autowu", "warmup": None}).at(32).row("optimizer.lr")
    holds(found, "eta", "the highest rate that the warm-up tries", "convention")


@pytest.mark.parametrize(("name", "lr", "condition", "words"), [
    ("adamw", "auto", "square root needs noise", {2: "it is too large", 32: "it is too small"}),
    ("sgd", "auto", "gradient clipping", {2: "more steps clip as the batch shrinks", 32: "fewer steps clip as"}),
    ("sgd", "auto", "kappa*(1-rho)", {2: None, 128: "lags by about"}),
    ("adamw", "auto", "betas[0] is at its floor", {2: None, 128: "is held at 0.5"}),
    ("sgd", "auto", "stability limit unknown", {2: None, 32: "grows to"}),
    ("sgd", "auto", "the warm-up is short", {2: None, 128: "the start is coarse"}),
    ("sgd", "legw", "LEGW's warm-up takes", {2: None, 64: "too little of the run"}),
])  # fmt: skip
def test_a_warning_holds_on_its_side_of_kappa_one(name, lr, condition, words):
    made = recipe(optimizer={"name": name, "clip": 1.0}, rules={"lr": lr}, schedule={"warmup": "1 epoch"})
    for batch, text in words.items():
        found = [warning.message for warning in made.at(batch).warnings if condition in warning.condition]
        assert len(found) == (text is not None), (batch, found)
        assert text is None or text in found[0]
    assert made.at(8).warnings == ()
