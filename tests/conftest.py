"""Property tests draw the same examples every time; every process has one thread."""

import os

# tests fork, and a forked child waits for ever for the parent's threads; set before torch is loaded, and for children
os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")
