"""The papers' algorithms as plain loops over one flat vector: what every method is checked against.

``f(w, batch)`` is the mini-batch gradient at ``w``; ``update(w, g)`` is the base's step. Nothing here uses steppe.
"""

from __future__ import annotations

import torch


def sgd(lr, momentum=0.0, weight_decay=0.0):
    buffer = None

    def update(w, g):
        nonlocal buffer
        g = g + weight_decay * w
        buffer = g if buffer is None else momentum * buffer + g
        return w - lr * buffer

    return update


def adamw(lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
    m = v = 0.0
    t = 0

    def update(w, g):
        nonlocal m, v, t
        t += 1
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        step = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        return w - lr * weight_decay * w - lr * step

    return update


def sam(w, f, batches, update, rho):
    for batch in batches:
        g = f(w, batch)
        delta = rho * g / g.norm()
        w = update(w, f(w + delta, batch))
        yield w


def usam(w, f, batches, update, rho):
    for batch in batches:
        w = update(w, f(w + rho * f(w, batch), batch))
        yield w


def asam(w, f, batches, update, rho, eta):
    for batch in batches:
        g = f(w, batch)
        t = w.abs() + eta
        delta = rho * t**2 * g / (t * g).norm()
        w = update(w, f(w + delta, batch))
        yield w


def gsam(w, f, batches, update, rho, alpha):
    for batch in batches:
        g = f(w, batch)
        g_p = f(w + rho * g / g.norm(), batch)
        parallel = (g @ g_p) / (g_p @ g_p) * g_p
        orthogonal = g - parallel
        w = update(w, g_p - alpha * orthogonal)
        yield w


def amsgrad(w, f, batches, lr, betas, eps, weight_decay=0.0):
    yield from adasam(w, f, batches, lr, 0.0, betas, eps, weight_decay)


def adasam(w, f, batches, lr, rho, betas, eps, weight_decay=0.0):
    m = torch.zeros_like(w)
    v = v_hat = torch.full_like(w, eps**2)
    for batch in batches:
        s = f(w, batch)
        g = f(w + rho * s / s.norm(), batch)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        v_hat = torch.maximum(v_hat, v)
        w = w - lr * weight_decay * w - lr * m / v_hat.sqrt()
        yield w


def lightsam_i(w, f, batches, lr, rho, eps):
    u = v = torch.tensor(eps**2, dtype=w.dtype)
    for batch in batches:
        s = f(w, batch)
        u = u + s @ s
        g = f(w + rho * s / u.sqrt(), batch)
        v = v + g @ g
        w = w - lr * g / v.sqrt()
        yield w


def lightsam_ii(w, f, batches, lr, rho, eps):
    u = v = torch.full_like(w, eps**2)
    for batch in batches:
        s = f(w, batch)
        u = u + s * s
        g = f(w + rho * s / u.sqrt(), batch)
        v = v + g * g
        w = w - lr * g / v.sqrt()
        yield w


def lightsam_iii(w, f, batches, lr, rho, betas, eps):
    r = m = torch.zeros_like(w)
    u = v = torch.full_like(w, eps**2)
    for batch in batches:
        s = f(w, batch)
        r = betas[0] * r + (1 - betas[0]) * s
        u = betas[1] * u + (1 - betas[1]) * s * s
        g = f(w + rho * r / u.sqrt(), batch)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        w = w - lr * m / v.sqrt()
        yield w
