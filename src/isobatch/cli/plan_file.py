"""isobatch plan FILE, where the file is another stack's: its own words in, a patch in the same words out."""

import argparse
import re
from pathlib import Path
from typing import Any

from isobatch.cli.options import say
from isobatch.cli.plan_html import write_page
from isobatch.errors import InputError

DEPARTS = 4
"""Exit code of --check where a file departs from its reference, that of DIFFERENT."""
_ARROW = re.compile(r"^(\d*)\s*(?:->\s*(\d+))?$")


def add_file_options(command: argparse.ArgumentParser) -> None:
    """Add what a file of another stack can be asked.

    Args:
        command: the command's parser.
    """
    files = command.add_argument_group("files of other stacks (docs/formats.md)")
    files.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="answer what the file does not say"
    )
    files.add_argument("--format", metavar="NAME", help="the format, where it cannot be told from the file")
    files.add_argument("--keep-batch", action="store_true", help="keep the batch on other devices, by accumulation")
    files.add_argument("--explain", metavar="KEY", help="where a number came from, and where it goes")
    text = "write the planned file: in place, or to OUT; comments, order and quotes are kept"
    files.add_argument("--patch", nargs="?", const="", metavar="OUT", help=text)
    files.add_argument("--diff", action="store_true", help="print the change of the file as a diff")
    files.add_argument("--plot", metavar="OUT", help="old and new schedules against samples, as .png or .html")
    text = "exit with 4 where FILE departs from --reference without the plan's values, and say where"
    files.add_argument("--check", action="store_true", help=text)
    files.add_argument("--reference", type=Path, metavar="FILE", help="the recipe that FILE comes from, for --check")


def devices_of(text: str | None) -> tuple[int | None, int | None]:
    """Return old and new devices of `--devices 32->4`, `32` or `->4`.

    Args:
        text: as given.

    Returns:
        (old, new); for a single number (number, None).

    Raises:
        InputError: anything else.

    Example:
        >>> devices_of("32->4"), devices_of("8")
        ((32, 4), (8, None))
    """
    if text is None:
        return None, None
    match = _ARROW.match(text.strip())
    if match is None or not (match[1] or match[2]):
        raise InputError(f"--devices {text!r} must be a number, or two with an arrow: 8 or '32->4'")
    old, new = (int(part) if part else None for part in (match[1], match[2]))
    if old == 0 or new == 0:
        raise InputError(f"--devices {text!r}: devices must be at least 1")
    return old, new


def is_own(path: Path) -> bool:
    """Return whether a file is a recipe in isobatch's own TOML (or would have to be).

    Args:
        path: of the file.

    Returns:
        True for TOML with [batch] and [optimizer], and for TOML that cannot be read.
    """
    if path.suffix.lower() != ".toml":
        return False
    import tomllib

    try:
        tables = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return True
    # other stacks have [optimizer] too (torchtitan), none has [batch]
    return "batch" in tables or not ({"training", "train", "trainer", "optim"} & tables.keys())


def plan_file(chosen: argparse.Namespace) -> int:
    """Plan a file of another stack.

    Args:
        chosen: parsed arguments.

    Returns:
        0, or 4 where --check finds a departure.
    """
    if chosen.optimizer is not None:
        raise InputError(
            "a file of another stack cannot say the invariant form; drop --optimizer, or write the recipe in TOML"
        )
    if chosen.check:
        return _checked(chosen)
    file, new = _loaded(chosen, chosen.recipe)
    asked = (chosen.batch_size, new, chosen.micro)
    if chosen.html is not None and write_page(chosen, file, new):
        return 0
    size = chosen.batch_size
    if asked == (None, None, None):
        size = file.recipe.batch.size
    made = file.at(
        size,
        devices=new,
        micro=chosen.micro,
        keep_batch=chosen.keep_batch,
        noise_scale=chosen.noise_scale,
        rule=chosen.rule,
        goal=chosen.goal,
    )
    if chosen.plot is not None:
        _refuse_existing(Path(chosen.plot), chosen)
        _plot(chosen.plot, made)
    if chosen.explain is not None:
        say(made.explain(chosen.explain))
    elif chosen.diff:
        say(made.diff().rstrip("\n"))
    elif chosen.json:
        say(made.to_json())
    elif chosen.markdown:
        say(made.to_markdown())
    elif chosen.patch is None:
        _print(made, asked != (None, None, None))
    if chosen.patch is not None:
        if chosen.patch and Path(chosen.patch).resolve() != Path(chosen.recipe).resolve():
            _refuse_existing(Path(chosen.patch), chosen)
        written = made.patch(chosen.patch or None)
        if not chosen.json:
            say(f"{written}: {len(made.changes)} keys changed" if made.changes else f"{written}: nothing to change")
    return 0


