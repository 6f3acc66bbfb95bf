"""Texts that recipes are written in: values with the place of each, and edits that keep every other character."""

from isobatch.formats.texts.command import read_command
from isobatch.formats.texts.json import read_json
from isobatch.formats.texts.python import read_python
from isobatch.formats.texts.source import Key, Source, Spot, Unknown, leaves, read_text, spelled, write_text
from isobatch.formats.texts.toml import read_toml_text
from isobatch.formats.texts.yaml import read_yaml, yaml_text

__all__ = [
    "Key",
    "Source",
    "Spot",
    "Unknown",
    "leaves",
    "read_command",
    "read_json",
    "read_python",
    "read_text",
    "read_toml_text",
    "read_yaml",
    "spelled",
    "write_text",
    "yaml_text",
]
