"""Command lines and the shell scripts around them: flags with the place of each value; nothing is run.

Variables and arrays that a script assigns once, as plain text, are followed to where their text stands. What only a
shell could tell (`$(...)`, `$1`, a variable assigned twice) is `Unknown`.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any

from isobatch.errors import InputError
from isobatch.formats.texts.json import object_in
from isobatch.formats.texts.shell import Shell, Word
from isobatch.formats.texts.source import Key, Source, Spot, Unknown, newline, replaced, spelled
from isobatch.formats.texts.yaml import plain

_OVERRIDE = re.compile(r"^[+~]{0,2}([A-Za-z_][\w.\[\]/@-]*)=(.*)$", re.S)
_NUMBER = re.compile(r"^-(?:\d|\.\d)")
_RUNS = re.compile(
    r"(\.py$|\.sh$|^-m$|^torchrun$|^python\d?(\.\d+)?$|^accelerate$|^deepspeed$|^\$\(which [\w.-]+\)$|"
    r"(?:^|/)(?:lerobot-train|yolo|tune|axolotl|trl|llamafactory-cli|swift|composer|litgpt|mim)$)"
)
_LAUNCHERS = ("torchrun", "accelerate", "deepspeed", "composer")
_COUNTS = {"NPROC_PER_NODE": "nproc_per_node", "NNODES": "nnodes", "NGPU": "nproc_per_node"}
"""Variables by which some programs are told their processes -> what torchrun calls them."""
_CONFIGS = ("config", "c", "cfg", "config_file", "cfg_file", "config_name", "yaml_cfg", "job.config_file")
"""Flags behind which the config stands that a command changes."""
_LISTS = re.compile(r"(args|kwargs)$")


def read_command(text: str, name: str) -> Source:
    """Read a command line, or a script that holds one.

    Args:
        text: the text.
        name: for messages.

    Returns:
        The source: flags by name with `_` for `-`, overrides `a.b=c` as nested keys; `extra` holds the launcher's
        flags, the program, and where the command ends.

    Raises:
        InputError: no command, several of them, or an open quote.
    """
    shell = Shell(text, name)
    ends = {id(words): (words, stop) for words, stop in shell.commands()}
    commands = [c for c, _ in ends.values() if any(_RUNS.search(word.text) for word in c)]
    commands = [c for c in commands if sum(w.text.startswith("-") or "=" in w.text for w in c)] or commands
    if not commands:
        raise InputError(f"{name} holds no training command; give the line that starts the training")
    rests = [w.text for c in commands for w in c if w.text.endswith((".yaml", ".yml", ".toml", ".json"))]
    if rests and not any(_flags(_split(c)[1]) for c in commands):
        raise InputError(f"{name} reads its recipe from {rests[0]}; plan that file")
    most = max(commands, key=lambda c: len(_flags(_split(c)[1])))
    rivals = [c for c in commands if c is not most and len(_flags(_split(c)[1])) * 2 > len(_flags(_split(most)[1]))]
    if rivals:
        lines = ", ".join(str(text.count("\n", 0, c[0].start) + 1) for c in (most, *rivals))
        raise InputError(f"{name} holds {1 + len(rivals)} training commands (lines {lines}); keep one in the file")
    launcher, rest, program = _split(most)
    if not launcher:
        launcher = [word for key, flag in _COUNTS.items() for word in shell.counted(key, flag)]
    launcher = [part for word in launcher for part in _parted(word)]
    batch_job = _batch_job(text)
    tree: dict[str, Any] = {}
    spots: dict[Key, Spot] = {}
    for flag, values in _flags(rest).items():
        _set(tree, spots, flag, values, name, text)
    for place, words in (("launcher", launcher), ("sbatch", batch_job)):
        for flag, values in _counts(words).items():
            if len(values) == 1 and values[0].own:
                spots[place, flag] = Spot(values[0].start, values[0].end)
    if program.endswith(".sh") and rest and rest[0].text.isdigit() and rest[0].own:
        spots["launcher", "nproc_per_node"] = Spot(rest[0].start, rest[0].end)
        launcher = [Word("--nproc_per_node", 0, 0), rest[0]]
    extra = {
        "launcher": {flag: _plain(values) for flag, values in _counts(launcher).items()},
        "sbatch": {flag: _plain(values) for flag, values in _counts(batch_job).items()},
        "visible": " ".join(word.text for word in shell.held.get("CUDA_VISIBLE_DEVICES", [])),
        "program": program,
        "end": ends[id(most)][1],
        "rests_on": _rests_on(rest, program) or _told_config(shell, program),
        "dashes": {flag: values[0].text for flag, values in _flags(rest, raw=True).items()},
        "words": tuple(word.text for word in rest if not word.text.startswith("-") and "=" not in word.text),
    }
    return Source(name, "command", text, tree, spots, _rewrite, extra)


def _counts(words: list[Word]) -> dict[str, list[Word]]:
    """Return the flags of a launcher; behind a number stands the program, as in `mpirun -np 8 python`."""
    return {
        flag: values[:1] if values and values[0].text.isdigit() else values for flag, values in _flags(words).items()
    }


def _batch_job(text: str) -> list[Word]:
    """Return the words behind #SBATCH of a script that starts its program by srun."""
    if not re.search(r"\bsrun\b", text):
        return []
    lines = re.finditer(r"^#SBATCH[ \t]+([^#\r\n]+)", text, re.MULTILINE)
    words = (Word(m[0], line.start(1) + m.start(), line.start(1) + m.end())
             for line in lines for m in re.finditer(r"\S+", line[1]))  # fmt: skip
    return [part for word in words for part in _parted(word)]


