"""Words that several stacks share: names of optimizers, clipping, where a launcher says its devices."""

import re

from isobatch.formats.reader import Found, Reader
from isobatch.rules import OPTIMIZERS

_NAMES: tuple[tuple[str, str], ...] = (
    (r"^(?:torch\.optim\.|apex\.optimizers\.|deepspeed\.ops\.\w+\.)?(?:fused_?)?adam_?w(?:_.*)?$", "adamw"),
    (r"^(?:paged_|decoupled_?|fused_?|bnb_|ao_|default_)?adam_?w(?:_?(?:8bit|4bit|32bit|fp8|bnb_8bit|torch\w*|hf|apex\w*|"
     r"anyprecision|fused|legacy|nvlamb))*$", "adamw"),
    (r"^(?:adamw|fusedadamw|decoupledadamw|low_precision_adamw|default_adamw|skipstepadamw(?:config)?|adamwconfig)$", "adamw"),
    (r"^(?:torch\.optim\.|fused_?)?adam(?:_?torch|_?fused|8bit|_?l2)?$", "adam"),
    (r"^(?:torch\.optim\.|fused_?)?(?:sgd|nesterov|momentum|sgdw?|decoupledsgdw?)$", "sgd"),
    (r"^rmsprop(?:_.*)?$", "rmsprop"),
    (r"^rmsproptf$", "rmsprop"),
    (r"^(?:paged_|decoupled)?lion(?:w)?(?:_.*)?$", "lion"),
    (r"^(?:fused_?)?lamb(?:c)?$", "lamb"),
    (r"^lars(?:c|sgd)?$|^nlars$", "lars"),
    (r"^muon$|^default_muon$", "muon"),
    (r"^adamp$", "adamp"),
    (r"^nadamw?$", "nadamw"),
)  # fmt: skip


def optimizer(reader: Reader, found: Found, *, adam: str = "adamw") -> str:
    """Enter an optimizer by the name that a stack gives it; ask where nobody knows what its rules would be.

    Args:
        reader: of the file.
        found: the name.
        adam: what the stack means by "adam".

    Returns:
        The name in `isobatch.rules.OPTIMIZERS`.
    """
    reader.used.add("optimizer") if "optimizer" in reader.answers else None
    word = str(reader.answers.get("optimizer", found.value)).strip().lower().rsplit(".", 1)[-1]
    name = next((known for pattern, known in _NAMES if re.match(pattern, word)), None)
    if word in OPTIMIZERS:
        name = word
    if name == "adam" and adam != "adam" and "optimizer" not in reader.answers:
        name = adam
    if name is None:
        known = ", ".join(OPTIMIZERS)
        why = f"{found.name} = {found.value!r} has no rules of its own here; which of {known} does it behave as?"
        name = reader.ask("optimizer", why, "adamw", "--set optimizer=adamw")
    reader.draft.values["name"] = name
    return name


def betas(reader: Reader, one: Found, two: Found) -> None:
    """Enter Adam's moments."""
    reader.say("beta1", one)
    reader.say("beta2", two)


def clip(reader: Reader, found: Found) -> None:
    """Enter the largest norm of the gradient; 0 and nothing mean none."""
    if found.value:
        reader.say("clip", found)


def launched_devices(reader: Reader) -> int | None:
    """Return the devices that a command's launcher says, None where it does not."""
    launcher = reader.source.extra.get("launcher", {})
    count = None
    for name in ("nproc_per_node", "num_processes", "num_gpus", "gpus_per_node", "ngpus"):
        if isinstance(launcher.get(name), int):
            count = launcher[name]
            if name == "nproc_per_node" or name == "num_gpus" or name == "gpus_per_node":
                nodes = launcher.get("nnodes", launcher.get("num_nodes", launcher.get("nodes", 1)))
                count = count * nodes if isinstance(nodes, int) else None
            break
    return count


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
