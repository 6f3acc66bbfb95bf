"""LARS (1708.03888), LAMB (1904.00962) and AdamP (2006.08217) on one tensor, in float64 and in the papers' letters."""

import math

import numpy as np


def lars(w, g, s, t, *, lr, momentum, weight_decay, eta=1e-3):
    """The form of PyTorch: v = mu*v + r*(g + wd*w); w -= lr*v; vectors take plain momentum SGD without decay."""
    if w.ndim > 1:
        norm, slope = np.linalg.norm(w), np.linalg.norm(g)
        below = slope + weight_decay * norm
        r = eta * norm / below if norm > 0 and below > 0 else 1.0
        g = r * (g + weight_decay * w)
    s["v"] = momentum * s.get("v", 0.0) + g
    return w - lr * s["v"]


def lamb(w, g, s, t, *, lr, betas, eps, weight_decay):
    """Without bias correction (version 3 of the paper), phi the identity; vectors take r = 1 and no decay."""
    s["m"] = betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0.0) + (1 - betas[1]) * g * g
    u = s["m"] / (np.sqrt(s["v"]) + eps)
    if w.ndim == 1:
        return w - lr * u
    u = u + weight_decay * w
    phi, size = np.linalg.norm(w), np.linalg.norm(u)
    return w - lr * (phi / size if phi > 0 and size > 0 else 1.0) * u


def adamp(w, g, s, t, *, lr, betas, eps, weight_decay, delta=0.1, wd_ratio=0.1):
    """Adam with decoupled decay; the radial part is dropped where gradient and weights are orthogonal."""
    s["m"] = betas[0] * s.get("m", 0.0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0.0) + (1 - betas[1]) * g * g
    p = s["m"] / (np.sqrt(s["v"]) / math.sqrt(1 - betas[1] ** t) + eps)
    if w.ndim == 1:
        return w - lr / (1 - betas[0] ** t) * p
    ratio = 1.0
    for rows in (len(w), 1):
        W, G, P = w.reshape(rows, -1), g.reshape(rows, -1), p.reshape(rows, -1)
        cos = np.abs((W * G).sum(1)) / np.maximum(np.linalg.norm(W, axis=1) * np.linalg.norm(G, axis=1), eps)
        if cos.max() < delta / math.sqrt(W.shape[1]):
            n = W / (np.linalg.norm(W, axis=1, keepdims=True) + eps)
            p, ratio = (P - n * (n * P).sum(1, keepdims=True)).reshape(w.shape), wd_ratio
            break
    return w * (1 - lr * weight_decay * ratio) - lr / (1 - betas[0] ** t) * p