def _parted(word: Word) -> list[Word]:
    """Return a short flag and its number as two words: -N2."""
    match = re.fullmatch(r"(-[Nn])(\d+)", word.text)
    if match is None or not word.own:
        return [word]
    cut = word.start + len(match[1])
    return [Word(match[1], word.start, cut), Word(match[2], cut, word.end)]


def _rests_on(rest: list[Word], program: str) -> str:
    """Return the config that a command lays its flags over, "" where it names none."""
    flags = _flags(rest)
    named = next((values[0].text for flag, values in flags.items() if flag in _CONFIGS and values), "")
    lead = [*program.split()[1:], *(word.text for word in takewhile(_plain_word, rest))]
    return named or next((text for text in lead if text.endswith((".yaml", ".yml", ".toml", ".json", ".py"))), "")


def _told_config(shell: Shell, program: str) -> str:
    """Return the config that torchtitan's run_train.sh is told by a variable, "" for none."""
    held = shell.held.get("CONFIG_FILE", []) if program.endswith("run_train.sh") else []
    return held[0].text if held else ""


def _plain_word(word: Word) -> bool:
    return not word.text.startswith("-") and "=" not in word.text


def _split(words: list[Word]) -> tuple[list[Word], list[Word], str]:
    """Return the launcher's words, the program's, and the program."""
    last = -1
    for index, word in enumerate(words):
        previous = words[index - 1].text if index else ""
        if word.text.endswith(".py") or previous == "-m":
            last = index
            if not word.text.endswith(("run.py", "launch.py")) and "distributed" not in word.text:
                break
    if last < 0:
        last = next((i for i, word in enumerate(words) if word.text.endswith(".sh")), -1)
    if last < 0:
        ran = [i for i, word in enumerate(words) if _RUNS.search(word.text) and not word.text.startswith("-")]
        launched = [i for i in ran if words[i].text.rsplit("/", 1)[-1] in _LAUNCHERS]
        inner = next((i for i in ran if launched and i > launched[0]), None)
        if inner is not None:  # such as accelerate launch --num_processes=2 $(which lerobot-train) ...
            return words[:inner], words[inner + 1 :], words[inner].text.removeprefix("$(which ").removesuffix(")")
        at = next((i for i, word in enumerate(words) if _RUNS.search(word.text)), 0)
        while at + 1 < len(words) and not words[at + 1].text.startswith("-") and "=" not in words[at + 1].text:
            at += 1
        start = next(i for i, w in enumerate(words) if _RUNS.search(w.text)) if words else 0
        if [word.text for word in words[at - 1 : at + 1]] == ["tune", "run"]:  # hands torchrun's flags on
            recipe = at + 1
            while recipe < len(words) and words[recipe].text.startswith("-"):
                recipe += 1 if "=" in words[recipe].text or words[recipe].text == "--standalone" else 2
            named = " ".join(word.text for word in words[at - 1 : at + 1] + words[recipe : recipe + 1])
            return words[at + 1 : recipe], words[recipe + 1 :], named
        return [], words[at + 1 :], " ".join(w.text for w in words[start : at + 1])
    return words[:last], words[last + 1 :], words[last].text


