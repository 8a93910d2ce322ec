"""The Lambert W function where its argument would overflow: in log space.

W solves W e^W = e^z, that is log W + W = z, for any real z (W is then positive). Source: Corless et al. 1996,
"On the Lambert W function", Advances in Computational Mathematics 5.
"""

import torch
from torch import Tensor

_NEWTON_STEPS = 6  # quadratic from the starts below: the last bits of float64 for every z


def log_lambert_w(z: Tensor) -> Tensor:
    """log W(e^z): the v with v + e^v = z.

    v + e^v is convex and increasing and both starting points lie right of the root, so Newton's method
    descends onto it without a safeguard: z itself for z < 1 (W ~ e^z), log z otherwise (W ~ z - log z).

    Args:
        z: any shape, finite.

    Returns:
        v, same shape, to the precision of the dtype. W itself is v.exp().

    >>> round(float(log_lambert_w(torch.tensor(1.0, dtype=torch.float64)).exp()), 6)  # W(e) = 1
    1.0
    """
    v = torch.where(z < 1, z, z.clamp(min=1).log())
    for _ in range(_NEWTON_STEPS):
        w = v.exp()
        v = v - (v + w - z) / (1 + w)
    return v
