"""Paragraphs of the pages that are written here."""

import textwrap


def prose(*parts: str) -> list[str]:
    """Paragraphs, each in lines and followed by an empty one."""
    return [line for part in parts for line in (*textwrap.wrap(part, 140, break_long_words=False), "")]
