"""Concurrent adversarial learning: what adversarial examples made by older weights give, and what they cost."""
