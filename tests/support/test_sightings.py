"""Published tables to their last printed digit; the null floor by hand and by simulation."""

import numpy as np
import pytest

from fe_posttrain.support.sightings import Sightings, null_floor, sightings

# The Invisible Leash (arXiv 2507.14843): kept, lost, gained, out, and SRR, NDR, SDS, NSCR as printed
PUBLISHED = [
    ((1355, 56, 5, 131), (0.9603, 0.0037, 0.0073, -0.0360)),
    ((1045, 107, 31, 674), (0.9071, 0.0288, 0.0558, -0.0642)),
    ((2388, 175, 48, 793), (0.9317, 0.0197, 0.0386, -0.0486)),
    ((2474, 23, 16, 437), (0.9908, 0.0064, 0.0128, -0.0028)),
]


@pytest.mark.parametrize(("bins", "printed"), PUBLISHED)
def test_published_tables_are_reproduced(bins, printed):
    found = Sightings(*bins)
    assert [round(x, 4) for x in (found.srr, found.ndr, found.sds, found.nscr)] == list(printed)


def test_prompts_are_sorted_by_who_saw_them():
    found = sightings([1, 3, 0, 0], 4, [2, 0, 1, 0], 4)
    assert found == Sightings(1, 1, 1, 1)
    nothing = Sightings(0, 0, 0, 5)
    assert (nothing.srr, nothing.ndr, nothing.sds, nothing.nscr) == (None, None, None, None)
    with pytest.raises(ValueError, match="row 0"):
        sightings([9], 4, [1], 4)


def test_the_null_floor_by_hand():
    # One prompt, one hit among 1 + 1 draws: with a fair coin it fell to the trained side (expanded) or the reference's.
    assert null_floor([1], 1, [0], 1) == pytest.approx((0.5, 0.5))
    # One hit among 1 + 3 draws: it was the reference's single draw one time in four.
    assert null_floor([0], 1, [1], 3) == pytest.approx((0.75, 0.25))


def test_the_null_floor_is_what_a_world_without_change_shows():
    rng = np.random.default_rng(0)
    p = np.repeat([0.002, 0.02, 0.3], 100)
    differences = []
    for _ in range(200):
        before, after = rng.binomial(128, p), rng.binomial(64, p)
        seen, (expanded, shrunk) = sightings(before, 128, after, 64), null_floor(before, 128, after, 64)
        differences.append((seen.expanded - expanded, seen.shrunk - shrunk))
    error = np.std(differences, axis=0) / np.sqrt(200)
    assert (np.abs(np.mean(differences, axis=0)) < 3 * error).all()
