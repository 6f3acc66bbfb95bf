"""Formats: recipes of other stacks, read in their own words, planned, and written back."""

from isobatch.formats.ledger import Change, Fixed, Ledger, Link, OwnRule, Question, Unanswered, Unread
from isobatch.formats.loading import Loaded, load
from isobatch.formats.planned import FilePlan, FileRow
from isobatch.formats.stacks import FORMATS
from isobatch.formats.stamp import Stamp

__all__ = [
    "FORMATS",
    "Change",
    "FilePlan",
    "FileRow",
    "Fixed",
    "Ledger",
    "Link",
    "Loaded",
    "OwnRule",
    "Question",
    "Stamp",
    "Unanswered",
    "Unread",
    "load",
]
