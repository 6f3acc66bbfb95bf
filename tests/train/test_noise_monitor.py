"""Rows 21, 23, 24 and 25 of the fault table, in the loop: the noise scale is measured and chooses the batch."""

import json
import math
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tests.gloo import world
from tests.jobs import final, lines, same, signalled, start
from tests.recipes import recipe

from isobatch import cli
from isobatch.errors import InputError
from isobatch.tasks import TensorSamples, make_run
from isobatch.train import Guard, Trainer

RATE = 60.0


def made(**parts):
    return recipe(**{
        "task": "quadratic", "data_size": 4096, "options": {"dimension": 4, "noise": 4.0}, "batch": {"size": 16},
        "optimizer": {"lr": 1e-4}, "ema": None, "noise": {"every": 1, "capture": "halves"}, **parts,
        "schedule": {"length": "6000 samples", "warmup": "0 samples", "shape": "constant", **parts.get("schedule", {})},
    })  # fmt: skip


def adaptive(rate=RATE, size=16, **more):
    return {"size": size, "adaptive": {"exchange_rate": rate, "settle": "600 samples", **more}}


def trainer(one, *, patience=0, order_seed=0):
    run = make_run(one, 0)
    run.model.double()
    assert isinstance(run.samples, TensorSamples)
    run.samples = TensorSamples(*(t.double() if t.is_floating_point() else t for t in run.samples.tensors))
    return Trainer(run, one, guard=Guard(patience), order_seed=order_seed)


def steps(one, seen, *, spoil=()):
    """Train; return (step, news) of every step, with the loss of the steps in `spoil` multiplied."""
    healthy, found, factor = one.gradient.run_.loss, [], 1.0
    one.gradient.run_.loss = lambda model, batch: healthy(model, batch) * factor
    while one.seen < seen:
        factor = dict(spoil).get(len(found), 1.0)
        step = one.step(min(one.batch_at(one.seen), seen - one.seen))
        found.append((step, dict(one.monitor.news)))
    return found


def scale(one):
    """The noise scale of the task's whole data set at the present weights."""
    run = one.run
    theta, xi = run.model.theta.detach(), run.samples.tensors[0]
    each = torch.logspace(math.log10(0.03), 0, len(theta), dtype=torch.float64) * theta + xi
    return float(each.var(0).sum() / each.mean(0).square().sum())


def test_the_batch_becomes_the_root_of_rate_times_noise():
    one = trainer(made(batch=adaptive(least=4), schedule={"length": "20000 samples"}))
    found = steps(one, 20_000)
    wanted = math.sqrt(RATE * scale(one))
    assert wanted > 16 * 1.5
    assert wanted / 1.35 < one.batch_at(one.seen) < wanted * 1.35
    grown = [news["control/reason"] for _, news in found if news.get("control/action") == "grow"]
    assert grown[0].startswith("16 to ")
    sizes = [step.batch for step, _ in found[:-1]]
    assert all(after <= 2 * before for before, after in pairwise(sizes))


