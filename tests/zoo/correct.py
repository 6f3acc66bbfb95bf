"""Trainers that do it right: none of them may be accused."""

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
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

CORRECT = {}


def correct(make):
    CORRECT[make.__name__] = make
    return make


@correct
def plain_mean():
    model = mlp()
    optimizer = sgd(model, momentum=0.9)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = mse(model, piece) * share(piece, batch)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, regression())


@correct
def divided_afterwards():
    """Sums of gradients, divided once before the step."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = mse(model, piece, "sum")
            loss.backward()
            total += loss.item()
        for p in model.parameters():
            p.grad /= batch[1].numel()
        optimizer.step()
        optimizer.zero_grad()
        return total / batch[1].numel()

    return Subject(model, update, regression())


@correct
def summed_loss():
    """A sum over the samples is the same in any parts."""
    model = mlp()
    optimizer = sgd(model, 0.01)

    def update(batch, parts):
        losses = [mse(model, piece, "sum") for piece in pieces(batch, parts)]
        for loss in losses:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return sum(float(loss.detach()) for loss in losses)

    return Subject(model, update, regression())


@correct
def one_backward():
    """All micro-batches in one graph."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())

    def update(batch, parts):
        loss = sum(mse(model, piece) * share(piece, batch) for piece in pieces(batch, parts))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return Subject(model, update, regression())


@correct
def ragged_tokens_global_count():
    model = language_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def update(batch, parts):
        count, total = batch[2].sum(), 0.0
        for piece in pieces(batch, parts):
            loss = token_losses(model, piece).sum() / count
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, tokens())


@correct
def clip_after_accumulation():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = mse(model, piece) * share(piece, batch)
            loss.backward()
            total += loss.item()
        clip_grad_norm_(model.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, regression())


@correct
def clip_by_hand():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        for p in model.parameters():
            p.grad *= min(1.0, 0.1 / float(norm))
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@correct
def clip_by_value():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@correct
def amp_with_scaler():
    model = mlp()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = mse(model, piece) * share(piece, batch)
            scaler.scale(loss).backward()
            total += loss.item()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return total

    return Subject(model, update, regression())


@correct
def gradient_checkpointing():
    first, second = nn.Sequential(nn.Linear(5, 8), nn.Tanh()), nn.Linear(8, 2)
    model = nn.Sequential(first, second)
    optimizer = sgd(model)

    def update(batch, parts):
        total = 0.0
        for x, y in pieces(batch, parts):
            hidden = checkpoint(first, x, use_reentrant=False)
            loss = F.mse_loss(second(hidden), y) * len(x) / len(batch[0])
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, regression())


@correct
def ema_once():
    model = mlp()
    average, optimizer = copied(model), torch.optim.AdamW(model.parameters())

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = mse(model, piece) * share(piece, batch)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        ema(average, model)
        return total

    return Subject(model, update, regression())


@correct
def ema_by_samples():
    """The decay is a function of the samples that an update has seen."""
    from isobatch import ModelEMA

    model = mlp()
    average, optimizer = ModelEMA(model, half_life=50), sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(samples=len(batch[0]))

    return Subject(model, update, regression())


@correct
def averaged_model_with_batch_norm_frozen():
    model = mlp(nn.BatchNorm1d(8))
    model[1].eval()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)

    return Subject(model, update, regression())


@correct
def group_norm():
    model = nn.Sequential(nn.Linear(5, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.RMSprop(model.parameters())

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@correct
def dropout():
    model = nn.Sequential(nn.Linear(5, 32), nn.Dropout(0.3), nn.Tanh(), nn.Linear(32, 2))
    optimizer = sgd(model)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = mse(model, piece) * share(piece, batch)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, regression())


@correct
def warm_up_scheduler():
    model = mlp()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@correct
def teacher_and_centre_once():
    student = mlp()
    state = {"teacher": copied(student), "centre": torch.zeros(2)}
    optimizer = sgd(student)

    def update(batch, parts):
        seen = []
        for x, _ in pieces(batch, parts):
            with torch.no_grad():
                target = state["teacher"](x)
            seen.append(target)
            target = torch.softmax((target - state["centre"]) / 0.1, -1)
            loss = -(target * F.log_softmax(student(x), -1)).sum(-1).mean() * len(x) / len(batch[0])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema(state["teacher"], student)
        state["centre"] = 0.9 * state["centre"] + 0.1 * torch.cat(seen).mean(0)

    return Subject(student, update, regression(), state=state)


@correct
def penalty_divided():
    """An L2 penalty in the loss, shared among the micro-batches."""
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            penalty = 0.01 * sum(p.square().sum() for p in model.parameters())
            ((mse(model, piece) + penalty) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@correct
def noise_once():
    """Differential privacy: one draw of noise an update, clipping per sample."""
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        total = [torch.zeros_like(p) for p in model.parameters()]
        for piece in pieces(batch, parts):
            for x, y in zip(*piece, strict=True):
                grads = torch.autograd.grad(F.mse_loss(model(x[None]), y[None]), list(model.parameters()))
                norm = float(torch.stack([g.norm() for g in grads]).norm())
                for held, g in zip(total, grads, strict=True):
                    held += g * min(1.0, 0.5 / norm)
        for p, held in zip(model.parameters(), total, strict=True):
            p.grad = (held + 0.1 * torch.randn_like(held)) / len(batch[0])
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@correct
def guard_skips_the_whole_update():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        losses = [mse(model, piece) * share(piece, batch) for piece in pieces(batch, parts)]
        for loss in losses:
            loss.backward()
        if all(torch.isfinite(loss) for loss in losses):
            optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())
