"""For test suites: assert that a trainer's update does not depend on how its batch is split."""

from collections.abc import Callable, Collection
from typing import Any

from isobatch.installed import need


def assert_batch_invariant(
    make: Callable[..., Any], parts: Any = (2, 4), *, allow: Collection[str] = (), **options: Any
) -> Any:
    """Assert that one update of a batch is the same in parts.

    Args:
        make: as for isobatch.split.split.
        parts: numbers of equal parts.
        allow: names of causes that are known and accepted, such as "batch-norm".
        **options: of isobatch.split.split: batch_size, processes, seed, float64, timeout.

    Returns:
        The report.

    Raises:
        AssertionError: something differs, or cannot be compared; it holds the table and the advice.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from isobatch.split import Subject, pieces
        >>> def make():
        ...     x, net = torch.randn(24, 3), nn.Linear(3, 1)
        ...     sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        ...     def update(batch, parts):
        ...         for piece in pieces(batch, parts):
        ...             (net(piece).square().mean() * len(piece) / len(batch)).backward()
        ...         sgd.step()
        ...         sgd.zero_grad()
        ...     return Subject(net, update, x)
        >>> assert_batch_invariant(make).exit_code
        0
    """
    need("torch")
    from isobatch.split import split

    report = split(make, parts, **options)
    found = [cause for cause in report.causes if cause.name not in allow]
    accepted = report.causes and not found
    if not report.invariant and not accepted:
        raise AssertionError(f"the update depends on how its batch is split\n\n{report.to_markdown()}")
    return report
