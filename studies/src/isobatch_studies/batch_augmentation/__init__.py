"""Batch augmentation: what many views of each sample in one update give."""
