"""Study: BYOL at other batches."""
