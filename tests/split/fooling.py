"""Trainers that a check could be fooled by: nothing to compare, what only looks right, what only looks wrong."""

import random

import numpy as np
from tests.zoo.common import (
    F,
    Subject,
    copied,
    ema,
    language_model,
    mlp,
    mse,
    nn,
    pieces,
    regression,
    sgd,
    share,
    torch,
)
from torch.utils.data import TensorDataset

from isobatch.split import Loop

REFUSED, JUDGED = {}, {}


def refused(said):
    """Register a trainer that cannot be compared, with words of the reason."""
    return lambda make: REFUSED.setdefault(make.__name__, (make, said))[0]


def judged(*causes, code=None, **options):
    """Register a trainer with its causes in order, its exit code and options of the check."""
    wanted = code if code is not None else 4 if causes else 0
    return lambda make: JUDGED.setdefault(make.__name__, (make, list(causes), wanted, options))[0]


def loop(
    net=None, loss_of=mse, scale=share, samples=None, each=lambda net: None, before=lambda net: None, lr=0.1, **watched
):
    net = mlp() if net is None else net
    optimizer = sgd(net, lr)

    def update(batch, parts):
        net.train()
        for piece in pieces(batch, parts):
            (loss_of(net, piece) * scale(piece, batch)).backward()
            each(net)
        before(net)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(net, update, regression() if samples is None else samples, **watched)


def once(piece, batch):
    return 1.0


@refused("no optimizer step is made")
def never_steps():
    made = loop()
    made.update = lambda batch, parts: mse(made.model, batch).backward()
    return made