def test_measuring_moves_nothing():
    """Halves round differently, so the rows of known layers show it bit for bit, on digits."""
    digits = {"task": "digits", "data_size": 1437, "options": {"width": 8}, "schedule": {"length": "400 samples"}}
    plain, measured = (trainer(made(**digits, noise=part)) for part in (None, {"every": 1, "capture": "rows"}))
    assert plain.monitor is None
    for one in (plain, measured):
        one.train_to(400)
    assert measured.monitor.noise.estimate().measurements == 25
    for a, b in zip(plain.run.model.parameters(), measured.run.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_decisions_recover_after_a_bad_step():
    clean, dirty = trainer(made(batch=adaptive())), trainer(made(batch=adaptive()), patience=1)
    steps(clean, 6000)
    found = steps(dirty, 6000, spoil={40: math.nan})
    assert dirty.skipped == 1
    assert math.isfinite(dirty.monitor.noise.estimate().value)
    assert dirty.batch_at(0) == pytest.approx(clean.batch_at(0), rel=0.5)
    assert all(math.isfinite(v) for _, news in found for v in news.values() if isinstance(v, float))


@pytest.mark.parametrize("capture", ["chunks", "auto"])
def test_one_chunk_a_step_is_undefined_and_holds(capture):
    one = trainer(made(batch=adaptive(), noise={"every": 1, "capture": capture}))
    news = [told for _, told in steps(one, 2000) if told]
    assert news[-1]["noise/verdict"].startswith("undefined: ")
    assert "noise.halves" in news[-1]["noise/verdict"]
    assert "noise/scale" not in news[-1]
    assert news[-1]["control/reason"].startswith("held at 16: the noise scale is not identified (undefined: ")
    assert one.batch_at(0) == 16


def test_a_negative_square_is_written_as_measured_and_holds():
    """Pure noise: |G|^2 comes out negative every other time; it is logged as it is, and no scale beside it."""
    one = trainer(made(batch=adaptive()))
    torch.nn.init.zeros_(one.run.model.theta)
    news = [told for _, told in steps(one, 4000) if told]
    negative = [told for told in news if told["noise/gradient_squared"] < 0]
    assert negative
    assert all("noise/scale" not in told and "noise/high" not in told for told in negative)
    assert one.batch_at(0) == 16


def test_a_jump_by_1000_is_bounded_and_reversible():
    """One step whose gradients are x1000: at most a doubling in a settling time, and back once it has passed."""
    one = trainer(made(batch=adaptive(least=16, most=128)))
    found = steps(one, 12_000, spoil={90: 1000.0})
    sizes = [step.batch for step, _ in found[:-1]]
    changes = [i for i in range(1, len(sizes)) if sizes[i] != sizes[i - 1]]
    assert all(1 / 2 <= sizes[i] / sizes[i - 1] <= 2 for i in changes)
    seen = [sum(sizes[:i]) for i in changes]
    assert all(b - a >= 600 for a, b in pairwise(seen))


@pytest.mark.parametrize(
    ("limits", "size", "high", "named"),
    [({"most": 40}, 4096, 40, "the largest batch 40"), ({}, 48, 48, "the data limit 48")],
)
def test_the_limit_that_binds_is_named(limits, size, high, named):
    one = trainer(made(batch=adaptive(rate=1e6, **limits), data_size=size))
    news = [told for _, told in steps(one, 6000) if told]
    assert one.batch_at(0) == high
    assert named in news[-1]["control/reason"]


def test_out_of_memory_halves_the_passes_and_keeps_the_batch():
    one = trainer(made(batch=adaptive(rate=1e6, most=64)))
    healthy = one.gradient.run_.loss

    def loss(model, batch):
        if len(batch[0]) > 10:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return healthy(model, batch)

    one.gradient.run_ = replace(one.gradient.run_, loss=loss)
    one.train_to(4000)
    assert one.batch_at(0) == 64
    assert one.gradient.limit <= 10
    assert one.monitor.noise.estimate().excluded == 0


def test_another_learning_rate_starts_the_window_again():
    shape = {"length": "6000 samples", "shape": "linear", "warmup": "600 samples"}
    one = trainer(made(batch=adaptive(), schedule=shape))
    told = [news["control/reason"] for _, news in steps(one, 6000) if news]
    moved = [reason for reason in told if "the reference's temperature moved" in reason]
    assert len(moved) >= 4
    assert one.monitor.noise.history.start > 600


def test_ranks_accumulation_and_one_process_take_the_same_decisions(tmp_path):
    """Two ranks of one pass each, and one process of two passes: the same chunks, the same batches."""
    digits = {"task": "digits", "data_size": 1437, "options": {"width": 8}, "schedule": {"length": "4000 samples"},
              "optimizer": {"lr": 0.02}, "batch": adaptive(rate=400.0, size=32, least=2)}  # fmt: skip

    def batches_of(noise):
        one = trainer(made(**digits, noise=noise))
        return [step.batch for step, _ in steps(one, 4000)], one.monitor.noise.estimate().value

    def ranked(rank):
        (tmp_path / f"{rank}.json").write_text(json.dumps(batches_of({"every": 1})))

    world(2, tmp_path, ranked)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    sizes, value = batches_of({"every": 1, "capture": "halves"})
    assert len(set(sizes[:-1])) > 2
    assert first[0] == sizes
    assert first[1] == pytest.approx(value, rel=1e-9)


JOB = {"task": "quadratic", "data_size": 4096, "options": {"noise": 4.0}, "ema": {"decay": 0.9},
       "batch": {"size": 24, "adaptive": {"exchange_rate": 60.0, "settle": "200 samples"}},
       "optimizer": {"lr": 1e-4}, "noise": {"every": 1, "capture": "halves"},
       "schedule": {"length": "3000 samples", "warmup": "0 samples", "shape": "constant"}}  # fmt: skip


def test_a_job_logs_the_scale_and_resumes_bit_for_bit(tmp_path):
    one = recipe(**JOB)
    whole = start(tmp_path / "whole", made=one)
    entries = [line for line in lines(tmp_path / "whole") if "noise/verdict" in line]
    assert any(line.get("control/action") == "grow" for line in entries)
    assert {"noise/scale", "noise/low", "noise/high", "noise/trace", "control/batch"} <= entries[-1].keys()
    cut = start(tmp_path / "cut", made=one, on_step=signalled(signal.SIGTERM, 40))
    assert not cut.finished
    rest = start(tmp_path / "cut", made=one, resume=True)
    assert (rest.finished, rest.steps) == (True, whole.steps)
    same(tmp_path / "cut", final(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"adaptive": {"exchange_rate": 0.0}}, "batch.adaptive.exchange_rate"),
        ({"adaptive": {}}, "batch.adaptive.exchange_rate is missing"),
        ({"adaptive": {"exchange_rate": 9.0, "settle": "50 steps"}}, "in steps, whose size it changes"),
        ({"adaptive": {"exchange_rate": 9.0, "settle": "0 samples"}}, "must be positive"),
        ({"adaptive": {"exchange_rate": 9.0, "growth": 1.0}}, "batch.adaptive.growth"),
        ({"adaptive": {"exchange_rate": 9.0}, "schedule": [["0 epochs", 8]]}, "both set the batch"),
    ],
)
def test_bad_settings_are_refused(parts, message):
    with pytest.raises(InputError, match=message):
        made(batch={"size": 16, **parts})


