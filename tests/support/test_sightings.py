"""Sightings: the published table, small examples by hand, the null floor against worlds that do not change."""

from itertools import combinations

import numpy as np
import pytest

from fe_posttrain.support.sightings import Sightings, null_floor, sightings


@pytest.mark.parametrize(
    ("bins", "srr", "ndr", "sds", "nscr"),
    [
        ((1355, 56, 5, 131), ".9603", ".0037", ".0073", "-.0360"),
        ((1045, 107, 31, 674), ".9071", ".0288", ".0558", "-.0642"),
        ((2388, 175, 48, 793), ".9317", ".0197", ".0386", "-.0486"),
        ((2474, 23, 16, 437), ".9908", ".0064", ".0128", "-.0028"),
    ],
)
def test_the_published_table_to_its_last_digit(bins, srr, ndr, sds, nscr):
    found = Sightings(*bins)
    printed = [f"{value:.4f}".replace("0.", ".") for value in (found.srr, found.ndr, found.sds, found.nscr)]
    assert printed == [srr, ndr, sds, nscr]


def test_sds_is_the_harmonic_mean_of_srr_and_ndr():
    found = Sightings(kept=30, shrunk=10, expanded=20, out=5)
    assert (found.srr, found.ndr) == (0.75, 0.4)
    assert found.sds == pytest.approx(2 / (1 / 0.75 + 1 / 0.4))


def test_what_nobody_solved_has_no_rate():
    nobody = Sightings(0, 0, 0, 9)
    assert (nobody.srr, nobody.ndr, nobody.sds, nobody.nscr) == (None, None, None, None)
    swapped = Sightings(0, 3, 2, 4)
    assert (swapped.srr, swapped.ndr, swapped.sds, swapped.nscr) == (0, 1, 0, -0.2)
    only_new = Sightings(0, 0, 2, 4)
    assert (only_new.srr, only_new.ndr, only_new.sds, only_new.nscr) == (None, 1, None, 1)


def test_bins_by_hand():
    found = sightings([2, 1, 0, 0, 8], 8, [1, 0, 3, 0, 8], [8, 8, 16, 8, 8])
    assert found == Sightings(kept=2, shrunk=1, expanded=1, out=1)
    assert type(found.kept) is int


def test_null_floor_by_hand():
    # pooled: one hit among 4 draws, 1 of them the reference's: it is the trained model's with probability 3/4
    floor = null_floor([0], [1], [1], [3])
    assert (floor.expanded, floor.shrunk) == pytest.approx((3 / 4, 1 / 4))
    # two hits among 4, halves of 2: one of the C(4, 2) = 6 halves misses both
    floor = null_floor([1], [2], [1], [2])
    assert (floor.expanded, floor.shrunk) == pytest.approx((1 / 6, 1 / 6))
    # none, and more hits than either side has draws: nothing can be missed
    floor = null_floor([0, 2], [2, 2], [0, 1], [2, 2])
    assert (floor.expanded, floor.shrunk) == pytest.approx((0, 0))


def test_null_floor_is_the_mean_over_every_way_to_share_out_the_pooled_draws():
    correct, drawn = [(1, 2), (0, 1), (2, 0)], [(3, 4), (5, 2), (2, 6)]
    expanded = shrunk = 0.0
    for (c_r, c_t), (n_r, n_t) in zip(correct, drawn, strict=True):
        hits = set(range(c_r + c_t))
        shares = [hits & set(part) for part in combinations(range(n_r + n_t), n_r)]
        expanded += np.mean([len(mine) == 0 for mine in shares])
        shrunk += np.mean([len(mine) == len(hits) for mine in shares])
    (c_r, c_t), (n_r, n_t) = np.transpose(correct), np.transpose(drawn)
    floor = null_floor(c_r, n_r, c_t, n_t)
    assert (floor.expanded, floor.shrunk) == pytest.approx((expanded, shrunk))


def test_null_worlds_sit_on_their_floor():
    rng = np.random.default_rng(0)
    seen, floors = [], []
    for _ in range(300):
        p = rng.beta(0.2, 2, 150)
        drawn = rng.choice([16, 64], 150), np.full(150, 32)
        before, after = (rng.binomial(n, p) for n in drawn)
        found, floor = sightings(before, drawn[0], after, drawn[1]), null_floor(before, drawn[0], after, drawn[1])
        seen.append((found.expanded, found.shrunk))
        floors.append((floor.expanded, floor.shrunk))
    difference = np.array(seen) - floors
    assert np.mean(seen) > 5  # nothing changed, and this many prompts "expand" and "shrink"
    assert (np.abs(difference.mean(0)) <= 4 * difference.std(0) / np.sqrt(300)).all()
    assert (np.abs(difference.mean(0)) < 0.7).all()


@pytest.mark.parametrize("count", [sightings, null_floor])
def test_bad_counts_are_named(count):
    with pytest.raises(ValueError, match="row 1: 5 correct of 4 drawn"):
        count([1, 5], 4, [1, 1], 4)
    with pytest.raises(ValueError, match="row 0: 0 draws of the reference and 4 of the trained model"):
        count([0, 1], [0, 4], [1, 1], 4)
    with pytest.raises(ValueError, match="2 prompts, the reference has 3"):
        count([1, 1, 1], 4, [1, 1], 4)
