"""The progressive study: the batch changes in the middle of the run."""
