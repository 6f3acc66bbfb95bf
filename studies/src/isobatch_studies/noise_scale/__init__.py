"""The noise scale against the critical batch, domain by domain."""
