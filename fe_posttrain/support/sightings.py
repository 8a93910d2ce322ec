from dataclasses import dataclass

import numpy as np

from fe_posttrain.support.intervals import pass_at_k


@dataclass(frozen=True)
class Sightings:
    kept: int
    shrunk: int
    expanded: int
    out: int
    srr = property(lambda s: s.kept / (s.kept + s.shrunk) if s.kept + s.shrunk else None)
    ndr = property(lambda s: s.expanded / (s.kept + s.expanded) if s.kept + s.expanded else None)
    sds = property(
        lambda s: (
            2 * s.kept * s.expanded / (s.kept**2 + 2 * s.kept * s.expanded + s.expanded * s.shrunk) if s.kept else None
        )
    )
    nscr = property(lambda s: (s.expanded - s.shrunk) / (s.kept + s.expanded + s.shrunk) if s.kept else None)


def sightings(a, n, b, m):
    a = np.asarray(a) > 0
    b = np.asarray(b) > 0
    return Sightings(int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum()))


def null_floor(a, n, b, m):
    c = np.asarray(a) + b
    t = n + m
    return (pass_at_k(c, t, t) - pass_at_k(c, t, n)).sum(), (pass_at_k(c, t, t) - pass_at_k(c, t, m)).sum()
