"""The papers' algorithms as plain loops over one flat vector: what every method is checked against.

``f(w, batch)`` is the mini-batch gradient at ``w``; ``update(w, g)`` is the base's step, and ``update.momentum`` what it
moves against, None before the first. Where the count of steps matters, ``parts`` says how many batches make a step.
Nothing here uses steppe.
"""

from __future__ import annotations

import torch


def sgd(lr, momentum=0.0, weight_decay=0.0):
    def update(w, g):
        g = g + weight_decay * w
        update.momentum = g if update.momentum is None else momentum * update.momentum + g
        return w - lr * update.momentum

    update.momentum = None
    return update


def adamw(lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
    m = v = 0.0
    t = 0

    def update(w, g):
        nonlocal m, v, t
        t += 1
        m = update.momentum = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        step = (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)
        return w - lr * weight_decay * w - lr * step

    update.momentum = None
    return update


def changed(update, change):
    """The step along ``change(g)``."""

    def both(w, g):
        w = update(w, change(g))
        both.momentum = update.momentum
        return w

    both.momentum = update.momentum
    return both


def added_up(update, n):
    """A step along the sum of ``n`` gradients, at the last of them."""
    found = []

    def last(w, g):
        found.append(g)
        if len(found) < n:
            return w
        w = update(w, sum(found))
        last.momentum = update.momentum
        found.clear()
        return w

    last.momentum = update.momentum
    return last


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


def periodic(w, f, batches, update, rho, k, stretched=False, parts=1):
    for i, batch in enumerate(batches):
        g = f(w, batch)
        if i // parts % k == 0:
            g = f(w + (k if stretched else 1) * rho * g / g.norm(), batch)
        w = update(w, g)
        yield w


def msam(w, f, batches, update, rho, eta=None, warmup=0):
    for i, batch in enumerate(batches):
        m, delta = update.momentum, 0.0
        if m is not None and i >= warmup:
            t = 1.0 if eta is None else w.abs() + eta
            delta = -rho * t**2 * m / (t * m).norm()
        w = update(w, f(w + delta, batch))
        yield w


def looksam(w, f, batches, update, rho, k, alpha, parts=1):
    for i, batch in enumerate(batches):
        g = f(w, batch)
        if i // parts % k == 0:
            s = f(w + rho * g / g.norm(), batch)
            v = s - (g @ s) / (g @ g) * g
            w = update(w, s)
        else:
            w = update(w, g + alpha * g.norm() / v.norm() * v)
        yield w


def friendlysam(w, f, batches, update, rho, sigma, decay):
    m = torch.zeros_like(w)
    for batch in batches:
        g = f(w, batch)
        d = g - sigma * m
        m = decay * m + (1 - decay) * g
        w = update(w, f(w + rho * d / d.norm(), batch))
        yield w


def vasso(w, f, batches, update, rho, theta):
    d = torch.zeros_like(w)
    for batch in batches:
        d = (1 - theta) * d + theta * f(w, batch)
        w = update(w, f(w + rho * d / d.norm(), batch))
        yield w


def pgn(w, f, batches, update, rho, alpha):
    for batch in batches:
        g = f(w, batch)
        s = f(w + rho * g / g.norm(), batch)
        w = update(w, (1 - alpha) * g + alpha * s)
        yield w


def unifiedsam(w, f, batches, update, rho, lam, parts=1):
    for i, batch in enumerate(batches):
        t = i // parts + 1
        share = {"1/t": 1 / t, "1-1/t": 1 - 1 / t}.get(lam, lam)
        g = f(w, batch)
        w = update(w, f(w + rho * (1 - share + share / g.norm()) * g, batch))
        yield w


def esam(w, f, batches, update, rho, beta, masks):
    for batch, mask in zip(batches, masks, strict=True):
        g = f(w, batch)
        w = update(w, f(w + rho / beta * mask * g / g.norm(), batch))
        yield w


def aesam(w, f, batches, update, rho, steps, early, late, decay, climbs=None):
    """``climbs`` is told at each step whether it climbs."""
    mean = variance = 0.0
    for t, batch in enumerate(batches):
        g = f(w, batch)
        mean = decay * mean + (1 - decay) * g @ g
        variance = decay * variance + (1 - decay) * (g @ g - mean) ** 2
        steep = g @ g >= mean + (t / steps * late + (1 - t / steps) * early) * variance.sqrt()
        w = update(w, f(w + rho * g / g.norm(), batch) if steep else g)
        if climbs is not None:
            climbs.append(bool(steep))
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


def by_angle(w, f, batches, update, angle, hand_on=lambda g, s: s, radii=None):
    """SAM whose radius follows the angle of clean and sharp gradient; ``radii`` gets it after every step."""
    rho = angle["start"]
    for batch in batches:
        g = f(w, batch)
        s = f(w + rho * g / g.norm(), batch)
        w = update(w, hand_on(g, s))
        cosine = g @ s / (g.norm() * s.norm())
        rho = float(rho * torch.exp(angle["gain"] * (cosine - angle["cosine"])))
        rho = min(max(rho, angle["low"]), angle["high"])
        if radii is not None:
            radii.append(rho)
        yield w