def _loaded(chosen: argparse.Namespace, path: Path) -> Any:
    """Return the file, and the new devices: a single number answers what is asked, and is the new one else."""
    from isobatch.formats import Unanswered, load

    answers = dict(_answer(text) for text in chosen.set)
    old, new = devices_of(chosen.devices)
    size, told = answers.pop("data_size", None), answers.pop("devices", None)
    more: dict[str, Any] = {"data_size": size, "format": chosen.format, "set": answers}
    if old is None or new is not None:
        return load(path, devices=old if told is None else told, **more), new
    try:
        file = load(path, devices=told, **more)
    except Unanswered as error:
        if not any(question.name == "devices" for question in error.questions):
            raise
        return load(path, devices=old, **more), None
    if not file.ledger.devices_said:
        return load(path, devices=old, **more), None
    return file, old


def _answer(text: str) -> tuple[str, Any]:
    """Return the name and the value of --set NAME=VALUE."""
    from isobatch.formats.texts.yaml import plain

    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise InputError(f"--set {text!r} must be KEY=VALUE, such as data_size=117266")
    value = value.strip()
    if value[:1] == "[" and value[-1:] == "]":
        return name.strip(), [plain(part.strip()) for part in value[1:-1].split(",")]
    return name.strip(), plain(value)


def _checked(chosen: argparse.Namespace) -> int:
    from isobatch.formats import check

    if chosen.reference is None:
        raise InputError("--check needs --reference FILE, the recipe that the file comes from")
    old, new = devices_of(chosen.devices)
    (reference, _), (file, _) = (
        _loaded(argparse.Namespace(**vars(chosen) | {"devices": None if count is None else str(count)}), path)
        for count, path in ((old, chosen.reference), (old if new is None else new, chosen.recipe))
    )
    found = check(file, reference)
    before, after = reference.recipe.batch.size, file.recipe.batch.size
    unjudged = [item.key for item in file.ledger.unread] if before != after else []
    if chosen.json:
        import json
        from dataclasses import asdict

        said = {"departs": [asdict(one) for one in found], "unjudged": unjudged}
        say(json.dumps(said, indent=2, default=str))
    name = file.ledger.source.name
    if not found:
        if not chosen.json:
            say(f"{name}: batch {after} has the values that the plan gives from {chosen.reference} (batch {before})")
            _unjudged(unjudged)
        return 0
    if not chosen.json:
        say(f"{name}: batch {after} departs from the plan of {chosen.reference} (batch {before}):")
        for departure in found:
            say(f"  {departure}")
        _unjudged(unjudged)
    return DEPARTS


def _unjudged(keys: list[str]) -> None:
    if keys:
        say(f"not judged, because no plan knows what they do: {', '.join(keys)}")


def _refuse_existing(path: Path, chosen: argparse.Namespace) -> None:
    if path.exists() and not chosen.overwrite:
        raise InputError(f"{path} exists; give another name, or overwrite it (--overwrite)")


def _plot(out: str, made: Any) -> None:
    from isobatch.installed import need

    need("verify")
    from isobatch.report.schedules import schedule_page, schedule_picture

    target = Path(out)
    page = target.suffix.lower() in (".html", ".htm")
    if not page and target.suffix.lower() != ".png":
        raise InputError(f"--plot {out!r} must end in .png or .html")
    data = schedule_page(made).encode() if page else schedule_picture(made.reference, made.recipe)
    try:
        target.write_bytes(data)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; give --plot another file") from None


def _print(made: Any, asked: bool) -> None:
    from rich.console import Console

    from isobatch.formats.show import command

    Console().print(made)
    if not asked:
        say("say --batch-size N, --devices OLD->NEW or --micro N to plan another batch")
    elif made.changes:
        line = command(made)
        say("--patch writes the file, --diff shows the change" if line is None else f"run: {line}")
