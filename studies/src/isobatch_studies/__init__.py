"""Studies: published claims, run again, with fixed criteria."""
