"""Words that several stacks share: names of optimizers, moments, clipping, batches, milestones, shares."""

import re
from collections.abc import Mapping
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.reader import Found, Reader
from isobatch.rules import OPTIMIZERS

_AROUND = re.compile(
    r"^(?:paged_?|dist_|decoupled_?|fused_?|bnb_?|ao_|default_|apex_|low_precision_|nl?skipstep|skipstep)+|"
    r"(?:_?(?:8bit|4bit|32bit|fp8|torch|hf|apex|anyprecision|fused|legacy|xla|npu|config|bnb|tf|c|l2))+$"
)
_OTHERS = {"nesterov": "sgd", "momentum": "sgd", "sgdw": "sgd", "sgdp": "sgd", "nadam": "nadamw"}
MOST_CYCLES = 100
"""Cycles of a schedule that are drawn, at most."""
_DECAYS = {"nadam": "coupled", "sgdw": "decoupled"}
"""How the decay is coupled where the name in `OPTIMIZERS` is that of the other kind."""
_DECOUPLED = re.compile(r"(?:^|[._])(?:te|apex)?_?(?:fused|deepspeedcpu|cpu)_?adam$", re.IGNORECASE)
"""Adams of apex, DeepSpeed and Transformer Engine, which decouple the decay unless told otherwise."""


def known_name(word: str) -> str | None:
    """Return the optimizer that a stack means by a name: its own name without what says how it is computed.

    Args:
        word: such as "torch.optim.AdamW" or "paged_adamw_8bit".

    Returns:
        A name in `isobatch.rules.OPTIMIZERS`; None for one that has no row.

    Example:
        >>> known_name("paged_adamw_8bit"), known_name("FusedAdam"), known_name("RMSpropTF"), known_name("adafactor")
        ('adamw', 'adam', 'rmsprop', None)
    """
    bare = word.strip().lower().rsplit("/", 1)[-1].rsplit(".", 1)[-1].replace("decoupledadamw", "adamw")
    for text in (bare, _AROUND.sub("", bare), _AROUND.sub("", _AROUND.sub("", bare))):
        for name in (text, _OTHERS.get(text, ""), text.removesuffix("w"), text.removesuffix("sgd")):
            if name in OPTIMIZERS:
                return name
    return None


def optimizer(reader: Reader, found: Found, *, adam: str = "adam", fused: str = "adamw") -> str:
    """Enter an optimizer by the name that a stack gives it; ask where nobody knows what its rules would be.

    Args:
        reader: of the file.
        found: the name.
        adam: what the stack means by "adam": torch's, whose decay is L2, or "adamw".
        fused: what it means by FusedAdam and its like.

    Returns:
        The name in `isobatch.rules.OPTIMIZERS`.
    """
    if "optimizer" in reader.answers:
        reader.used.add("optimizer")
    word = str(reader.answers.get("optimizer", found.value)).strip()
    name = known_name(word)
    if name == "adam" and "optimizer" not in reader.answers:
        name = fused if adam == "adam" and _DECOUPLED.search(word) else adam
    if name is None:
        known = ", ".join(OPTIMIZERS)
        why = f"{found.name} = {found.value!r} has no rules of its own here; which of {known} does it behave as?"
        name = reader.ask("optimizer", why, "adamw", "--set optimizer=adamw")
    reader.draft.values["name"] = name
    decay = _DECAYS.get(_AROUND.sub("", word.lower().rsplit(".", 1)[-1]))
    if decay is not None:
        reader.draft.values["decay"] = decay
    return name


_MOMENTA = {"lars": 0.9, "muon": 0.95}
"""What an optimizer's own code takes where nobody states its momentum; 0 else."""


def usual_betas(name: str) -> tuple[float, float]:
    """Return the moments that an optimizer's own code takes where nobody states them.

    Args:
        name: in `isobatch.rules.OPTIMIZERS`.

    Returns:
        The pair.

    Example:
        >>> usual_betas("lamb")
        (0.9, 0.999)
    """
    return (0.9, 0.99) if OPTIMIZERS[name].mixes else (0.9, 0.999)


