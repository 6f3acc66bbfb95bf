"""The AutoWU study: a peak found without tuning, and the short budget mended."""
