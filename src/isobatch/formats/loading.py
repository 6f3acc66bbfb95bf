"""From a file, or a config object, to a recipe and its ledger."""

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from isobatch.errors import InputError
from isobatch.formats.acting import accumulates
from isobatch.formats.format import detect
from isobatch.formats.includes import merged
from isobatch.formats.ledger import Ledger, Unanswered
from isobatch.formats.planned import FilePlan, plan_file
from isobatch.formats.reader import Reader
from isobatch.formats.stacks import FORMATS, OTHERS
from isobatch.formats.stamp import SIDECAR, Stamp, read_stamp
from isobatch.formats.texts import (
    Key,
    Source,
    read_command,
    read_json,
    read_python,
    read_text,
    read_toml_text,
    read_yaml,
)
from isobatch.plan import Recipe

_READERS = {
    ".yaml": read_yaml,
    ".yml": read_yaml,
    ".json": read_json,
    ".toml": read_toml_text,
    ".py": read_python,
    ".sh": read_command,
    ".bash": read_command,
    ".slurm": read_command,
    ".sbatch": read_command,
    ".cmd": read_command,
    ".txt": read_command,
    "": read_command,
}


_OWN_DEFAULTS = ("ppo_trainer", "ppo_megatron_trainer", "sft_trainer")
"""verl's own configs, whose values are the defaults that its reader knows."""
NOTHING = "nothing"
"""The answer that a command takes nothing from the config that it names."""


class Unforeseen(InputError):
    """A value that a reader did not expect: refused like any other, and a fault of the reader to the tests."""


class Loaded(NamedTuple):
    """A file as a recipe, and the ledger that leads back.

    Args:
        recipe: the numbers.
        ledger: which key is which number.
    """

    recipe: Recipe
    ledger: Ledger

    def at(
        self,
        batch_size: int | None = None,
        *,
        devices: int | None = None,
        micro: int | None = None,
        keep_batch: bool = False,
        noise_scale: float | None = None,
        rule: str | None = None,
        goal: str = "equivalence",
    ) -> FilePlan:
        """Plan the file at another batch.

        Args:
            batch_size: the new global batch, in the recipe's unit; unless given the one that the devices take.
            devices: data-parallel devices.
            micro: samples (or tokens) per device and forward pass.
            keep_batch: keep the batch, and let the devices accumulate.
            noise_scale: gradient noise scale, for the Adam family.
            rule: "legw", or none.
            goal: "equivalence" or "speed".

        Returns:
            The plan in the file's own words.

        Raises:
            InputError: a batch that does not fit, or that the file cannot say.
        """
        ways = {"noise_scale": noise_scale, "rule": rule, "goal": goal}
        try:
            made = plan_file(self.recipe, self.ledger, batch_size, devices, micro, keep_batch, ways)
        except ArithmeticError as error:
            raise InputError(
                f"{self.ledger.source.name}: a number grows out of range ({error}); check the file"
            ) from None
        return dataclasses.replace(made, again=_again(self.ledger))


