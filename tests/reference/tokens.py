"""Token packing one example at a time."""


def batches(lengths: list[int], stream: list[int], budgets: list[int]) -> list[list[int]]:
    """The longest runs of the stream within each budget, in turn."""
    out, p = [], 0
    for T in budgets:
        run: list[int] = []
        while sum(lengths[i] for i in run) + lengths[stream[p]] <= T:
            run.append(stream[p])
            p += 1
        out.append(run)
    return out
