"""A batch that follows the noise scale, against fixed batches."""
