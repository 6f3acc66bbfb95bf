"""A plan as code: the numbers in the names of torch, transformers or lightning, as a script that runs as it stands."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from isobatch.curves import Staircase
from isobatch.errors import InputError
from isobatch.installed import VERSION
from isobatch.plan import Plan, Recipe, coupling_of, row_of
from isobatch.units import decay_at

_TORCH = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "nadamw": "NAdam", "muon": "Muon"}
_OURS = {
    "invariant-adam": "InvariantAdam",
    "invariant-adamw": "InvariantAdamW",
    "invariant-rmsprop": "InvariantRMSprop",
}
_SHAPES = {"constant": "1.0", "linear": "1 - progress", "cosine": "0.5 * (1 + math.cos(math.pi * progress))"}
_MODEL = "model = nn.Linear(8, 1)  # your model"
_LOSS = "nn.functional.mse_loss(model(x), y)  # your loss, a mean over its batch"


def snippet(plan: Plan[Recipe], kind: str) -> str:
    """Return a plan as a script.

    Args:
        plan: the plan.
        kind: torch, hf or lightning.

    Returns:
        Python that runs as it stands, with a model, data and a loss to put your own in place of.

    Raises:
        InputError: another kind, or a recipe that says more than the script could.
    """
    if kind not in SNIPPETS:
        raise InputError(f"snippet={kind!r} must be one of {', '.join(SNIPPETS)}")
    recipe = plan.recipe
    for key, why in _unsaid(recipe):
        raise InputError(
            f"{key} cannot be said in a snippet: {why}; write the plan with --write new.toml, and train by that recipe"
        )
    head = f"# isobatch {VERSION}: batch {recipe.batch.size}, kappa = {plan.kappa:g}"
    return "\n".join([head, *SNIPPETS[kind](recipe)]) + "\n"


def _unsaid(recipe: Recipe) -> Iterator[tuple[str, str]]:
    o, ema = recipe.optimizer, recipe.ema
    for name in ("curves", "groups", "spans", "augment", "adversary"):
        if getattr(recipe, name):
            yield name, "it is a table of its own"
    if recipe.batch.unit == "tokens" or recipe.batch.summed:
        yield "batch.unit" if recipe.batch.unit == "tokens" else "batch.reduction", "steps here are means over samples"
    if recipe.batch.schedule is not None or recipe.batch.adaptive is not None:
        yield "batch.schedule" if recipe.batch.schedule else "batch.adaptive", "the batch is one number here"
    if recipe.schedule is None or recipe.schedule.shape not in _SHAPES:
        yield "schedule.shape" if recipe.schedule else "schedule", f"it knows {', '.join(_SHAPES)}"
    if ema is not None and (ema.decay is None) == (ema.half_life is None):
        yield "ema.ramp", "the decay is one number here"
    if ema is not None and (ema.final is not None or ema.ramp is not None or ema.start or ema.kind != "plain"):
        yield "ema.final, ramp, start or kind", "the decay is one number here"
    if o.eps_inside or o.clip_by == "module" or (recipe.batch_norm is not None and recipe.batch_norm.synchronised):
        yield "optimizer.eps_inside, clip_by or batch_norm.synchronised", "stock classes do not have it"
    if row_of(recipe).invariant and recipe.batch.per_device > (o.reference_batch or recipe.batch.size):
        yield "batch.micro", f"a pass of {o.name} holds at most {o.reference_batch} samples: give --micro"
    if coupling_of(recipe) != row_of(recipe).decay and o.weight_decay:
        yield "optimizer.decay", f"{o.name} decays its weights otherwise"


def _optimizer(recipe: Recipe, params: str = "model.parameters()") -> tuple[str, str]:
    """Return the import that an optimizer needs, and the call that builds it."""
    o = recipe.optimizer
    values: dict[str, Any] = {key: getattr(o, key) for key in row_of(recipe).keys}
    if o.nesterov or (o.name == "muon"):
        values["nesterov"] = o.nesterov
    if o.name in _OURS:
        values["reference_batch"] = o.reference_batch or recipe.batch.size
        values["micro_batch"] = recipe.batch.per_device
        name, brings = f"isobatch.{_OURS[o.name]}", "import isobatch"
    elif o.name in _TORCH:
        name, brings = f"torch.optim.{_TORCH[o.name]}", ""
        if o.name == "nadamw":
            values["decoupled_weight_decay"] = True
    else:
        build = {key: value for key, value in values.items() if key != "lr"}
        said = "".join(f", {key}={value!r}" for key, value in build.items())
        return "from isobatch.optimizers import build", f'build("{o.name}", {params}, lr={o.lr!r}{said})'
    return brings, f"{name}({params}, {', '.join(f'{key}={value!r}' for key, value in values.items())})"


def _steps(recipe: Recipe) -> int:
    return math.ceil(recipe.staircase().length / recipe.batch.size - 1e-9)


def _schedule(recipe: Recipe) -> Iterator[str]:
    """Yield the learning rate's factor: the mean of the reference's own steps over the samples of each step."""
    stairs = recipe.staircase(recipe.batch.size)
    if not isinstance(stairs, Staircase):  # pieces are refused above
        raise InputError("curves.lr cannot be said in a snippet")
    begin = stairs.warmup if stairs.decay_from is None else stairs.decay_from
    yield f"BATCH, STAIR = {recipe.batch.size}, {stairs.stair!r}  # samples of a step, and of a step of the reference"
    yield f"LENGTH, WARMUP, DECAY_FROM, FINAL = {stairs.length!r}, {stairs.warmup!r}, {begin!r}, {stairs.final!r}"
    yield f"STEPS = {_steps(recipe)}"
    yield from ("", "", "def reference(place):")
    yield "    seen = min(place, math.ceil(LENGTH / STAIR) - 1) * STAIR"
    yield "    if seen < WARMUP:"
    yield "        return min(1.0, (seen + STAIR) / WARMUP)"
    yield "    progress = min(1.0, max(0.0, seen - DECAY_FROM) / (LENGTH - DECAY_FROM)) if LENGTH > DECAY_FROM else 1.0"
    yield f"    return FINAL + (1 - FINAL) * ({_SHAPES[stairs.shape]})"
    yield from ("", "", "def factor(step):")
    yield "    start, stop = step * BATCH, (step + 1) * BATCH"
    yield "    places = range(int(start / STAIR), math.ceil(stop / STAIR))"
    yield "    held = [min(stop, (place + 1) * STAIR) - max(start, place * STAIR) for place in places]"
    yield "    return sum(share * reference(place) for share, place in zip(held, places)) / BATCH"
    yield from ("", "")


def _decay(recipe: Recipe) -> float | None:
    ema = recipe.ema
    if ema is None:
        return None
    return decay_at(recipe.half_life, recipe.batch.size * ema.every) if ema.decay is None else ema.decay


def _norms(recipe: Recipe) -> Iterator[str]:
    if recipe.batch_norm is not None:
        yield "for module in model.modules():"
        yield "    if isinstance(module, nn.modules.batchnorm._BatchNorm):"
        yield f"        module.momentum = {recipe.batch_norm.momentum!r}"


def _imports(*lines: str) -> Iterator[str]:
    yield from ("import math", "")
    yield from sorted({line for line in lines if line}, key=lambda line: (line.startswith("from"), line))
    yield ""


def _clip(recipe: Recipe) -> str:
    o = recipe.optimizer
    how = "value" if o.clip_by == "value" else "norm"
    return f"torch.nn.utils.clip_grad_{how}_(model.parameters(), {o.clip!r})"


def _torch(recipe: Recipe) -> Iterator[str]:
    batch, decay = recipe.batch, _decay(recipe)
    brings, made = _optimizer(recipe)
    average = "from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn" if decay is not None else ""
    yield from _imports("import torch", "from torch import nn", brings, average)
    yield f"DEVICES, MICRO, ACCUMULATE = {batch.devices}, {batch.per_device}, {batch.accumulation}"
    yield from _schedule(recipe)
    yield _MODEL
    yield from _norms(recipe)
    yield f"optimizer = {made}"
    yield "scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)"
    if decay is not None:
        yield f"average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn({decay!r}))"
    yield "for step in range(STEPS):"
    yield "    for _ in range(ACCUMULATE):"
    yield "        x, y = torch.randn(MICRO, 8), torch.randn(MICRO, 1)  # your data, on each device"
    yield f"        loss = {_LOSS}"
    yield "        (loss / ACCUMULATE).backward()"
    if recipe.optimizer.clip is not None:
        yield f"    {_clip(recipe)}"
    yield from ("    optimizer.step()", "    optimizer.zero_grad()", "    scheduler.step()")
    if decay is not None:
        every = recipe.ema.every if recipe.ema is not None else 1
        if every > 1:
            yield f"    if (step + 1) % {every} == 0:"
        yield f"    {'    ' if every > 1 else ''}average.update_parameters(model)"


def _hf(recipe: Recipe) -> Iterator[str]:
    batch, o, decay = recipe.batch, recipe.optimizer, _decay(recipe)
    brings, made = _optimizer(recipe)
    average = "from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn" if decay is not None else ""
    callback = ", TrainerCallback" if decay is not None else ""
    values: dict[str, Any] = {
        "output_dir": "out",
        "per_device_train_batch_size": batch.per_device,
        "gradient_accumulation_steps": batch.accumulation,
        "max_steps": _steps(recipe),
        "learning_rate": o.lr,
        "max_grad_norm": 0.0 if o.clip is None else o.clip,
    }
    if o.clip_by == "value":
        raise InputError('optimizer.clip_by = "value" cannot be said in TrainingArguments; use --snippet torch')
    if o.name == "adamw":
        names = {"adam_beta1": o.betas[0], "adam_beta2": o.betas[1], "adam_epsilon": o.eps}
        values |= {"optim": "adamw_torch", **names, "weight_decay": o.weight_decay}
    load = f"from transformers import Trainer{callback}, TrainingArguments"
    yield from _imports("import torch", "from torch import nn", brings, average, load)
    yield from _schedule(recipe)
    yield from ("class Model(nn.Module):  # your model", "    def __init__(self):", "        super().__init__()")
    yield from ("        self.net = nn.Linear(8, 1)", "", "    def forward(self, x, labels):")
    yield "        return {'loss': nn.functional.mse_loss(self.net(x), labels)}"
    yield from ("", "", "model = Model()", *_norms(recipe))
    yield f"arguments = TrainingArguments(  # on {batch.devices} device{'s' if batch.devices > 1 else ''}"
    yield from (f"    {key}={value!r}," for key, value in values.items())
    yield ")"
    yield "data = [{'x': torch.randn(8), 'labels': torch.randn(1)} for _ in range(1000)]  # your data"
    if decay is not None:
        every = recipe.ema.every if recipe.ema is not None else 1
        yield f"average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn({decay!r}))"
        yield from (
            "",
            "",
            "class Average(TrainerCallback):",
            "    def on_step_end(self, args, state, control, **kwargs):",
        )
        yield f"        if state.global_step % {every} == 0:"
        yield from ("            average.update_parameters(model)", "", "")
    yield f"optimizer = {made}"
    yield "scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)"
    yield "trainer = Trainer("
    yield "    model, arguments, train_dataset=data, optimizers=(optimizer, scheduler),"
    yield f"    callbacks=[{'Average()' if decay is not None else ''}],"
    yield from (")", 'if __name__ == "__main__":', "    trainer.train()")


def _lightning(recipe: Recipe) -> Iterator[str]:
    batch, o, decay = recipe.batch, recipe.optimizer, _decay(recipe)
    brings, made = _optimizer(recipe, "self.parameters()")
    if decay is not None:
        brings_average = "from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn"
        made = made.replace("self.parameters()", "self.model.parameters()")
    else:
        brings_average = ""
    yield from _imports("import lightning", "import torch", "from torch import nn", brings, brings_average)
    yield from _schedule(recipe)
    yield from ("class Task(lightning.LightningModule):", "    def __init__(self):", "        super().__init__()")
    yield f"        {_MODEL}"
    yield from (f"        {line}" for line in _norms(recipe))
    yield "        self.model = model"
    if decay is not None:
        yield f"        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn({decay!r}))"
    yield from ("", "    def training_step(self, batch, index):", "        x, y = batch", "        model = self.model")
    yield f"        return {_LOSS}"
    yield from ("", "    def configure_optimizers(self):", f"        optimizer = {made}")
    yield "        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)"
    yield "        return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'}}"
    if decay is not None:
        every = recipe.ema.every if recipe.ema is not None else 1
        yield from (
            "",
            "    def optimizer_step(self, *args, **kwargs):",
            "        super().optimizer_step(*args, **kwargs)",
        )
        yield f"        if (self.global_step + 1) % {every} == 0:"
        yield "            self.average.update_parameters(self.model)"
    values: dict[str, Any] = {
        "max_steps": _steps(recipe),
        "devices": batch.devices,
        "accumulate_grad_batches": batch.accumulation,
        "logger": False,
    }
    if o.clip is not None:
        values |= {"gradient_clip_val": o.clip, "gradient_clip_algorithm": o.clip_by}
    yield from (
        "",
        "",
        "data = torch.utils.data.TensorDataset(torch.randn(1000, 8), torch.randn(1000, 1))  # your data",
    )
    yield f"loader = torch.utils.data.DataLoader(data, batch_size={batch.per_device}, shuffle=True, drop_last=True)"
    yield f"trainer = lightning.Trainer({', '.join(f'{key}={value!r}' for key, value in values.items())})"
    yield from ('if __name__ == "__main__":', "    trainer.fit(Task(), loader)")


SNIPPETS: dict[str, Callable[[Recipe], Iterator[str]]] = {"torch": _torch, "hf": _hf, "lightning": _lightning}
"""Kind -> the lines of its script."""
