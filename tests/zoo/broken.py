"""Trainers that depend on how a batch is split: public bugs, each re-created in a few lines, its source beside it."""

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

BROKEN = {}


def broken(source, *causes):
    """Register a trainer with the thread of its bug and the causes that must be named.

    A bare address is a thread that reports this bug or mends it; "re-created from the description in" one names
    a thread whose software leaves room for it.
    """

    def keep(make):
        BROKEN[make.__name__] = (make, causes, source)
        return make

    return keep


@broken("https://github.com/huggingface/transformers/pull/34191", "mean-of-means")
def token_mean_per_micro_batch():
    model = language_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = token_losses(model, piece).sum() / piece[2].sum() / parts
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, tokens())


@broken("https://github.com/verl-project/verl/issues/5625", "mean-of-means")
def token_mean_of_policy_gradient():
    """Advantages weigh tokens; each micro-batch is normalised by its own mask."""
    model = language_model()
    optimizer = sgd(model)

    def update(batch, parts):
        for x, y, mask in pieces(batch, parts):
            advantage = torch.cos(x.sum(1, keepdim=True).to(mask.dtype))
            logp = F.log_softmax(model(x), -1).gather(-1, y[..., None])[..., 0]
            (-(advantage * logp * mask).sum() / mask.sum() / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, tokens())


@broken("https://github.com/hiyouga/LlamaFactory/issues/7443", "missing-division", "mean-of-means")
def loss_grows_with_accumulation():
    """Loss 6.4 at accumulation 2 and 138 at 32: token means are added."""
    model = language_model()
    optimizer = sgd(model)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = token_losses(model, piece).sum() / piece[2].sum()
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, tokens())


@broken("https://github.com/huggingface/transformers/pull/35207", "doubled-division")
def global_count_and_division():
    """The loss is normalised by the whole batch's tokens, and then divided by the accumulation steps as well."""
    model = language_model()
    optimizer = sgd(model)

    def update(batch, parts):
        total, count = 0.0, batch[2].sum()
        for piece in pieces(batch, parts):
            loss = token_losses(model, piece).sum() / count / parts
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, tokens())


@broken("https://github.com/karpathy/nanoGPT/issues/206", "missing-division", "mean-of-means")
def backward_without_division():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = mse(model, piece)
            loss.backward()
            total += loss.item() / parts
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, regression())


@broken("https://github.com/Lightning-AI/pytorch-lightning/issues/6789", "sum-instead-of-mean")
def summed_loss_divided_by_parts():
    """A sum over samples, averaged over the parts (there: over the GPUs), so the gradient falls with their number."""
    model = mlp()
    optimizer = sgd(model, 0.01)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece, "sum") / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/agokrani/distillKitPlus/issues/5", "sum-instead-of-mean", "mean-of-means")
def losses_added_in_one_graph():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        loss = sum(mse(model, piece) for piece in pieces(batch, parts))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return Subject(model, update, regression())


@broken("https://github.com/pytorch/torchtitan/pull/3575", "gradient-lost")
def zero_grad_in_the_loop():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            optimizer.zero_grad()
            loss = mse(model, piece) * share(piece, batch)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, regression())


@broken("https://github.com/facebookresearch/lingua/pull/59", "clip-per-part")
def clip_every_micro_batch():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            clip_grad_norm_(model.parameters(), 1.0)  # larger than these gradients: shows only where it is active
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/swathikirans/GSM/issues/22", "clip-per-part")
def clip_of_the_sum_so_far():
    model = mlp()
    optimizer = sgd(model, momentum=0.9)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            for p in model.parameters():
                p.grad *= min(1.0, 0.05 / float(norm))
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/petuum/adaptdl/pull/26", "clip-before-division")
def clip_of_the_undivided_sum():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch) * parts).backward()
        clip_grad_norm_(model.parameters(), 0.1)
        for p in model.parameters():
            p.grad /= parts
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/SWivid/F5-TTS/issues/631", "average-per-part")
def ema_every_micro_batch():
    model = mlp()
    average, optimizer = copied(model), torch.optim.AdamW(model.parameters())

    def update(batch, parts):
        for i, piece in enumerate(pieces(batch, parts)):
            (mse(model, piece) * share(piece, batch)).backward()
            if i + 1 == parts:
                optimizer.step()
                optimizer.zero_grad()
            ema(average, model)

    return Subject(model, update, regression())


