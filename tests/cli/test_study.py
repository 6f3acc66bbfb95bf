"""isobatch study and tasks without the distribution that brings them, and with one of another's."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
from tests.recipes import recipe

from isobatch import cli
from isobatch.errors import InputError
from isobatch.tasks import find, make_run


@dataclass
class Study:
    question: str = "Does it answer?"
    takes: frozenset = frozenset()

    def run(self, **options):
        return {"study": "mine", "title": "Mine", "claims": [], "asked": sorted(options)}


MINE = Study()


def announce(monkeypatch, *points):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [p for p in points if p.group == group])


@pytest.mark.parametrize("words", [["study"], ["study", "byol"], ["study", "--json"]])
def test_without_studies_the_command_names_what_to_install(words, monkeypatch, capsys):
    announce(monkeypatch)
    assert cli.run(words) == 2
    assert "no studies are installed" in (said := capsys.readouterr().err)
    assert said.strip().endswith("pip install isobatch-studies")


@pytest.mark.parametrize("task", ["byol", "a2c-cartpole", "digits-mnn"])
def test_without_studies_a_task_that_is_not_here_names_what_to_install(task, monkeypatch):
    announce(monkeypatch)
    with pytest.raises(
        InputError, match=rf"task='{task}' is not installed \(digits.*text.*pip install isobatch-studies"
    ):
        make_run(recipe(task=task), 0)


def test_another_distribution_may_bring_studies_and_tasks(monkeypatch, capsys):
    announce(
        monkeypatch,
        EntryPoint("mine", "tests.cli.test_study:MINE", "isobatch.studies"),
        EntryPoint("also-digits", "isobatch.tasks.digits:make", "isobatch.tasks"),
        EntryPoint("digits", "isobatch.tasks.text:make", "isobatch.tasks"),
    )
    assert cli.run(["study", "--json"]) == 0
    assert capsys.readouterr().out == '{\n "mine": "Does it answer?"\n}\n'
    assert cli.run(["study", "mine", "--json"]) == 0
    assert '"quick"' in capsys.readouterr().out
    assert find("also-digits") is find("digits")
    assert find("digits").__module__ == "isobatch.tasks.digits", "a name of this package stays its own"
