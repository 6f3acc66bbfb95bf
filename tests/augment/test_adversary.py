"""Directions by older weights: Algorithm 1 with its snapshots, what is held and forgotten, two batch norms."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.augment.cases import mlp, parsed, softmax_regression, trainer
from tests.gloo import world
from tests.reference import augmentation as reference
from torch import nn

from isobatch.augment import (
    Draws,
    LookAhead,
    StaleAdversary,
    TwoNorms,
    adversarial_rows,
    directions,
    perturbed,
    two_norms,
)
from isobatch.augment.concurrently import OtherStream
from isobatch.errors import InputError
from isobatch.tasks import make_run
from isobatch.train import StepVerdict, Trainer
from isobatch.train.pairs import Pair, help_out, helped
from isobatch.train.persistence import restore, state_of

PART = {"eps": 0.1, "weights": [0.5, 0.5], "bounds": [0.0, 1.0]}


@pytest.mark.parametrize("tau", [0, 1, 3])
def test_steps_are_those_of_algorithm_1(tau):
    run = softmax_regression()
    x, y = (t.numpy() for t in run.samples.tensors)
    start = run.model[0].weight.detach().numpy().copy()
    one = trainer(run, adversary={**PART, "weights": [0.7, 1.1], "tau": tau, "warmup": "36 samples"})
    order = one.order.indices(0, 72).tolist()
    batches = [order[first : first + 12] for first in range(0, 72, 12)]

    def eps(t):
        return 0.1 * min(1.0, (t + 1) / 3)

    wanted = reference.concurrent_adversarial(start, x, y, batches, tau=tau, eps=eps, weights=(0.7, 1.1), eta=0.5)
    for weights in wanted:
        one.step()
        torch.testing.assert_close(run.model[0].weight.detach(), torch.from_numpy(weights), rtol=0, atol=1e-12)
    assert (one.seen, one.drawn) == (72, 72)


def test_age_matters_and_is_bounded_by_tau():
    """Each held tensor was made by the weights of its own step; nothing older or younger is used."""
    one, made = mlp(adversary={**PART, "tau": 2}), []
    make = one.passes.directions.make
    one.passes.directions.make = lambda segment: made.append((one.steps, segment)) or make(segment)
    for _ in range(5):
        one.step()
    ages = {segment[0] // 12: segment[0] // 12 - step for step, segment in made}
    assert ages == {0: 0, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2}


def test_another_batch_makes_what_lies_ahead_anew():
    one, made = mlp(adversary={**PART, "tau": 1}), []
    make = one.passes.directions.make
    one.passes.directions.make = lambda segment: made.append((one.drawn, segment)) or make(segment)
    for size in (12, 12, 7, 7, 12):
        one.step(size)
    assert [m for m in made if m[0] == 24] == [(24, (24, 7)), (24, (31, 7))]
    assert [m for m in made if m[0] == 31] == [(31, (38, 7))]
    assert [m for m in made if m[0] == 38] == [(38, (38, 12)), (38, (50, 12))]


def test_no_eps_is_the_clean_loss():
    plain, nothing = mlp(), mlp(adversary={**PART, "eps": 0.0, "bounds": None})
    for size in (12, 24):
        assert plain.step(size).loss == pytest.approx(nothing.step(size).loss, rel=1e-12)
    for a, b in zip(plain.run.model.parameters(), nothing.run.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", ["sign", "l2", "random-sign"])
def test_directions_keep_their_size(form, dtype):
    torch.manual_seed(0)
    model, x = nn.Linear(8, 3).to(dtype), torch.rand(5, 8).to(dtype)
    moves = directions(lambda net, b: net(b[0]).logsumexp(1).mean(), model, (x, None), form, Draws(0, torch.arange(5)))
    moved, _ = perturbed((x, None), moves, 0.25)
    assert moved.dtype == dtype
    size = (moved - x).double()
    largest = size.abs().max(1).values if form != "l2" else size.norm(dim=1)
    torch.testing.assert_close(
        largest, torch.full((5,), 0.25).double(), rtol=0, atol=0.02 if dtype == torch.bfloat16 else 1e-6
    )
    assert moves.dtype == (dtype if form == "l2" else torch.int8)
    assert model.weight.grad is None


def test_a_sample_that_is_not_finite_has_no_direction():
    x = torch.tensor([[1.0, 2.0], [float("nan"), 1.0]])
    model = nn.Linear(2, 1)
    assert directions(lambda net, b: net(b).square().sum(), model, x)[1].tolist() == [0, 0]


def cnn(norms, **parts):
    made = parsed(task="digits-cnn", options={"width": 4}, adversary={**PART, "norms": norms, **parts})
    return Trainer(make_run(made, 0), made, order_seed=1)


def test_making_directions_leaves_statistics_alone():
    one = cnn("shared")
    before = {name: b.clone() for name, b in one.run.model.named_buffers()}
    assert before
    one.passes.directions.most = 12
    one.passes.directions.make((0, 12))
    for name, buffer in one.run.model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_two_batch_norms_see_their_own_rows():
    one = cnn("two", eps=0.5)
    pair = one.run.model[2]
    assert isinstance(pair, TwoNorms)
    seen = {"main": [], "adversarial": []}
    for name in seen:
        getattr(pair, name).register_forward_hook(lambda _, args, __, name=name: seen[name].append(args[0].detach()))
    one.step()
    clean, made, made_too, moved = (*seen["main"], *seen["adversarial"])
    assert torch.equal(clean, made)  # directions are made through the adversarial norm, from the clean rows
    assert not torch.equal(made_too, clean)
    assert not torch.equal(moved, clean)
    assert pair.main.num_batches_tracked == 1
    assert pair.adversarial.num_batches_tracked == 1
    assert not torch.equal(pair.main.running_mean, pair.adversarial.running_mean)
    for layer in (pair.main, pair.adversarial):
        assert layer.weight.grad.abs().sum() > 0
    one.run.evaluate()
    assert len(seen["main"]) == 2


def test_evaluation_uses_the_main_norm_alone():
    model = nn.Sequential(nn.BatchNorm1d(3))
    assert two_norms(model) == 1
    with torch.no_grad():
        model[0].adversarial.weight.mul_(5)
    x = torch.rand(4, 3)
    model.eval()
    with adversarial_rows(model):
        torch.testing.assert_close(model(x), model[0].main(x))
    model.train()
    with adversarial_rows(model):
        twin = model(x)
    torch.testing.assert_close(twin, model(x) * 5)


@pytest.mark.parametrize("tau", [0, 2])
def test_ranks_take_the_steps_of_one_process(tau, tmp_path):
    def steps(one):
        losses = [one.step(size).loss for size in (12, 12, 11, 11, 1, 24)]
        return {n: p.detach().clone() for n, p in one.run.model.named_parameters()} | {"loss": torch.tensor(losses)}

    part = {**PART, "tau": tau}
    world(2, tmp_path, lambda rank: save_file(steps(mlp(adversary=part)), tmp_path / str(rank)))
    wanted = steps(mlp(adversary=part))
    for rank in range(2):
        for name, value in load_file(tmp_path / str(rank)).items():
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-6 if name == "loss" else 1e-12)


def test_ranks_train_with_two_batch_norms(tmp_path):
    """Data-parallel training waits for every parameter; the twins that a pass leaves out must not stop it."""

    def steps(rank):
        one = cnn("two")
        for _ in range(3):
            one.step()
        save_file({n: p.detach().clone() for n, p in one.run.model.named_parameters()}, tmp_path / str(rank))

    world(2, tmp_path, steps)
    first, second = load_file(tmp_path / "0"), load_file(tmp_path / "1")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_accumulation_is_one_pass():
    whole, parts = (mlp(adversary=PART, batch={"size": 12, "micro": micro}) for micro in (None, 4))
    for size in (12, 24):
        assert whole.step(size).loss == pytest.approx(parts.step(size).loss, rel=1e-12)
    for a, b in zip(whole.run.model.parameters(), parts.run.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ranks", [2, 4])
def test_another_process_makes_what_this_one_would(ranks, tmp_path):
    """Bit for bit, with the batch changed on the way; each pair's helper answers and goes home."""
    part, sizes = {**PART, "tau": 1}, (12, 12, 24, 24)

    def member(rank):
        pair = Pair.current()
        made = parsed(task="digits", options={"width": 8}, adversary=part)
        if pair.helps:
            answered = help_out(make_run(made, 0), made, pair, order_seed=1)
            assert answered == 6
            return
        one = Trainer(make_run(made, 0), made, order_seed=1, world=pair.world)
        carrier = helped(one, pair)
        for size in sizes:
            one.step(size)
        carrier.close()
        weights = 4 * sum(p.numel() for p in one.run.model.parameters())
        assert carrier.requests == 6
        assert carrier.sent == 6 * (weights + 24)
        assert carrier.received == 64 * (12 * 3 + 24 * 3) // pair.world.size
        save_file({n: p.detach().clone() for n, p in one.run.model.named_parameters()}, tmp_path / f"{rank}-{ranks}")

    world(ranks, tmp_path, member)
    made = parsed(task="digits", options={"width": 8}, adversary=part)
    alone = Trainer(make_run(made, 0), made, order_seed=1)
    for size in sizes:
        alone.step(size)
    for name, value in load_file(tmp_path / f"0-{ranks}").items():
        wanted = dict(alone.run.model.named_parameters())[name]
        torch.testing.assert_close(value, wanted, rtol=0, atol=0 if ranks == 2 else 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_stream_makes_what_this_one_would():
    from isobatch.train.world import Device

    made = parsed(task="digits", options={"width": 8}, adversary={**PART, "tau": 1})
    runs = []
    for other in (False, True):
        one = Trainer(make_run(made, 0), made, order_seed=1, device=Device("cuda"))
        if other:
            one.passes.ahead_by(OtherStream(one.passes.directions.make, "cuda"))
        for size in (12, 12, 24, 24):
            one.step(size)
        runs.append([p.detach() for p in one.run.model.parameters()])
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_a_loop_of_one_s_own_gets_the_same_directions():
    """StaleAdversary over a loader against the trainer, weight by weight."""
    one = mlp(adversary={**PART, "tau": 2}, ema=None, optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.0})
    other = mlp(ema=None, optimizer={"name": "sgd", "lr": 0.05, "momentum": 0.0})
    run, order = other.run, other.order
    adversary = StaleAdversary(run.loss, run.model, tau=2, bounds=(0.0, 1.0))
    batches = LookAhead([run.samples[order.indices(first, 12)] for first in range(0, 60, 12)], ahead=2)
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.05)
    for clean, moved in adversary.over(batches, eps=lambda seen: 0.1):
        optimizer.zero_grad()
        (0.5 * run.step(clean) + 0.5 * run.step(moved)).backward()
        optimizer.step()
        one.step()
        for a, b in zip(one.run.model.parameters(), run.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_what_lies_ahead_is_in_the_state():
    one, fresh = (mlp(adversary={**PART, "tau": 2}) for _ in range(2))
    for size in (12, 12, 12):
        one.step(size)
    state = state_of(one)
    assert state["turns"]["prepared"]["keys"] == [[36, 12], [48, 12]]
    assert state["turns"]["prepared"]["made"]["0"].dtype == torch.int8
    restore(fresh, state, state)
    other = mlp(adversary={**PART, "tau": 1})
    with pytest.raises(InputError, match="tau=1 cannot take up a state of tau=2"):
        restore(other, state, state)
    assert one.step().loss == fresh.step().loss
    elsewhere = mlp(adversary={**PART, "tau": 2})
    restore(elsewhere, state, None)  # another world: made anew by the weights of now
    assert elsewhere.step(12).verdict is StepVerdict.APPLY


@pytest.mark.parametrize(
    ("part", "match"),
    [
        ({"eps": -0.1}, r"adversary\.eps=-0\.1"),
        ({"tau": -1}, r"adversary\.tau=-1"),
        ({"weights": [-1.0, 1.0]}, r"adversary\.weights=\[-1\.0, 1\.0\]"),
        ({"weights": [0.0, 0.0]}, "not both 0"),
        ({"bounds": [1.0, 0.0]}, "must rise"),
        ({"norms": "two"}, "needs a model with batch norm"),
        ({"warmup": "601 samples"}, "warmup=601"),
        ({"form": "pgd"}, r"adversary\.form"),
    ],
)
def test_bad_recipes_are_refused(part, match):
    with pytest.raises(InputError, match=match):
        trainer(adversary={**PART, **part})
    with pytest.raises(InputError, match=r"adversary\.weights is missing"):
        trainer(adversary={"eps": 0.1})


def test_bad_loops_are_refused():
    run = softmax_regression()
    adversary = StaleAdversary(run.loss, run.model, tau=2)
    with pytest.raises(InputError, match="tau=2 is more than the loader's look-ahead of 1"):
        next(adversary.over(LookAhead([], ahead=1), eps=0.1))
    with pytest.raises(InputError, match=r"eps=-0\.1"):
        next(adversary.over(LookAhead([], ahead=2), eps=-0.1))
    with pytest.raises(InputError, match="place=3 is beyond the look-ahead of 2"):
        LookAhead([1, 2], ahead=2).peek(3)
    with pytest.raises(InputError, match="int64 cannot be moved"):
        directions(run.loss, run.model, torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="needs draws"):
        directions(run.loss, run.model, torch.zeros(1, 2), "random-sign")
    with pytest.raises(InputError, match="do not belong to inputs"):
        perturbed(torch.zeros(2, 2), torch.zeros(1, 2), 0.1)
    with pytest.raises(InputError, match="has no streams"):
        OtherStream(lambda segment: torch.zeros(1), "cpu")
    with pytest.raises(InputError, match="do not make pairs"):
        Pair.current()
    with pytest.raises(InputError, match=r"no \[adversary\]"):
        helped(mlp(), Pair(mlp().world, 1, False))
    with pytest.raises(InputError, match="not invariant"):
        trainer(optimizer={"name": "invariant-adamw", "lr": 1e-3}, adversary=PART)
    with pytest.raises(InputError, match=r"remove \[noise\]"):
        trainer(adversary=PART, noise={"every": 2})