@broken("https://github.com/lucidrains/rectified-flow-pytorch/pull/46", "average-per-part")
def ema_k_times_after_the_step():
    model = mlp()
    shadow = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        for _ in range(parts):
            for name, p in model.named_parameters():
                shadow[name] = 0.9 * shadow[name] + 0.1 * p.detach()

    return Subject(model, update, regression())


class Warmed:
    """An average whose decay warms up with a count of its calls."""

    def __init__(self, model):
        self.shadow, self.calls = [p.detach().clone() for p in model.parameters()], 0

    def step(self, model):
        self.calls += 1
        decay = min(0.9999, (1 + self.calls) / (10 + self.calls))
        for held, p in zip(self.shadow, model.parameters(), strict=True):
            held.lerp_(p.detach(), 1 - decay)


@broken("re-created from the description in https://github.com/huggingface/diffusers/pull/64", "average-per-part")
def ema_counter_of_micro_batches():
    model = mlp()
    average, optimizer = Warmed(model), sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.calls += parts - 1
        average.step(model)

    return Subject(model, update, regression())


def _distil(student, teacher, centre, x):
    with torch.no_grad():
        target = teacher(x)
    return target, -(torch.softmax((target - centre) / 0.1, -1) * F.log_softmax(student(x), -1)).sum(-1).mean()


@broken("https://github.com/lightly-ai/lightly-train/issues/968", "teacher-per-part")
def teacher_every_micro_batch():
    student = mlp()
    teacher, optimizer = copied(student), sgd(student)

    def update(batch, parts):
        for x, _ in pieces(batch, parts):
            _, loss = _distil(student, teacher, 0.0, x)
            (loss * len(x) / len(batch[0])).backward()
            ema(teacher, student)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(student, update, regression())


@broken("https://github.com/lightly-ai/lightly-train/pull/969", "centre-per-part")
def centre_every_micro_batch():
    student = mlp()
    teacher, optimizer, state = copied(student), sgd(student), {"centre": torch.zeros(2)}

    def update(batch, parts):
        for x, _ in pieces(batch, parts):
            target, loss = _distil(student, teacher, state["centre"], x)
            (loss * len(x) / len(batch[0])).backward()
            state["centre"] = 0.9 * state["centre"] + 0.1 * target.mean(0)
        optimizer.step()
        optimizer.zero_grad()
        ema(teacher, student)

    return Subject(student, update, regression(), state=state)


@broken(
    "re-created from the description in https://github.com/pytorch/pytorch/issues/84053",
    "batch-norm",
    "buffers-wrong-moment",
)
def average_with_buffers_before_the_last_forward():
    """The average takes the model's running statistics while a micro-batch is still to come."""
    model = mlp(nn.BatchNorm1d(8))
    average, optimizer = copied(model), sgd(model)

    def update(batch, parts):
        for i, piece in enumerate(pieces(batch, parts)):
            if i + 1 == parts and parts > 1:
                average[1].running_mean.copy_(model[1].running_mean)
            (mse(model, piece) * share(piece, batch)).backward()
        if parts == 1:
            average[1].running_mean.copy_(model[1].running_mean)
        optimizer.step()
        optimizer.zero_grad()
        ema(average, model)

    return Subject(model, update, regression())


@broken("https://github.com/NVIDIA/DeepLearningExamples/issues/625", "batch-norm")
def batch_norm_on_micro_batches():
    model = mlp(nn.BatchNorm1d(8))
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


@broken("https://github.com/huggingface/accelerate/issues/963", "scheduler-per-part")
def scheduler_every_micro_batch():
    model = mlp()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)

    def update(batch, parts):
        for i, piece in enumerate(pieces(batch, parts)):
            (mse(model, piece) * share(piece, batch)).backward()
            if i + 1 == parts:
                optimizer.step()
                optimizer.zero_grad()
            scheduler.step()

    return Subject(model, update, regression())


