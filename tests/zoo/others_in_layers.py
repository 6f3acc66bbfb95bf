"""Trainers in other styles: teachers, running means, compiled steps, losses over a batch, state in layers."""

import copy

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
    token_losses,
    tokens,
    torch,
)
from tests.zoo.others import OTHERS, classifier, labels, other
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.nn.utils.parametrizations import spectral_norm


def consistent(inside):
    """A mean teacher's predictions are the targets of noisy samples."""
    model = mlp()
    teacher, optimizer = copied(model), sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            target = teacher(piece[0])
            loss = mse(model, piece) + F.mse_loss(model(piece[0] * 1.1), target)
            (loss * share(piece, batch)).backward()
            if inside:
                ema(teacher, model, 0.9)
        optimizer.step()
        optimizer.zero_grad()
        if not inside:
            ema(teacher, model, 0.9)

    return Subject(model, update, regression())


@other()
def mean_teacher_once():
    return consistent(inside=False)


@other("teacher-per-part")
def mean_teacher_between_micro_batches():
    return consistent(inside=True)


def schedule_free(inside):
    """The gradient is taken between fast weights and their running mean, which moves once, or with every part."""
    model = mlp()
    fast, mean, count = ([p.detach().clone() for p in model.parameters()] for _ in range(2)), None, [0]
    fast, mean = fast

    def average():
        count[0] += 1
        for m, f in zip(mean, fast, strict=True):
            m.lerp_(f.to(m.dtype), 1 / (count[0] + 1))

    def update(batch, parts):
        with torch.no_grad():
            for p, f, m in zip(model.parameters(), fast, mean, strict=True):
                p.copy_(0.1 * f + 0.9 * m)
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            if inside:
                average()
        with torch.no_grad():
            for p, f in zip(model.parameters(), fast, strict=True):
                f.sub_(0.1 * p.grad.to(f.dtype))
                p.grad = None
        if not inside:
            average()

    return Subject(model, update, regression(), fast={"fast": fast}, mean={"mean": mean})


@other()
def schedule_free_by_hand():
    return schedule_free(inside=False)


@other("average-per-part")
def schedule_free_mean_in_every_micro_batch():
    return schedule_free(inside=True)


@other()
def compiled():
    model = mlp()
    fast, optimizer = torch.compile(model, backend="eager"), torch.optim.AdamW(model.parameters(), lr=1e-2)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = mse(fast, piece) * share(piece, batch)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, regression())


@other()
def scaled_by_hand():
    """A constant loss scale, taken out before clipping."""
    model = mlp()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch) * 1024).backward()
        for p in model.parameters():
            p.grad.div_(1024)
        clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other()
def lookahead():
    model = mlp()
    slow, optimizer, count = copied(model), sgd(model, momentum=0.9), [0]

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        count[0] += 1
        if count[0] % 2 == 0:
            ema(slow, model, 0.5)
            model.load_state_dict(slow.state_dict())

    return Subject(model, update, regression(), slow=slow)


@other()
def optimizer_with_a_closure():
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=1)

    def update(batch, parts):
        def closure():
            optimizer.zero_grad()
            total = 0.0
            for piece in pieces(batch, parts):
                loss = mse(model, piece) * share(piece, batch)
                loss.backward()
                total += loss.detach()
            return total

        return float(optimizer.step(closure))

    return Subject(model, update, regression())


