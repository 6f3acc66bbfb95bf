"""TRL's GRPO: prompts, completions, generation batches and updates, beside the words of TrainingArguments."""

import math
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.reader import Found, Reader

_SAYS = ("num_generations", "trl.num_generations", "steps_per_generation", "generation_batch_size", "reward_funcs")
_INERT = (
    "num_iterations num_generations_eval temperature top_p top_k min_p repetition_penalty reward_weights epsilon "
    "trl.beta trl.temperature"
)


def is_grpo(reader: Reader) -> bool:
    """Return whether a file trains by groups of completions."""
    return reader.has(*_SAYS)


def groups(reader: Reader) -> int:
    """Enter a group's size, and what a generation holds; return the samples that one prompt becomes in an epoch.

    The batch counts completions: micro x devices x passes of them in one update. A generation is some updates long, and
    stays so, so that its completions are as old as before when the last update uses them.

    Args:
        reader: of the file, whose batch was read.

    Returns:
        Completions of a prompt times the updates that use each of them.
    """
    draft = reader.draft
    group = reader.whole("num_generations", "trl.num_generations", default=8, low=1)
    used = reader.whole("num_iterations", "trl.num_iterations", default=1, low=1)
    size, passes = (
        draft.values["batch"],
        max(draft.values["batch"] // (draft.values["micro"] * draft.values["devices"]), 1),
    )
    steps = reader.whole("steps_per_generation", default=None, low=1)
    whole = reader.whole("generation_batch_size", default=None, low=1)
    if steps.value and whole.value:
        raise InputError("steps_per_generation and generation_batch_size say the same thing; keep one of them")
    held = whole.value or draft.values["micro"] * draft.values["devices"] * (steps.value or passes)
    _check(held, group.value)
    ratio = held / size
    if steps.value:
        reader.link("generation", steps, lambda view: ratio * view.accumulation, whole=True, least=1,
                    words=f"passes of a generation: {ratio:g} updates use it")  # fmt: skip
    elif whole.value:
        reader.link("generation", whole, lambda view: ratio * view.batch, whole=True, least=1,
                    words=f"completions of a generation: {ratio:g} updates use it")  # fmt: skip
    reader.link("group", group, _kept(group, ratio), words="completions of a prompt; a generation holds whole groups")
    reader.note(
        f"one update is {size} completions of {size / group.value:g} prompts, one generation {held} completions of "
        f"{held // group.value} prompts; samples count completions"
    )
    reader.inert(_INERT)
    return group.value * used.value


def _check(held: float, group: int) -> None:
    if math.isclose(held % group, 0, abs_tol=1e-9) or math.isclose(held % group, group, abs_tol=1e-9):
        return
    low = max(int(held // group) * group, group)
    raise InputError(
        f"a generation of {held:g} completions does not hold whole groups of num_generations = {group}; take a batch "
        f"with {low} or {low + group} of them"
    )


def _kept(group: Found, ratio: float) -> Any:
    """Return what keeps a group's size, and refuses a batch that would cut one."""

    def back(view: Any) -> int:
        _check(ratio * view.batch, group.value)
        return group.value

    return back