def usual_eps(name: str) -> float:
    """Return the eps that an optimizer's own code takes: LAMB's, or Adam's."""
    return 1e-6 if name == "lamb" else 1e-8


def moments(reader: Reader, name: str, head: str, *, usual: tuple[float, float] | None = None) -> None:
    """Enter every moment that an optimizer has, by the names of torch's own arguments.

    Args:
        reader: of the file.
        name: in `isobatch.rules.OPTIMIZERS`.
        head: the table of its arguments.
        usual: betas where the file is silent; the optimizer's own unless given.
    """
    if has(name, "betas"):
        one, two = reader.pair(f"{head}.betas", default=usual or usual_betas(name))
        betas(reader, one, two)
        reader.say("eps", reader.number(f"{head}.eps", default=usual_eps(name)))
    if has(name, "momentum"):
        reader.say("momentum", reader.number(f"{head}.momentum", default=_MOMENTA.get(name, 0.0)))
        nesterov = reader.flag(f"{head}.nesterov", default=name == "muon").value
        reader.draft.values["nesterov"] = (nesterov and reader.draft.values["momentum"] > 0) or None
    if has(name, "alpha"):
        reader.say("alpha", reader.number(f"{head}.alpha", default=0.99))
        reader.say("eps", reader.number(f"{head}.eps", default=1e-8))


def betas(reader: Reader, one: Found, two: Found) -> None:
    """Enter Adam's moments."""
    reader.say("beta1", one)
    reader.say("beta2", two)


def beside_muon(reader: Reader, moments: tuple[Found, Found] | None, eps: Found) -> None:
    """Enter Adam's own parameters beside Muon, which take the one rate that the trainer has for both.

    Muon's momentum stays then, so that the rate of both moves by the same square root.

    Args:
        reader: of the file, whose optimizer was read.
        moments: Adam's; None where nobody states them.
        eps: Adam's; its value None where nobody states it.
    """
    draft = reader.draft
    draft.rules["momentum"] = "keep"
    if moments is None:
        reader.note("parameters that Muon does not take have Adam's moments, which the file does not state; they stay")
        return
    at = f"groups[{len(draft.groups)}]"
    held = {"lr": draft.values["lr"], "weight_decay": draft.values["weight_decay"]}
    draft.groups.append({"name": "beside-muon", "match": "embed|output|head|norm|bias", "optimizer": "adamw", **held,
                         "betas": [float(one.value) for one in moments], "eps": float(eps.value or 1e-8)})  # fmt: skip
    for index, found in enumerate(moments):
        reader.link(f"{at}.betas[{index}]", found, lambda view, i=index: view[f"{at}.betas[{i}]"])
    if eps.value is not None:
        reader.link(f"{at}.eps", eps, lambda view: view[f"{at}.eps"])


def clip(reader: Reader, found: Found) -> None:
    """Enter the largest norm of the gradient; 0 and nothing mean none."""
    if found.value:
        reader.say("clip", found)


def per_device_batch(
    reader: Reader, micro: Found, passes: Found | None, devices: int, *, sequence: int | None = None
) -> None:
    """Enter a batch that the file gives per device: micro x passes x devices.

    Args:
        reader: of the file.
        micro: samples per device and pass.
        passes: of each device in one update; None for a trainer that cannot accumulate.
        devices: data-parallel devices.
        sequence: tokens in a sample, where the recipe's clock counts tokens.
    """
    grain = sequence or 1
    n = 1 if passes is None else passes.value
    reader.accumulates = passes is not None
    values = reader.draft.values
    values |= {"batch": int(micro.value) * n * devices * grain, "devices": devices, "micro": int(micro.value) * grain}
    reader.link("micro", micro, lambda view: view.micro / grain, whole=True, least=1)
    if passes is not None:
        reader.link("accumulation", passes, lambda view: view.accumulation, whole=True, least=1)


