"""Property tests draw the same examples every time; every process has one thread and a cache of its own."""

import gc
import os
import tempfile

# tests fork, and a forked child waits for ever for the parent's threads; set before torch is loaded, and for children
os.environ["OMP_NUM_THREADS"] = "1"
# finished runs that a test does not place are kept here, never under the user's own cache
_CACHE = tempfile.TemporaryDirectory(prefix="isobatch-tests-")
os.environ["ISOBATCH_CACHE"] = _CACHE.name

from hypothesis import settings  # noqa: E402

settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")


def pytest_collection_finish(session):
    """What is loaded by now stays: neither the collector nor a search for a wrapper need look at it in each test."""
    gc.collect()
    gc.freeze()
