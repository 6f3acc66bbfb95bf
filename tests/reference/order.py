"""Philox4x64-10 and the epoch permutation in plain Python integers (Salmon et al. 2011, section 3.3)."""

MASK = 2**64 - 1
M0, M1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157
W0, W1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def philox4x64(counter: list[int], key: tuple[int, int]) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK, (p0 >> 64) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return [c0, c1, c2, c3]


def words(seed: int, epoch: int, count: int) -> list[int]:
    out: list[int] = []
    block = 0
    while len(out) < count:
        block += 1  # the first block has counter 1
        out += philox4x64([block & MASK, block >> 64, 0, 0], (seed, epoch))
    return out[:count]


def permutation(seed: int, epoch: int, size: int) -> list[int]:
    w = words(seed, epoch, size)
    return sorted(range(size), key=lambda i: w[i])


def stream(seed: int, size: int, start: int, count: int) -> list[int]:
    return [permutation(seed, p // size, size)[p % size] for p in range(start, start + count)]
