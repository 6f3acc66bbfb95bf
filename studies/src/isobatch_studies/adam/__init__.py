"""The Adam study: which batch rule holds when."""