@broken("https://github.com/huggingface/accelerate/issues/1170", "scheduler-per-part")
def rate_by_a_count_of_micro_batches():
    """A schedule by hand: the rate is a function of how many micro-batches were seen."""
    model = mlp()
    optimizer, count = sgd(model), [0]

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            count[0] += 1
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * min(1.0, count[0] / 50)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/lucidrains/reformer-pytorch/issues/97", "optimizer-per-part")
def step_every_micro_batch():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())

    def update(batch, parts):
        for piece in pieces(batch, parts):
            mse(model, piece).backward()
            optimizer.step()
            optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/UKPLab/sentence-transformers/pull/1822", "in-batch-loss")
def in_batch_negatives():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for x, y in pieces(batch, parts):
            scores = F.normalize(model(x), dim=-1) @ F.normalize(y, dim=-1).T / 0.1
            (F.cross_entropy(scores, torch.arange(len(x))) * len(x) / len(batch[0])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/karpathy/autoresearch/pull/357", "loss-reported")
def reports_the_last_micro_batch():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            loss = mse(model, piece) * share(piece, batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss * parts

    return Subject(model, update, regression())


@broken("https://github.com/huggingface/transformers/pull/35438", "loss-reported")
def reports_the_sum_of_means():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = mse(model, piece)
            (loss * share(piece, batch)).backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Subject(model, update, regression())


@broken("https://github.com/espnet/espnet/issues/5090", "loss-reported")
def reports_a_loss_divided_twice():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        total = 0.0
        for piece in pieces(batch, parts):
            loss = mse(model, piece) * share(piece, batch)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total / parts

    return Subject(model, update, regression())


@broken("https://github.com/espnet/espnet/pull/912", "noise-per-part")
def gradient_noise_every_micro_batch():
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            for p in model.parameters():
                p.grad += 0.01 * torch.randn_like(p)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/thinking-machines-lab/tinker-cookbook/pull/392", "samples-lost")
def remainder_dropped():
    """`batch // parts` rows a part: where it does not divide, the rest is never seen."""
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        micro = len(batch[0]) // parts
        for i in range(parts):
            x, y = (one[i * micro : (i + 1) * micro] for one in batch)
            (F.mse_loss(model(x), y) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/huggingface/transformers/pull/39659", "mean-of-means")
def uneven_parts_weigh_the_same():
    """The mean loss of a short last micro-batch is divided like the others."""
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/mflux-community/mflux/pull/447", "step-on-skip")
def bad_micro_batch_is_left_out():
    """A loss that is not finite drops its micro-batch, and the step is taken with the rest."""
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            loss = mse(model, piece) * share(piece, batch)
            if torch.isfinite(loss):
                loss.backward()
        if next(model.parameters()).grad is not None:
            optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/pytorch/pytorch/pull/36601", "unscale-per-part", "scaler-per-part")
def unscaled_and_updated_every_micro_batch():
    model = mlp()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)

    def update(batch, parts):
        for i, piece in enumerate(pieces(batch, parts)):
            scaler.scale(mse(model, piece) * share(piece, batch)).backward()
            scaler.unscale_(optimizer)
            if i + 1 == parts:
                scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("a variant of weights_decayed_every_micro_batch", "decay-per-part")
def penalty_added_every_micro_batch():
    """An L2 penalty in the loss of every micro-batch, not divided by their number."""
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            penalty = 0.05 * sum(p.square().sum() for p in model.parameters())
            (mse(model, piece) * share(piece, batch) + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("torch's AveragedModel, as the average in https://github.com/SWivid/F5-TTS/issues/631", "average-per-part")
def averaged_model_every_micro_batch():
    model = mlp()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            average.update_parameters(model)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())


@broken("https://github.com/keras-team/keras/issues/19990", "decay-per-part")
def weights_decayed_every_micro_batch():
    """Decoupled decay inside the loop over micro-batches, so that later ones see smaller weights."""
    model = mlp()
    optimizer = sgd(model)

    def update(batch, parts):
        for piece in pieces(batch, parts):
            (mse(model, piece) * share(piece, batch)).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1 - 0.01)
        optimizer.step()
        optimizer.zero_grad()

    return Subject(model, update, regression())