def load(
    file: Any,
    *,
    data_size: int | None = None,
    devices: int | None = None,
    format: str | None = None,
    set: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read a recipe file of another stack, or a config object.

    Nothing of the file is executed.

    Args:
        file: a path, or a config object (a mapping, a dataclass, a namespace, `TrainingArguments`).
        data_size: samples in an epoch, where the file does not say it.
        devices: data-parallel devices that the file is for, where it does not say it.
        format: the name of the format, where it cannot be told.
        set: further answers by name.

    Returns:
        The recipe and the ledger; `at` plans.

    Raises:
        Unanswered: the file leaves things open; all of them are named, with what answers.
        InputError: no file, no known format, or a value that cannot be read.
    """
    said = {"data_size": data_size, "devices": devices}
    answers = dict(set or {}) | {key: value for key, value in said.items() if value is not None}
    answers = {key: value for key, value in answers.items() if value is not None}
    if isinstance(file, (str, Path)):
        source = read_file(Path(file))
        source, origins = merged(source, read_file)
        stamp = _stamp_of(source)
    else:
        source, origins, stamp = from_object(file), {}, None
    return read(source, answers, origins, format, stamp)


def read(
    source: Source,
    answers: Mapping[str, Any],
    origins: Mapping[Key, str] | None = None,
    format_name: str | None = None,
    stamp: Stamp | None = None,
) -> Loaded:
    """Read a source into a recipe and its ledger; see `load`."""
    form = detect(source, FORMATS, format_name, OTHERS)
    source = replace(source, extra={**source.extra, "dashes_alone": form.dashes})
    if stamp is not None:
        answers = {**stamp.answers, **answers}
        told = answers.get("devices", stamp.devices)
        answers |= {"devices": stamp.devices}
        if told != stamp.devices:
            raise InputError(
                f"{source.name} is a plan: batch {stamp.reference} -> {stamp.batch} on {stamp.devices} devices, "
                f"so it is not for {told}; plan on from it with --devices {stamp.devices}->N, or remove its stamp"
            )
    reader = Reader(source, answers, origins or {}, stamp.exact if stamp is not None else {})
    trouble: InputError | None = None
    recipe: Recipe | None = None
    try:
        _rests(reader)
        form.read(reader)
        for key, value in answers.items():
            if key.startswith("rules.") and key not in reader.used:
                reader.draft.rules[key.removeprefix("rules.")] = value
                reader.used.add(key)
        recipe = reader.draft.recipe() if not reader.questions else None
    except Unanswered:
        raise
    except InputError as error:
        trouble = error
    except (ArithmeticError, LookupError, TypeError, AttributeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        trouble = Unforeseen(f"a value is not of the kind that {form.title} has there ({said}); mend the file")
        trouble.__cause__ = error
    ledger = reader.ledger(form.name, form.title) if trouble is None or reader.questions else None
    if trouble is not None or recipe is None or ledger is None:
        kind = Unforeseen if isinstance(trouble, Unforeseen) else InputError
        said = f"{source.name}: {trouble}" if source.name not in str(trouble) else str(trouble)
        raise kind(said) from (trouble.__cause__ if trouble is not None else None)
    ledger = _doubtful_batch(reader, ledger)
    unused = [
        key
        for key in answers
        if key not in reader.used and key not in ("devices", "data_size", *(stamp.answers if stamp else ()))
    ]
    if unused:
        known = ", ".join(link.name for link in ledger.links)
        raise InputError(f"--set {unused[0]} answers nothing that {source.name} asks; known keys: {known}")
    used = {key: value for key, value in answers.items() if key in reader.used and key != "devices"}
    used |= reader.remembered
    if stamp is not None:
        recipe = stamp.known_by(recipe)
    return Loaded(recipe, dataclasses.replace(ledger, stamp=stamp, answers=used))


def _doubtful_batch(reader: Reader, ledger: Ledger) -> Ledger:
    """Ask about passes of an update that a format does not know, for the batch is wrong where they act."""
    left = []
    for item in ledger.unread:
        if not accumulates(item.key, item.value):
            left.append(item)
            continue
        why = (
            f"{item.key} = {item.value} looks like passes of an update, which {ledger.title} does not have under this "
            f"name, so that the batch may be {item.value} times as large; where it does nothing"
        )
        if reader.ask(item.key, why, 1, f"--set {item.key}=1") != 1:
            raise InputError(f"--set {item.key}=... must be 1, which says that it does nothing here")
    if reader.questions:
        raise Unanswered(reader.source.name, tuple(reader.questions.values()))
    return dataclasses.replace(ledger, unread=tuple(left))


def _rests(reader: Reader) -> None:
    """Ask what a command takes from a config that it names, in place of believing in the trainer's defaults."""
    config = reader.source.extra.get("rests_on", "")
    why = (
        f"the command lays its flags over {config}, which is not read with it; write the flags into that file and plan "
        "the file; or, where the command itself says every number that is not the trainer's default"
    )
    if not config:
        config = _composed(reader)
        why = (
            f"Hydra composes the file with {config}, which is not read with it; plan what --cfg job prints of it; "
            "or, where the file itself says every number that is not the trainer's default"
        )
    if not config:
        return
    answer = reader.ask("rests_on", why, NOTHING, f"--set rests_on={NOTHING}")
    if str(answer) != NOTHING:
        raise InputError(f"--set rests_on={answer!r} must be {NOTHING}, or plan {config} itself")


def _composed(reader: Reader) -> str:
    """Return the configs that Hydra composes a file with, but for its own trainer's defaults; "" for none."""
    listed = reader.source.get(("defaults",))
    if reader.source.kind != "yaml" or not isinstance(listed, list):
        return ""
    names = [name for item in listed for name in (item.values() if isinstance(item, dict) else [item])]
    return ", ".join(str(name) for name in names if name not in ("_self_", None) and name not in _OWN_DEFAULTS)


def read_file(path: Path) -> Source:
    """Return the source of a file, by the ending of its name; of a command where it has none."""
    text, ending = read_text(path), path.suffix.lower()
    reader = _READERS.get(ending)
    if reader is None:
        head = text.lstrip()[:1]
        reader = read_json if head == "{" else read_command
    return replace(reader(text, path.name), path=path)


def from_object(config: Any) -> Source:
    """Return the source of a config object: its values, without a text."""
    tree = plain_tree(config)
    if not isinstance(tree, dict) or not tree:
        raise InputError(
            f"a config of type {type(config).__name__} holds no keys; give a mapping, dataclass or namespace"
        )
    return Source(type(config).__name__, "object", "", tree, {}, lambda source, changes: source.text)


def plain_tree(value: Any, depth: int = 0) -> Any:
    """Return an object as nested plain values; what is no value of a recipe becomes text."""
    if depth > 20 or value is None or isinstance(value, (bool, int, float, str)):
        return value if depth <= 20 else None
    if isinstance(value, Mapping):
        return {str(key): plain_tree(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_tree(inner, depth + 1) for inner in value]
    if like_a_mapping(value):
        return {str(key): plain_tree(value[key], depth + 1) for key in value.keys()}  # noqa: SIM118
    if isinstance(value, Enum):
        return plain_tree(value.value, depth + 1)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain_tree(getattr(value, name, None), depth + 1) for name in names}
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict) and not isinstance(value, type) and not callable(value):
        shown = {name: inner for name, inner in held.items() if not name.startswith("_")}
        return {name: plain_tree(inner, depth + 1) for name, inner in shown.items()}
    return str(value)[:200]


def like_a_mapping(value: Any) -> bool:
    """Return whether an object is read and written by its keys: ml_collections' ConfigDict, mmengine's Config."""
    if isinstance(value, type):
        return False
    return all(callable(getattr(value, name, None)) for name in ("keys", "__getitem__", "__setitem__"))


def _stamp_of(source: Source) -> Stamp | None:
    if source.kind != "json" or source.path is None:
        return read_stamp(source.text, source.name)
    beside = source.path.with_name(source.path.name + SIDECAR)
    return read_stamp(read_text(beside), beside.name) if beside.is_file() else None


def _again(ledger: Ledger) -> Any:
    """Return what reads a planned text again, as the same file."""

    def again(text: str, stamp: Stamp) -> Loaded:
        old = ledger.source
        readers = {"yaml": read_yaml, "json": read_json, "toml": read_toml_text, "python": read_python}
        fresh = replace(readers.get(old.kind, read_command)(text, old.name), path=old.path)
        fresh, origins = merged(fresh, read_file) if old.path is not None else (fresh, {})
        return read(fresh, stamp.answers, origins, ledger.format, stamp)

    return again
