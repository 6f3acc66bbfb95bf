"""A clock of tokens: draws, gradient, schedule, average and noise follow the tokens, padded or not, in any passes."""

import math

import pytest
import torch
from tests.recipes import recipe
from torch import nn

from isobatch import InputError
from isobatch.data import SampleOrder
from isobatch.tasks import Run, TensorSamples, make_run
from isobatch.train import Trainer
from isobatch.train.persistence import restore, state_of

LENGTHS = [3, 1, 4, 2, 5, 2, 3, 1, 4, 5]
WIDTH = 5


def loss(net, batch):
    """Mean over real positions of what a net of one number makes of each."""
    x, lengths = batch
    real = torch.arange(WIDTH) < lengths[:, None]
    return ((net(x[..., None])[..., 0] - x.square()).square() * real).sum() / real.sum()


def run(lengths=True, counts=False, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).to(dtype)
    data = TensorSamples(torch.randn(len(LENGTHS), WIDTH, dtype=dtype), torch.tensor(LENGTHS))
    return Run(model, data, loss, lambda net: {"loss": 1.0}, lengths=LENGTHS if lengths else None,
               counts=(lambda batch: float(batch[1].sum())) if counts else None)  # fmt: skip


def made(**parts):
    batch = {"size": 12, "unit": "tokens", **parts.pop("batch", {})}
    whole = {"data_size": sum(LENGTHS), "batch": batch, "optimizer": {"lr": 0.05, "momentum": 0.5},
             "schedule": {"length": "240 tokens", "warmup": "36 tokens"},
             "ema": {"decay": None, "half_life": "60 tokens"}, **parts}  # fmt: skip
    return recipe(**whole)


def packs(order, budget):
    """Runs of the order that hold at most `budget` tokens, one after the other."""
    place = 0
    while True:
        indices, held = [], 0
        while held + LENGTHS[i := int(order.indices(place, 1)[0])] <= budget:
            indices.append(i)
            held, place = held + LENGTHS[i], place + 1
        yield indices, held


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.run.model.parameters()])


def test_every_setting_follows_the_tokens_as_in_a_loop_by_hand():
    trainer, twin = Trainer(run(), made(), order_seed=3), run()
    optimizer = torch.optim.SGD(twin.model.parameters(), lr=1.0, momentum=0.5)
    average = [p.detach().clone() for p in twin.model.parameters()]
    seen, stairs = 0, trainer.recipe.staircase()
    for indices, tokens in packs(SampleOrder(len(LENGTHS), 3), 12):
        if seen >= 200:
            break
        step = trainer.step()
        optimizer.zero_grad()
        picked = torch.tensor(indices)
        loss(twin.model, twin.samples[picked]).backward()
        lr = 0.05 * stairs.mean(seen, seen + tokens)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        for mean, p in zip(average, twin.model.parameters(), strict=True):
            rho = 0.5 ** (tokens / 60)
            mean.mul_(rho).add_(p.detach(), alpha=1 - rho)
        seen += tokens
        assert (step.batch, step.lr) == (tokens, pytest.approx(lr, rel=1e-12))
        assert trainer.seen == trainer.drawn == trainer.average.seen == seen
    assert torch.allclose(weights(trainer), torch.cat([p.detach().flatten() for p in twin.model.parameters()]))
    with trainer.average.applied(trainer.run.model):
        assert torch.allclose(weights(trainer), torch.cat([mean.flatten() for mean in average]))


@pytest.mark.parametrize("micro", [1, 3, 4, 6])
@pytest.mark.parametrize(("lengths", "counts", "batch"), [
    (True, False, {}),
    (True, True, {}),
    (False, True, {"sequence": WIDTH, "size": 36}),
])  # fmt: skip
def test_one_pass_and_many_are_the_same_step(lengths, counts, batch, micro):
    data_size = None if batch else sum(LENGTHS)
    one = Trainer(run(lengths, counts), made(batch=batch, data_size=data_size))
    many = Trainer(run(lengths, counts), made(batch={**batch, "micro": micro}, data_size=data_size))
    for _ in range(8):
        assert one.step().loss == pytest.approx(many.step().loss, rel=1e-12)
    assert torch.allclose(weights(one), weights(many), rtol=1e-10, atol=1e-14)
    assert one.seen == many.seen