def _flags(words: list[Word], *, raw: bool = False) -> dict[str, list[Word]]:
    """Return the values of each flag; the last of several wins, as for argparse."""
    found: dict[str, list[Word]] = {}
    shown: dict[str, list[Word]] = {}
    flag: str | None = None
    for word in words:
        text = word.text
        override = _OVERRIDE.match(text)
        if text.startswith("-") and not _NUMBER.match(text) and text.strip("-"):
            head, sign, tail = text.partition("=")
            flag = head.lstrip("-").replace("-", "_")
            shown[flag] = [Word(head, word.start, word.start + len(head))]
            found[flag] = []
            if sign:
                found[flag] = [Word(tail, word.end - len(tail), word.end, word.known, word.own)]
                flag = None
        elif override and (flag is None or not _LISTS.search(flag) or (found[flag] and not flag.endswith("kwargs"))):
            flag = None
            tail = override[2]
            found[override[1]] = [Word(tail, word.end - len(tail), word.end, word.known, word.own)]
            shown[override[1]] = [Word(override[1] + "=", word.start, word.start)]
        elif flag is not None:
            found[flag].append(word)
    if flag is not None and len(found[flag]) > 1 and found[flag][-1].text.startswith(("/", "./", "../", "~")):
        found[flag].pop()  # the data, behind the last flag
    return shown if raw else found


def _plain(values: list[Word]) -> Any:
    plains = [plain(word.text) if word.known else Unknown(word.text) for word in values]
    if not plains:
        return True
    return plains[0] if len(plains) == 1 else plains


def _set(tree: dict[str, Any], spots: dict[Key, Spot], flag: str, values: list[Word], name: str, text: str) -> None:
    key: Key = tuple(flag.split(".")) if "." in flag else (flag,)
    table = tree
    for depth, part in enumerate(key[:-1]):
        if isinstance(table.get(str(part)), str):  # jsonargparse: a class, and its arguments by flags of their own
            table[str(part)] = {"class_path": table[str(part)]}
            place = spots.pop(key[: depth + 1], None)
            spots.update({} if place is None else {(*key[: depth + 1], "class_path"): place})
        inner = table.setdefault(str(part), {})
        if not isinstance(inner, dict):
            raise InputError(f"{name}: {flag} stands beside a value of {part}; keep one of them")
        table = inner
    if values and values[0].text.startswith("{"):
        found = object_in(text, values[0].start, values[-1].end, key, name)
        if found is not None:
            table[str(key[-1])] = found[0]
            spots.update(found[1])
            return
    if flag.endswith("kwargs") and values and all(_OVERRIDE.match(word.text) for word in values):
        table[str(key[-1])] = dict(_named(values, key, spots))
        return
    value = _plain(values)
    held = table.get(str(key[-1]))
    if isinstance(held, dict) and isinstance(value, str):
        table, key = held, (*key, "class_path")
    if len(values) == 1 and isinstance(value, str) and value[:1] == "[" and value[-1:] == "]":
        value = [plain(item.strip()) for item in value[1:-1].split(",")]
    table[str(key[-1])] = value
    if len(values) == 1 and values[0].own:
        spots[key] = Spot(values[0].start, values[0].end)
    for index, word in enumerate(values):
        if word.own and len(values) > 1:
            spots[(*key, index)] = Spot(word.start, word.end)