@pytest.mark.parametrize(
    ("more", "message"),
    [({"most": 8}, "must be a multiple of 1"), ({"least": 32}, "near it"), ({"most": 3, "least": 4}, "no multiple")],
)
def test_a_first_batch_outside_the_limits_is_refused(more, message):
    with pytest.raises(InputError, match=message):
        trainer(made(batch=adaptive(**more)))


def test_a_constant_batch_beside_an_adaptive_one_is_refused(tmp_path, capsys):
    file = tmp_path / "recipe.toml"
    file.write_text('task = "quadratic"\n[batch]\nsize = 8\n[optimizer]\nname = "sgd"\nlr = 1e-4\n'
                    '[schedule]\nlength = "80 samples"\n')  # fmt: skip
    call = ["train", str(file), "--out", str(tmp_path / "out"), "--json"]
    assert cli.run([*call, "--adaptive", "40", "--batch-size", "16"]) == 2
    assert "both set the batch" in capsys.readouterr().err
    assert cli.run([*call, "--adaptive", "nan"]) == 2
    assert cli.run([*call, "--adaptive", "40", "--noise"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["batch"]["adaptive"]["exchange_rate"] == 40


def test_a_plan_keeps_the_exchange_rate_and_the_temperature():
    own = made(batch=adaptive(settle="1 epoch"))
    plan = own.at(batch_size=64)
    assert plan.recipe.batch.adaptive == own.batch.adaptive
    small, large = trainer(own), trainer(plan.recipe)
    assert large.monitor.control._reference == pytest.approx(small.monitor.control._reference, rel=1e-12)
