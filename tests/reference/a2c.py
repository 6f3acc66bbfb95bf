"""A2C in the letters of Mnih et al. 2016 (arXiv 1602.01783), frame by frame."""

import math


def returns(r, over, cut, V_last, V_end, gamma):
    """R_t of one segment; V_last[t] is V of the state that a cut game was left in."""
    R, out = V_end, []
    for t in reversed(range(len(r))):
        if over[t]:
            R = 0.0
        elif cut[t]:
            R = V_last[t]
        R = r[t] + gamma * R
        out.insert(0, R)
    return out


def loss(logits, V, a, R, c_v=0.5, c_e=0.01):
    """Mean over frames of -log pi(a) (R - V) + c_v (R - V)^2 - c_e H(pi)."""
    total = 0.0
    for z, v, action, ret in zip(logits, V, a, R, strict=True):
        Z = sum(math.exp(x) for x in z)
        pi = [math.exp(x) / Z for x in z]
        H = -sum(p * math.log(p) for p in pi)
        total += -math.log(pi[action]) * (ret - v) + c_v * (ret - v) ** 2 - c_e * H
    return total / len(R)
