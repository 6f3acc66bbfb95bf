"""The pseudo-label study: continual pseudo-labelling at other batches, with the EMA rule and without."""
