"""More trainers, right and wrong, in forms that the zoo does not have: no torch optimizer, other randomness."""

import numpy as np
from tests.zoo.common import F, Subject, mlp, mse, nn, pieces, regression, sgd, share, torch

VARIANTS = {}


def variant(*causes, code=None):
    """Register a trainer with the causes that must be named, and the exit code."""

    def keep(make):
        VARIANTS[make.__name__] = (make, list(causes), code if code is not None else 4 if causes else 0)
        return make

    return keep


def loop(each=lambda net, piece, loss: None, before_step=lambda net: None, loss_of=mse, **watched):
    net = mlp()
    optimizer = sgd(net)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            loss = loss_of(net, piece) * share(piece, batch)
            loss.backward()
            each(net, piece, loss)
        before_step(net)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(net, update, regression(), **watched)


def by_hand(scale):
    """Heavy ball without an optimizer of torch."""
    net = mlp()
    velocity = [torch.zeros_like(p) for p in net.parameters()]

    def update(batch, parts):
        total = [torch.zeros_like(p) for p in net.parameters()]
        for piece in pieces(batch, parts):
            grads = torch.autograd.grad(mse(net, piece) * scale(piece, batch), list(net.parameters()))
            for held, grad in zip(total, grads, strict=True):
                held += grad
        with torch.no_grad():
            for p, grad, v in zip(net.parameters(), total, velocity, strict=True):
                p.sub_(v.mul_(0.9).add_(grad), alpha=0.1)

    return Subject(net, update, regression())


@variant()
def by_hand_right():
    return by_hand(share)


@variant("missing-division", "mean-of-means")
def by_hand_not_divided():
    return by_hand(lambda piece, batch: 1.0)


def _noisy(net, of):
    with torch.no_grad():
        for p in net.parameters():
            of(p).add_(1e-3 * torch.randn_like(p))


@variant("noise-per-part")
def weight_noise_every_micro_batch():
    return loop(each=lambda net, piece, loss: _noisy(net, lambda p: p))


@variant()
def weight_noise_once():
    return loop(before_step=lambda net: _noisy(net, lambda p: p))


@variant(code=3)
def mixing_by_numpy():
    def loss_of(net, piece):
        return F.mse_loss(net(np.random.beta(1, 1) * piece[0]), piece[1])  # noqa: NPY002

    return loop(loss_of=loss_of)


@variant()
def running_metric_without_effect():
    state = {"mean": torch.zeros(3)}

    def each(net, piece, loss):
        state["mean"] = 0.9 * state["mean"] + 0.1 * loss.detach()

    return loop(each=each, state=state)


@variant("clip-per-part")
def clip_by_value_every_micro_batch():
    return loop(each=lambda net, piece, loss: torch.nn.utils.clip_grad_value_(net.parameters(), 1e-3))


@variant("sum-instead-of-mean")
def sum_only_when_split():
    net = mlp()
    optimizer = sgd(net, 1e-3)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            mse(net, piece, "sum" if parts > 1 else "mean").backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(net, update, regression())


@variant("samples-lost")
def first_micro_batch_twice():
    net = mlp()
    optimizer = sgd(net)

    def update(batch, parts):
        found = pieces(batch, parts)
        for piece in found + found[:1] * (parts > 1):
            (mse(net, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(net, update, regression())


@variant("step-on-skip")
def scaler_passed_by():
    net = mlp()
    optimizer, scaler = sgd(net), torch.amp.GradScaler("cpu", init_scale=8.0)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            scaler.scale(mse(net, piece) * share(piece, batch)).backward()
        scaler.unscale_(optimizer)
        if parts > 1:
            optimizer.step()
        else:
            scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return Subject(net, update, regression())


@variant()
def two_optimizers():
    net = nn.ModuleDict({"one": mlp(), "two": mlp()})
    optimizers = [sgd(net["one"]), sgd(net["two"])]

    def update(batch, parts):
        for name, optimizer in zip(net, optimizers, strict=True):
            for piece in pieces(batch, parts):
                (mse(net[name], piece) * share(piece, batch)).backward()
            optimizer.step()
            optimizer.zero_grad()

    return Subject(net, update, regression())
