"""The LEGW study: sixteen times the batch with nothing retuned."""
