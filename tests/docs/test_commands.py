"""Every command of README and docs exists; those of the pages that a newcomer walks through run as they stand."""

import os
import shlex
import subprocess
import sys

import pytest
from tests.docs.blocks import PAGES, ROOT, WALKED, commands, files, prints

from isobatch import cli

EXPECTED = {"same-batch-other-curve.md": {4}, "own-task.md": {0, 3}}
"""Pages whose command does not end with 0 alone, and what they say of it."""


def walk(name, folder):
    """Lay a page's files into a folder, beside the examples."""
    (folder / "examples").symlink_to(ROOT / "examples")
    for file, text in files(WALKED[name].read_text()).items():
        (folder / file).write_text(text)


@pytest.mark.parametrize("name", [name for name, path in PAGES.items() if commands(path.read_text())])
def test_commands_exist(name, capsys):
    for command in commands(PAGES[name].read_text()):
        words = command.words
        while words and ("=" in words[0] or words[0] == "torchrun"):
            words = words[1:] if "=" in words[0] else ["isobatch", *words[words.index("isobatch") + 1 :]]
        if words[:1] == ["isobatch"] and "..." not in words and words[-1] != "--version":
            try:
                cli.parser().parse_args([word for word in words[1:] if word != "|"])
            except SystemExit:
                pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        elif words[:2] == ["python", "-m"] and words[2] == "isobatch_studies.claims_table":
            assert (ROOT / "studies/src/isobatch_studies/claims_table.py").exists()
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists()


@pytest.mark.parametrize("name", [name for name, path in WALKED.items() if commands(path.read_text())])
def test_plans_run_and_print_what_the_page_shows(name, tmp_path, monkeypatch, capsys):
    walk(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for command in commands(WALKED[name].read_text()):
        if command.quick:
            assert cli.run(command.words[1:]) == 0, capsys.readouterr().err
            output = capsys.readouterr().out
            missing = [line for line in command.shown if not prints(output, line)]
            assert not missing, output
        else:
            assert command.words[0] in ("isobatch", "make", "pip", "uv", "pipx", "git", "cd"), command.words


TRAINING = [name for name, path in WALKED.items()
            if any(c.words[0] == "isobatch" and not c.quick for c in commands(path.read_text()))]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINING)
def test_every_command_runs_in_the_order_of_the_page(name, tmp_path):
    walk(name, tmp_path)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "studies" / "src")])
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}
    for command in commands(WALKED[name].read_text()):
        if command.words[0] != "isobatch":
            continue
        words = [sys.executable, "-m", *command.words]
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        wanted = EXPECTED.get(WALKED[name].name, {0}) if command.words[1] == "verify" else {0}
        assert done.returncode in wanted, f"{shlex.join(command.words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        missing = [line for line in command.shown if not prints(done.stdout, line)]
        assert not missing, done.stdout