@other()
def gradient_penalty():
    """The penalty is of each sample, through a second backward pass."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def update(batch, parts):
        for x, y in pieces(batch, parts):
            x = x.clone().requires_grad_()
            out = model(x)
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            ((F.mse_loss(out, y) + (slope.norm(dim=1) - 1).square().mean()) * len(x) / len(batch[0])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("clip-per-part")
def value_clipped_in_every_micro_batch():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            clip_grad_value_(model.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("doubled-division")
def divided_by_a_hook_as_well():
    model, now = mlp(), {"parts": 1}
    optimizer = sgd(model, momentum=0.9)
    for p in model.parameters():
        p.register_hook(lambda g: g / now["parts"])

    def update(batch, parts):
        now["parts"] = parts
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("gradient-lost")
def forgets_before_every_backward():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            optimizer.zero_grad()
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()

    return Subject(model, update, regression())


@other("in-batch-loss")
def overlap_of_the_batch():
    """Soft Dice over all samples of a part."""
    model = classifier()
    optimizer = sgd(model)

    def update(batch, parts):
        for x, y in pieces(batch, parts):
            p, t = model(x).softmax(-1), F.one_hot(y, 3).to(x.dtype)
            loss = 1 - ((2 * (p * t).sum(0) + 1) / (p.sum(0) + t.sum(0) + 1)).mean()
            (loss * len(x) / len(batch[0])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, labels())


@other("in-batch-loss")
def covariance_of_the_outputs():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            out = model(piece[0])
            spread = F.relu(1 - (out.var(0, correction=0) + 1e-4).sqrt()).mean()
            ((F.mse_loss(out, piece[1]) + spread) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


class Codes(nn.Module):
    """A codebook that follows what is assigned to it, in the forward pass."""

    def __init__(self):
        super().__init__()
        self.front, self.back = nn.Linear(5, 4), nn.Linear(4, 2)
        self.register_buffer("codes", torch.randn(6, 4))

    def forward(self, x):
        z = self.front(x)
        nearest = torch.cdist(z.detach(), self.codes).argmin(1)
        q = self.codes[nearest]
        if self.training:
            with torch.no_grad():
                hot = F.one_hot(nearest, 6).to(z.dtype)
                means = (hot.T @ z) / hot.sum(0)[:, None].clamp(min=1)
                self.codes.copy_(torch.where(hot.sum(0)[:, None] > 0, 0.9 * self.codes + 0.1 * means, self.codes))
        return self.back(z + (q - z).detach())


@other("centre-per-part")
def codebook_moves_with_every_forward():
    model = Codes()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("centre-per-part")
def power_iteration_with_every_forward():
    model = nn.Sequential(spectral_norm(nn.Linear(5, 8)), nn.Tanh(), nn.Linear(8, 2))
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("noise-per-part")
def gradient_noise_in_every_micro_batch():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            for p in model.parameters():
                p.grad.add_(torch.randn_like(p), alpha=0.01)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("scheduler-per-part")
def one_cycle_in_every_micro_batch():
    model = mlp()
    optimizer = sgd(model, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=200)

    def update(batch, parts):
        for place, piece in enumerate(pieces(batch, parts)):
            (mse(model, piece) * share(piece, batch)).backward()
            if place + 1 == parts:
                optimizer.step()
                optimizer.zero_grad()
            scheduler.step()

    return Subject(model, update, regression(), scheduler=scheduler)


@other("average-per-part")
def average_with_a_hook_of_the_backward_pass():
    """The average is updated by a hook that runs after every backward pass."""
    model = mlp()
    average, optimizer = copy.deepcopy(model), sgd(model)
    next(iter(model.parameters())).register_post_accumulate_grad_hook(lambda p: ema(average, model))

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression(), average=average)


@other("samples-lost")
def drops_the_last_micro_batch():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        chunks = pieces(batch, parts)
        for piece in chunks[: max(1, parts - 1)]:
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("sum-instead-of-mean")
def penalty_is_a_sum():
    """A sum over samples with the number of parts in the denominator."""
    model = language_model()
    optimizer = sgd(model, lr=0.01)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (token_losses(model, piece).sum() / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, tokens())


@other()
def clipped_by_the_sample():
    """Differentially private: each sample's gradient is clipped, noise is added once."""
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for x, y in pieces(batch, parts):
            for place in range(len(x)):
                mse(model, (x[place : place + 1], y[place : place + 1])).backward()
                clip_grad_norm_(model.parameters(), 0.5)
                for one, p in zip(total, model.parameters(), strict=True):
                    one.add_(p.grad)
                optimizer.zero_grad()
        for one, p in zip(total, model.parameters(), strict=True):
            p.grad = (one + 0.01 * torch.randn_like(one)) / len(batch[0])
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other()
def sparse_embedding():
    model = nn.Sequential(nn.Embedding(11, 6, sparse=True), nn.Linear(6, 11))
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (token_losses(model, piece).sum() / batch[2].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, tokens())


class Experts(nn.Module):
    """Three experts and a gate."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(5, 3), nn.ModuleList(nn.Linear(5, 2) for _ in range(3))

    def forward(self, x):
        shares = self.gate(x).softmax(-1)
        return sum(shares[:, [i]] * expert(x) for i, expert in enumerate(self.experts)), shares


@other("in-batch-loss")
def experts_balanced_within_a_micro_batch():
    model = Experts()
    optimizer = sgd(model)

    def update(batch, parts):
        for x, y in pieces(batch, parts):
            out, shares = model(x)
            load = F.one_hot(shares.argmax(-1), 3).to(x.dtype).mean(0)
            ((F.mse_loss(out, y) + 1.5 * (load * shares.mean(0)).sum()) * len(x) / len(batch[0])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("in-batch-loss")
def ranked_pairs_of_a_micro_batch():
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = sgd(model)

    def update(batch, parts):
        for x, y in pieces(batch, parts):
            score, target = model(x)[:, 0], y[:, 0]
            above = (target[:, None] > target).to(x.dtype)
            loss = (above * F.softplus(score - score[:, None])).sum() / above.sum().clamp(min=1)
            (loss * len(x) / len(batch[0])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("clip-per-part")
def normalised_by_hand_in_every_micro_batch():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        kept = [torch.zeros_like(p) for p in model.parameters()]
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            size = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            for one, p in zip(kept, model.parameters(), strict=True):
                one.add_(p.grad * min(1.0, 0.01 / float(size)))
            optimizer.zero_grad()
        for one, p in zip(kept, model.parameters(), strict=True):
            p.grad = one
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("decay-per-part")
def decay_in_every_backward_pass():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            for p in model.parameters():
                p.grad.add_(p.detach(), alpha=0.01)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other("batch-norm")
def batch_norm_beside_clipping():
    """A layer too wide for a whole sketch: the length of the clipped gradient is its own, not the sketch's."""
    model = nn.Sequential(nn.Linear(5, 1200), nn.BatchNorm1d(1200), nn.Tanh(), nn.Linear(1200, 2))
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


ALL = OTHERS
"""Both files."""
