"""Formats: recipes of other stacks, read in their own words, planned, and written back."""

from isobatch.formats.check import Departure, check
from isobatch.formats.ledger import Change, Fixed, Ledger, Link, OwnRule, Question, Unanswered, Unread
from isobatch.formats.lint import Lint, lint
from isobatch.formats.loading import Loaded, load
from isobatch.formats.objects import scale_config
from isobatch.formats.planned import FilePlan, FileRow
from isobatch.formats.stacks import FORMATS
from isobatch.formats.stamp import Stamp

__all__ = [
    "FORMATS",
    "Change",
    "Departure",
    "FilePlan",
    "FileRow",
    "Fixed",
    "Ledger",
    "Link",
    "Lint",
    "Loaded",
    "OwnRule",
    "Question",
    "Stamp",
    "Unanswered",
    "Unread",
    "check",
    "lint",
    "load",
    "scale_config",
]