def _named(values: list[Word], key: Key, spots: dict[Key, Spot]) -> Iterator[tuple[str, Any]]:
    """Yield the pairs of `--opt-kwargs eps=1e-6 betas=0.9,0.95`, noting where each value stands."""
    for word in values:
        name, _, tail = word.text.partition("=")
        if word.own:
            spots[*key, name] = Spot(word.end - len(tail), word.end)
        items = [plain(item.strip()) for item in tail.strip("()[]").split(",")]
        yield name, items if len(items) > 1 else plain(tail) if word.known else Unknown(tail)


def _literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(_literal(item) for item in value)
    return str(value) if isinstance(value, str) else repr(value)


def _rewrite(source: Source, changes: Mapping[Key, Any]) -> str:
    pieces: list[tuple[int, int, str]] = []
    added = ""
    for key, value in changes.items():
        spot = source.spots.get(key)
        whole = spot is not None and isinstance(value, (list, tuple))
        if whole and spot is not None:
            stood = source.text[spot.start : spot.end]
            left, right = (stood[:1], stood[-1:]) if stood[:1] in ("[", "(") else ("", "")
            pieces.append((spot.start, spot.end, left + ",".join(_literal(item) for item in value) + right))
        elif spot is not None:
            pieces.append((spot.start, spot.end, _literal(value)))
        elif isinstance(value, (list, tuple)) and isinstance(source.get(key), list):
            places = [source.spots.get((*key, index)) for index in range(len(value))]
            if any(place is None for place in places):
                raise InputError(f"--{key[-1]} is built by the shell; write its numbers out")
            pieces += [(p.start, p.end, _literal(v)) for p, v in zip(places, value, strict=True) if p is not None]
        elif key[:-1] in source.spots:
            raise InputError(f"{spelled(key)} has no place in the text of {spelled(key[:-1])}; write it there")
        elif key[0] == "launcher" and key[1] not in source.extra["launcher"]:
            raise InputError(f"the launcher does not say {key[1]}; write --{key[1]} 1 there, and plan again")
        elif source.get(key) is not None or key[0] in ("launcher", "sbatch"):
            raise InputError(f"--{'.'.join(map(str, key))} is built by the shell; write the number out")
        else:
            flag = _flag(source, key)
            listed = (flag.endswith("=") or "." in flag) and isinstance(value, (list, tuple))  # draccus, jsonargparse
            head, quote = (flag, "") if flag.endswith("=") else ("", flag)
            inside = f"{head}[{','.join(map(_literal, value))}]" if listed else ""
            added += f" {quote}'{inside}'" if listed else f" {flag}{_literal(value)}"
    if added:
        pieces.append((source.extra["end"], source.extra["end"], added))
    return replaced(source.text, pieces)


def _flag(source: Source, key: Key) -> str:
    """Return a new flag as this command spells its others: dashes, underscores, or an override."""
    shown = source.extra["dashes"]
    name = ".".join(str(part) for part in key)
    if shown and all(text.endswith("=") for text in shown.values()):
        return f"{name}="
    words = [text.lstrip("-") for text in shown.values()]
    dashed = any("-" in word for word in words) or (
        source.extra.get("dashes_alone", False) and not any("_" in word for word in words)
    )
    return f"--{name.replace('_', '-') if dashed else name} "


def lines_of(source: Source) -> str:
    """Return a command in one line that can be pasted; the text itself where it is a script around one."""
    text = source.text.replace("\\\r\n", " ").replace("\\\n", " ").strip()
    body = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return " ".join(" ".join(body).split()) if len(body) == 1 else newline(source.text).join(body)
