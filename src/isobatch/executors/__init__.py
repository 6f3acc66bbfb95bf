"""Executors: many runs on one machine or many, behind the standard `concurrent.futures.Executor`."""

from isobatch.installed import need

need("torch")

from isobatch.executors.local import LocalExecutor, processes
from isobatch.executors.named import opened
from isobatch.executors.progress import Line, State, watching
from isobatch.executors.resources import Resources
from isobatch.executors.session import RETRIES, Session, as_done, map_jobs, width

__all__ = [
    "RETRIES",
    "Line",
    "LocalExecutor",
    "Resources",
    "Session",
    "State",
    "as_done",
    "map_jobs",
    "opened",
    "processes",
    "watching",
    "width",
]