def global_batch(reader: Reader, found: Found, devices: int = 1) -> None:
    """Enter a batch that the file gives for all devices together, by a trainer that cannot accumulate."""
    reader.accumulates, reader.per_device = False, False
    reader.draft.values |= {"batch": found.value, "devices": devices}
    reader.link("batch", found, lambda view: view.batch, whole=True, least=1)


def capped_epoch(reader: Reader, found: Found) -> None:
    """Enter a number of passes of each device after which the trainer ends an epoch, whatever the data hold."""
    reader.draft.data_size = max(round(passes_of_each(reader, "epoch", found)), 1)


def passes_of_each(reader: Reader, name: str, found: Found) -> float:
    """Enter a span that is counted in passes of each device, whatever an update holds, and return its samples."""
    samples = found.value * reader.draft.values["micro"] * reader.draft.values["devices"]
    reader.link(name, found, lambda view: samples / (view.micro * view.devices), whole=True, least=1,
                words="passes of each device")  # fmt: skip
    return samples


def periods(reader: Reader, keys: Mapping[str, str]) -> None:
    """Enter what a trainer does every so many steps, such as saving; 0 and less mean never.

    Args:
        reader: of the file.
        keys: key -> name of the span.
    """
    for key, name in keys.items():
        found = reader.number(key, default=None, low=-1)
        if found.value and found.value > 0:
            reader.span(name, found, "steps", least=1)


def milestones(reader: Reader, at: list[float], gamma: float) -> None:
    """Enter a curve that is multiplied by gamma at some samples, counted from the start of the run.

    Args:
        reader: of the file.
        at: milestones in samples.
        gamma: factor of each.
    """
    draft = reader.draft
    passed = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    run, rest, level = draft.samples("length"), [], 1.0
    for index, mark in enumerate(sorted(at)):
        if mark >= run:
            break
        span = {} if mark <= passed else {"span": f"{mark - passed:.17g} {draft.unit}"}
        if span:
            rest.append({**span, **({"by": "step", "to": level} if rest or level != 1 else {"by": "hold"})})
        passed, level = max(mark, passed), gamma ** (index + 1)
    draft.rest = [*rest, {"by": "step", "to": level} if level != 1 else {"by": "hold"}]


def restarts(reader: Reader, cycles: Found, fall: str | None = None) -> None:
    """Enter a cosine that falls to 0 several times, from the peak each time, over what the warm-up leaves of the run.

    Args:
        reader: of the file.
        cycles: how often.
        fall: name of the span of all cycles together; the rest of the run unless given.

    Raises:
        InputError: more cycles than a recipe holds.
    """
    draft, count = reader.draft, int(cycles.value)
    if not 1 <= count <= MOST_CYCLES:
        raise InputError(f"{cycles.name}={cycles.value!r} must be from 1 to {MOST_CYCLES}; mend the file")
    warm = draft.samples("warmup") if "warmup" in draft.spans else 0.0
    left = draft.samples(fall) if fall else max(draft.samples("length") - warm, 0.0)
    draft.spans["cycle"] = f"{left / count:.17g} {draft.unit}"
    first: dict[str, Any] = {"span": "cycle", "by": "cosine", "to": 0.0}
    draft.rest = [first, *({**first, "start": 1.0} for _ in range(count - 1))]
    draft.rest[-1] = {key: value for key, value in draft.rest[-1].items() if key != "span"}


def share_of_peak(reader: Reader, path: str, found: Found) -> float:
    """Enter a rate that stays the same share of the peak, and return that share."""
    part = found.value / reader.draft.values["lr"]
    reader.link(path, found, lambda view: view["lr"] * part, words="share of the peak kept")
    return part


def share_of_decay(reader: Reader, found: Found) -> float:
    """Enter a weight decay that stays the same share of the first one, and return that share."""
    start = reader.draft.values["weight_decay"]
    part = found.value / start if start else 1.0
    reader.link(
        "curves.weight_decay", found, lambda view: view["weight_decay"] * part, words="share of weight_decay kept"
    )
    return part


def has(name: str, moment: str) -> bool:
    """Return whether an optimizer has a moment: betas, momentum or alpha."""
    return moment in OPTIMIZERS[name].moments
