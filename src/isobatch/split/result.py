"""The report of a check: verdicts, causes, a Markdown table, plain values, a page."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from isobatch.installed import need
from isobatch.split.cause import Cause
from isobatch.split.compare import DIFFERENT, NOT_COMPARABLE, Component

SAME, UNDECIDED, OTHER = 0, 3, 4
"""Exit codes: nothing differs, something cannot be compared, something differs."""


@dataclass
class SplitReport:
    """Whether an update depends on how its batch is split.

    Args:
        components: what was compared.
        causes: why something differs, the first in a step first.
        layouts: what was compared with one batch.
        batch: samples an update.
        updates: how many were made from the same state.
        types: "float64", or the trainer's own.
        notes: what could not be done.
        seconds: time spent.

    Example:
        >>> SplitReport([Component("update", "IDENTICAL", 0.0, 1e-11)], [], ["2 x 4"], 8, 3, "float64").invariant
        True
    """

    components: list[Component]
    causes: list[Cause]
    layouts: list[str]
    batch: int
    updates: int
    types: str
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def invariant(self) -> bool:
        """Whether nothing differs and everything could be compared."""
        return self.exit_code == SAME

    @property
    def exit_code(self) -> int:
        """0 batch-invariant, 3 not comparable, 4 different."""
        verdicts = {one.verdict for one in self.components}
        if DIFFERENT in verdicts:
            return OTHER
        return UNDECIDED if NOT_COMPARABLE in verdicts else SAME

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.exit_code == SAME:
            return f"batch-invariant: {', '.join(self.layouts)} make the update of 1 x {self.batch}"
        if self.causes:
            return "; ".join(f"{one.what} ({one.confidence})" for one in self.causes)
        names = [one.name for one in self.components if one.verdict == NOT_COMPARABLE]
        return f"not comparable: {', '.join(names)}"

    def __getitem__(self, name: str) -> Component:
        for one in self.components:
            if one.name == name:
                return one
        raise KeyError(f"{name!r} is not compared; there are {', '.join(one.name for one in self.components)}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values.

        Returns:
            What JSON holds.
        """
        return {**asdict(self), "invariant": self.invariant, "exit_code": self.exit_code, "headline": self.headline}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "SplitReport":
        """Return a report from its plain values.

        Args:
            data: as to_dict gives them.

        Returns:
            The report.
        """
        own = {key: data[key] for key in ("layouts", "batch", "updates", "types", "notes", "seconds")}
        told: Any = data["causes"]
        causes = [Cause(*(one[f.name] for f in fields(Cause)[:-1]), tuple(one["explains"])) for one in told]
        return cls([Component(**one) for one in data["components"]], causes, **own)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return the table of components.

        Returns:
            Name, verdict, ratio, distance beside its tolerance, layout and reason.
        """
        found = []
        for one in self.components:
            ratio = f"x {one.ratio:.6g}" if one.ratio is not None and one.verdict == DIFFERENT else ""
            apart = f"{one.distance:.2g} (to {one.tolerance:.1g})" if one.tolerance else ""
            words = ", ".join(word for word in (one.where if one.verdict == DIFFERENT else "", one.reason) if word)
            found.append((one.name, one.verdict, ratio, apart, words))
        return found

    def to_markdown(self) -> str:
        """Return the report as Markdown, to paste into a bug report.

        Returns:
            Headline, table, causes.
        """
        lines = [
            f"**{self.headline}**",
            "",
            "| component | verdict | ratio | relative distance (tolerance) | where |",
            "|---|---|---|---|---|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows()]
        lines += [
            "",
            *(f"- **{one.what}** ({one.confidence}): {one.seen}. Advice: {one.advice}." for one in self.causes),
        ]
        lines += [f"- {note}" for note in self.notes]
        lines += [
            "",
            f"1 x {self.batch} against {', '.join(self.layouts)}; {self.updates} updates from the same state, "
            f"{self.types}.",
        ]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        return self.to_markdown()


def write_report(folder: Path, report: SplitReport, target: str) -> list[Path]:
    """Write result.json, report.md and report.html.

    Args:
        folder: an existing folder.
        report: what was found.
        target: the trainer, as it was named.

    Returns:
        The files.

    Raises:
        MissingExtra: for the page alone; the other files are written.
    """
    from isobatch.results import write, write_result

    files = [write_result(folder, {"target": target, **report.to_dict()}), folder / "report.md"]
    write(files[1], report.to_markdown())
    files.append(folder / "report.html")
    write(files[2], html(report, target))
    return files


def html(report: SplitReport, target: str) -> str:
    """Return the page of a check.

    Args:
        report: what was found.
        target: the trainer, as it was named.

    Returns:
        HTML without any link to the network.

    Raises:
        MissingExtra: the extra that pages need is not there.
    """
    need("verify")
    from isobatch.report import Section, render

    badge = {SAME: "SAME", OTHER: "DIFFERENT"}.get(report.exit_code, "NOT COMPARABLE")
    rows = [["component", "verdict", "ratio", "relative distance (tolerance)", "where"], *map(list, report.rows())]
    sections = [Section("Components", [], rows)]
    if report.causes:
        told = [["cause", "confidence", "seen", "advice"]]
        told += [[one.what, str(one.confidence), one.seen, one.advice] for one in report.causes]
        sections.insert(0, Section("Causes", [], told))
    compared = (
        f"1 x {report.batch} against {', '.join(report.layouts)}; {report.updates} updates from the same state, "
        f"{report.types}."
    )
    sections.append(Section("What was compared", [compared, *report.notes]))
    title = f"{Path(target).name}: is one update the same in parts?"
    return render(title, report.headline, sections, badge=badge, footer=f"{report.seconds:.1f} s")