@refused("no optimizer step is made")
def scaler_that_skips():
    net = mlp()
    optimizer, scaler = sgd(net), torch.amp.GradScaler("cpu", init_scale=2.0**120)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            loss = mse(net, piece) * share(piece, batch)
            scaler.scale(loss * torch.tensor(1e300)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return Subject(net, update, regression())


@refused("is zero_grad called before the step")
def steps_with_nothing():
    return loop(before=lambda net: net.zero_grad())


@refused("weights that are not finite")
def loss_is_no_number():
    return loop(scale=lambda piece, batch: float("nan"))


@refused("is the learning rate 0")
def rate_is_zero():
    return loop(lr=0.0)


@refused("update returned tuple; it must return the loss as a number")
def returns_more_than_a_loss():
    made = loop()
    update = made.update
    made.update = lambda batch, parts: (update(batch, parts), 3)
    return made


@judged(code=3)
def cuts_parts_of_its_own():
    """The same micro-batches of two, never divided, whatever is asked for."""
    net = mlp()
    optimizer = sgd(net)

    def update(batch, parts):
        for piece in pieces(batch, 4):
            mse(net, piece).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(net, update, regression())


@judged("loss-reported", "unexplained")
def never_clears_and_reports_the_last():
    """A wrong report does not explain weights that differ from the second update on."""
    net = mlp()
    optimizer = sgd(net)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            loss = mse(net, piece) * share(piece, batch)
            loss.backward()
        optimizer.step()
        if parts == 1:
            optimizer.zero_grad()
        return loss.item()

    return Subject(net, update, regression())


@judged("missing-division", "mean-of-means")
def one_of_two_optimizers():
    """The optimizer that steps last is given the right gradient."""
    net = nn.ModuleDict({"one": mlp(), "two": mlp()})
    optimizers = [sgd(part) for part in net.values()]

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(net["one"], piece) + mse(net["two"], piece) * share(piece, batch)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return Subject(net, update, regression())


SHARED = TensorDataset(*(one.float() for one in regression()))


@judged("missing-division", "mean-of-means")
def samples_outlive_the_trainer():
    """One data set for every trainer: what one probe puts into it reaches no other."""
    return loop(samples=SHARED, scale=once)


TEACHER = copied(mlp()).float()


@judged()
def teacher_outlives_the_trainer():
    return loop(loss_of=lambda net, piece: F.mse_loss(net(piece[0]), TEACHER(piece[0])), teacher=TEACHER)


@judged(code=3)
def mixing_by_a_generator_of_its_own():
    numbers = np.random.default_rng(0)
    return loop(loss_of=lambda net, piece: F.mse_loss(net(piece[0] * numbers.beta(1, 1)), piece[1]))


@judged(code=3)
def mixing_by_a_random_of_its_own():
    numbers = random.Random(0)
    return loop(loss_of=lambda net, piece: F.mse_loss(net(piece[0] * numbers.random()), piece[1]))


@judged(code=3)
def legacy_generator_of_its_own():
    numbers = np.random.RandomState(0)
    return loop(loss_of=lambda net, piece: F.mse_loss(net(piece[0] * numbers.rand()), piece[1]))


@judged()
def mixing_by_beta():
    def loss_of(net, piece):
        share_of_one = torch.distributions.Beta(*2 * [torch.tensor(0.4)]).sample()
        return F.mse_loss(net(piece[0] * share_of_one), piece[1])

    return loop(loss_of=loss_of)


@judged()
def half_of_the_units_dropped():
    return loop(mlp(nn.Dropout(0.5)))


@judged("mode-per-part")
def evaluates_after_the_first_micro_batch():
    return loop(mlp(nn.Dropout(0.5)), each=lambda net: net.eval())


@judged()
def passes_again_for_a_metric():
    """One micro-batch passes twice, and weighs once."""
    seen = []

    def loss_of(net, piece):
        if not seen:
            seen.append(float(net(piece[0]).detach().mean()))
        return mse(net, piece)

    return loop(loss_of=loss_of, before=lambda net: seen.clear())


@judged("step-missed")
def counts_micro_batches_wrongly():
    net = mlp()
    optimizer = sgd(net)

    def update(batch, parts):
        for place, piece in enumerate(pieces(batch, parts)):
            (mse(net, piece) * share(piece, batch)).backward()
            if parts == 1 or (place + 1) % (parts + 1) == 0:
                optimizer.step()
                optimizer.zero_grad()

    return Subject(net, update, regression())


@judged("mean-of-means")
def micro_batch_without_tokens():
    """Two of eight samples have no token: in four parts, one part has none."""
    torch.manual_seed(7)
    x, y = torch.randint(0, 11, (24, 9)), torch.randint(0, 11, (24, 9))
    y.view(3, 8, 9)[:, :2] = -100
    return loop(
        language_model(), lambda net, piece: F.cross_entropy(net(piece[0]).flatten(0, 1), piece[1].flatten()),
        samples=(x, y),
    )  # fmt: skip


@judged()
def loss_that_is_zero():
    """Advantages that add up to zero: what is reported is rounding."""
    net = mlp()
    optimizer = sgd(net)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            out = net(piece[0])
            loss = ((piece[1] - batch[1].mean(0)) * (out - out.detach()).exp()).mean() * share(piece, batch)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(net, update, regression())


@judged(batch_size=4)
def four_samples_in_a_loader():
    """Three micro-batches of four samples are two in a loader."""
    net = mlp()
    optimizer = sgd(net)

    def train(loader, accumulation):
        for place, piece in enumerate(loader):
            (mse(net, piece) / accumulation).backward()
            if (place + 1) % accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()

    return Loop(net, train, regression())


def _half(inside, outlier):
    net = nn.ModuleDict({"one": mlp(), "two": nn.Linear(5, 2)})
    optimizer, average = torch.optim.AdamW(net.parameters(), lr=1e-2), copied(net)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            with torch.autocast("cpu", torch.bfloat16, enabled=not outlier):
                loss = mse(net["one"], piece) + (1e7 if outlier else 1) * mse(net["two"], piece)
            (loss * share(piece, batch)).backward()
            if inside:
                ema(average, net)
        optimizer.step()
        optimizer.zero_grad()
        if not inside:
            ema(average, net)

    return Subject(net, update, regression(), average=average)


@judged(float64=False)
def average_in_half_precision():
    return _half(inside=False, outlier=False)


@judged("average-per-part", float64=False)
def average_per_part_in_half_precision():
    return _half(inside=True, outlier=False)


@judged("average-per-part", float64=False)
def average_per_part_beside_a_huge_gradient():
    return _half(inside=True, outlier=True)
