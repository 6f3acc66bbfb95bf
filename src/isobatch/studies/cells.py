"""Resumable work of studies; it is kept in verify, where the sweep of the critical batch may use it too."""

from isobatch.verify.cells import name as name
from isobatch.verify.cells import train_all as train_all