def test_padded_samples_count_their_padding_and_weigh_by_what_is_real():
    trainer = Trainer(run(lengths=False, counts=True), made(batch={"sequence": WIDTH}, data_size=WIDTH * len(LENGTHS)))
    step = trainer.step()
    assert step.batch == 2 * WIDTH  # the most that fits into 12
    assert trainer.seen == 2 * WIDTH


def test_a_run_ends_with_the_sample_that_passes_the_end():
    trainer = Trainer(run(), made(schedule={"length": "100 tokens", "warmup": None}))
    for stop in (7, 50, 100):
        trainer.train_to(stop)
        assert stop <= trainer.seen < stop + max(LENGTHS)
    assert trainer.seen == trainer.drawn == trainer.average.seen


def test_a_resumed_run_is_bit_exact():
    whole, first, second = (Trainer(run(), made()) for _ in range(3))
    whole.train_to(150)
    first.train_to(70)
    for _ in range(5):
        first.step()
    while whole.seen < first.seen:
        whole.step()
    restore(second, state_of(first))
    for one in (first, second):
        one.step()
    assert second.seen == first.seen
    assert torch.equal(weights(first), weights(second))


def test_the_noise_scale_counts_tokens():
    parts = {"noise": {"every": 1, "half_life": "60 tokens", "capture": "chunks"}, "batch": {"micro": 4}}
    trainer = Trainer(run(dtype=torch.float32), made(**parts))
    for _ in range(6):
        trainer.step()
    assert trainer.monitor.noise.seen == trainer.seen
    assert "tokens" in str(trainer.monitor.noise.estimate()) or not trainer.monitor.noise.estimate().value


def test_a_skipped_step_moves_only_the_position():
    trainer = Trainer(run(), made())
    before = weights(trainer).clone()
    trainer.guard = type(trainer.guard)(patience=5)
    trainer.run.loss = lambda net, batch: loss(net, batch) * math.nan
    trainer.gradient.run_.loss = trainer.run.loss
    step = trainer.step()
    assert (trainer.seen, trainer.drawn) == (0, step.batch)
    assert torch.equal(weights(trainer), before)


BAD = {
    "nobody says the tokens": (
        lambda: Trainer(run(lengths=False), made(data_size=None)),
        "nobody says how many tokens",
    ),
    "a batch below a sample": (
        lambda: Trainer(run(), made(batch={"size": 4})),
        "batch.size=4 tokens is below the longest",
    ),
    "views of samples": (
        lambda: Trainer(run(), made(augment={"view": "shift", "views": 2})),
        r"\[augment\] beside batch.unit = .tokens. can be planned but not trained",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_clock_of_tokens_can_count_is_refused(name):
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call()


def test_lengths_of_other_samples_are_refused():
    one = run()
    one.lengths = LENGTHS[:-1]
    with pytest.raises(InputError, match=r"Run\(lengths=...\) has shape \(9,\); give one for each of 10"):
        Trainer(one, made())


@pytest.mark.parametrize(
    ("options", "epoch"), [({}, 64 * 8192), ({"ragged": True}, None), ({"padded": True}, 64 * 8192)]
)
def test_the_text_task_counts_its_tokens(options, epoch):
    whole = {"task": "text", "batch": {"size": 512, "unit": "tokens"}, "ema": None,
             "schedule": {"length": "1024 tokens", "warmup": None}}  # fmt: skip
    options = {"width": 8, "layers": 1, **options, **({"ragged": True} if "padded" in options else {})}
    chosen = recipe(**whole, data_size=None, options=options)
    trainer = Trainer(make_run(chosen, 0), chosen)
    real = trainer.drawing.epoch
    assert real == epoch or (epoch is None and 8 * 8192 < real < 64 * 8192)
    step = trainer.step()
    assert 512 - 64 < step.batch <= 512
    with pytest.raises(InputError, match=rf"data_size=8192 but task 'text' has {real} tokens"):
        make_run(recipe(**whole, data_size=8192, options=options), 0)
