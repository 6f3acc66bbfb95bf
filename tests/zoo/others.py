"""Trainers in other styles: adapters, adversaries, queues, policies, perturbed weights, engines of their own."""

from tests.zoo.common import (
    F,
    Subject,
    copied,
    ema,
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
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

OTHERS = {}


def other(*causes):
    """Register a trainer with the causes that must be named; none for a right one."""

    def keep(make):
        OTHERS[make.__name__] = (make, causes)
        return make

    return keep


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter."""

    def __init__(self, size, out):
        super().__init__()
        self.base = nn.Linear(size, out).requires_grad_(False)
        self.down, self.up = nn.Linear(size, 2, bias=False), nn.Linear(2, out, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def labels(rows=24):
    torch.manual_seed(3)
    return torch.randn(rows, 5), torch.randint(0, 3, (rows,))


def classifier():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def adapters(norm):
    embed = nn.Embedding(11, 6).requires_grad_(False)
    model = nn.Sequential(embed, Adapted(6, 11))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (token_losses(model, piece).sum() / norm(piece, batch, parts)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, tokens())


@other()
def adapters_with_global_token_counts():
    return adapters(lambda piece, batch, parts: batch[2].sum())


@other("mean-of-means")
def adapters_with_token_counts_of_their_own():
    return adapters(lambda piece, batch, parts: piece[2].sum() * parts)


def perturbed(each):
    """Sharpness-aware: a step up, the gradient there, back, a step down."""
    model = mlp()
    optimizer = sgd(model)

    def climb():
        size = torch.stack([p.grad.norm() for p in model.parameters()]).norm() + 1e-12
        moves = [0.05 * p.grad / size for p in model.parameters()]
        for p, move in zip(model.parameters(), moves, strict=True):
            p.data.add_(move)
        optimizer.zero_grad()
        return moves

    def back(moves):
        for p, move in zip(model.parameters(), moves, strict=True):
            p.data.sub_(move)

    def update(batch, parts):
        chunks = pieces(batch, parts)
        if not each:
            for piece in chunks:
                (mse(model, piece) * share(piece, batch)).backward()
            moves = climb()
            for piece in chunks:
                (mse(model, piece) * share(piece, batch)).backward()
            back(moves)
        else:
            kept = [torch.zeros_like(p) for p in model.parameters()]
            for piece in chunks:
                mse(model, piece).backward()
                moves = climb()
                (mse(model, piece) * share(piece, batch)).backward()
                back(moves)
                for one, p in zip(kept, model.parameters(), strict=True):
                    one.add_(p.grad)
                optimizer.zero_grad()
            for one, p in zip(kept, model.parameters(), strict=True):
                p.grad = one
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@other()
def sharpness_aware():
    return perturbed(each=False)


@other("perturbation-per-part")
def sharpness_of_every_micro_batch():
    return perturbed(each=True)


def queued(inside):
    """Contrast with a queue of keys of a momentum encoder; keys enter the queue after the update, or between parts."""
    model, keys = nn.Linear(5, 4), copied(nn.Linear(5, 4))
    keys.load_state_dict(model.state_dict())
    optimizer, queue = sgd(model), torch.randn(16, 4)

    def enqueue(x):
        with torch.no_grad():
            new = F.normalize(keys(x), dim=1).to(queue.dtype)
            queue.copy_(torch.cat([new, queue])[: len(queue)])

    def update(batch, parts):
        for piece in pieces(batch, parts):
            x = piece[0]
            q, k = F.normalize(model(x), dim=1), F.normalize(keys(x + 0.1), dim=1)
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.to(q.dtype).T], 1) / 0.2
            loss = F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
            (loss * len(x) / len(batch[0])).backward()
            if inside:
                enqueue(x)
        optimizer.step()
        optimizer.zero_grad()
        ema(keys, model, 0.9)
        if not inside:
            enqueue(batch[0])

    return Subject(model, update, regression(), keys=keys, queue={"queue": queue})


@other()
def queue_after_the_update():
    return queued(inside=False)


@other("centre-per-part")
def queue_between_micro_batches():
    return queued(inside=True)


def adversaries(inside):
    model = nn.ModuleDict({"g": nn.Linear(3, 5), "d": nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))})
    down, up = sgd(model["d"]), sgd(model["g"])

    def update(batch, parts):
        chunks = pieces(batch, parts)
        for x, z in chunks:
            fake = model["g"](z).detach()
            loss = F.softplus(-model["d"](x)).mean() + F.softplus(model["d"](fake)).mean()
            (loss * len(x) / len(batch[0])).backward()
            if inside:
                down.step()
                down.zero_grad()
        if not inside:
            down.step()
        down.zero_grad()
        up.zero_grad()
        for x, z in chunks:
            (F.softplus(-model["d"](model["g"](z))).mean() * len(x) / len(batch[0])).backward()
        up.step()
        up.zero_grad()
        down.zero_grad()

    torch.manual_seed(4)
    return Subject(model, update, (torch.randn(24, 5), torch.randn(24, 3)))


@other()
def adversary_with_two_optimizers():
    return adversaries(inside=False)


@other("optimizer-per-part")
def discriminator_steps_in_every_micro_batch():
    return adversaries(inside=True)


def advantages(own):
    """Clipped policy gradient; advantages are normalised over the batch, or over each part."""
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def normal(a):
        return (a - a.mean()) / (a.std() + 1e-8)

    def update(batch, parts):
        x, action, old, gain = batch
        whole = (x, action, old, gain if own else normal(gain))
        for x, action, old, gain in pieces(whole, parts):
            ratio = (F.log_softmax(model(x), -1).gather(1, action[:, None])[:, 0] - old).exp()
            given = normal(gain) if own else gain
            loss = -torch.min(ratio * given, ratio.clamp(0.8, 1.2) * given).mean()
            (loss * len(x) / len(batch[0])).backward()
        clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(5)
    return Subject(model, update, (torch.randn(24, 5), torch.randint(0, 3, (24,)), -torch.rand(24) - 0.8,
                                   torch.randn(24)))  # fmt: skip


@other()
def advantages_of_the_batch():
    return advantages(own=False)


@other("in-batch-loss")
def advantages_of_a_micro_batch():
    return advantages(own=True)


class Engine:
    """An engine in the style of DeepSpeed: it counts micro-steps and knows the boundary itself."""

    def __init__(self, model, parts, divides=1):
        self.model, self.parts, self.divides = model, parts, divides
        self.optimizer, self.micro_steps = torch.optim.AdamW(model.parameters(), lr=1e-2), 0
        self.main = [torch.zeros_like(p) for p in model.parameters()]

    def backward(self, loss):
        (loss / self.divides).backward()
        for main, p in zip(self.main, self.model.parameters(), strict=True):
            main.add_(p.grad)
            p.grad = None
        self.micro_steps += 1

    def step(self):
        if self.micro_steps % self.parts:
            return
        for main, p in zip(self.main, self.model.parameters(), strict=True):
            p.grad = main.clone()
            main.zero_()
        clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def engine(twice):
    model, engines = mlp(), {}

    def update(batch, parts):
        if "engine" not in engines:
            engines["engine"] = Engine(model, parts, parts if twice else 1)
        one = engines["engine"]
        for piece in pieces(batch, parts):
            one.backward(mse(model, piece) * share(piece, batch))
            one.step()

    return Subject(model, update, regression(), engines=engines)


@other()
def engine_with_gradients_of_its_own():
    return engine(twice=False)


@other("doubled-division")
def engine_divides_again():
    return engine(twice=True)


def recurrent(own):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            return self.out(pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])[0])

    model = Net()
    optimizer = sgd(model)

    def update(batch, parts):
        count = batch[2].sum()
        for x, y, lengths in pieces(batch, parts):
            mask = (torch.arange(x.shape[1]) < lengths[:, None]).to(x.dtype)
            loss = ((model(x, lengths) - y).square().mean(-1) * mask).sum()
            (loss / (lengths.sum() * parts if own else count)).backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(6)
    lengths = torch.tensor([2, 7, 3, 6, 5, 1, 4, 7] * 3)
    return Subject(model, update, (torch.randn(24, 7, 4), torch.randn(24, 7, 2), lengths))


@other()
def packed_sequences():
    return recurrent(own=False)


@other("mean-of-means")
def packed_sequences_by_their_own_length():
    return recurrent(own=True)


@other("mean-of-means")
def class_weights_of_a_micro_batch():
    """Weighted cross-entropy divides by the weights of its own labels."""
    model = classifier()
    optimizer, weight = sgd(model), torch.tensor([0.2, 1.0, 5.0])

    def update(batch, parts):
        for x, y in pieces(batch, parts):
            (F.cross_entropy(model(x), y, weight=weight.to(x.dtype)) * len(x) / len(batch[0])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, labels())


@other()
def smoothed_labels_with_tied_weights():
    table = nn.Embedding(11, 6)
    model = nn.Sequential(table, nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 11, bias=False))
    model[3].weight = table.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def update(batch, parts):
        for x, y, mask in pieces(batch, parts):
            losses = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none", label_smoothing=0.1)
            ((losses * mask.flatten()).sum() / batch[2].sum()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, tokens())


@other()
def mixed_up_before_the_split():
    model = classifier()
    optimizer = sgd(model)

    def update(batch, parts):
        x, y = batch
        share_, order = torch.rand(()), torch.randperm(len(x))
        mixed = (share_ * x + (1 - share_) * x[order], y, y[order])
        for a, b, c in pieces(mixed, parts):
            out = model(a)
            loss = share_ * F.cross_entropy(out, b) + (1 - share_) * F.cross_entropy(out, c)
            (loss * len(a) / len(x)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, labels())
