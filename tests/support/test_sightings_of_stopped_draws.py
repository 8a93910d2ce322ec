"""Sightings come from draws of a fixed number, not from draws that were stopped by what they showed."""

import numpy as np
import pytest

from fe_posttrain.support.budgets import Key
from fe_posttrain.support.counts import Counts
from fe_posttrain.support.report import report
from fe_posttrain.support.verdict import verdict_of_counts

NAMES = ("a", "b", "c", "d")
STOPPED = Counts(NAMES, np.array([3, 0, 5, 1]), np.array([512, 512, 64, 80]), ("x", "x", "y", "y"), "reference")
SCREENED = Counts(NAMES, np.array([0, 0, 5, 1]), np.full(4, 64), ("x", "x", "y", "y"), "reference")
TRAINED = Counts(NAMES, np.array([64, 1, 60, 0]), np.full(4, 64), ("x", "x", "y", "y"), "trained")


def made() -> dict:
    sides = [(side.correct, side.drawn) for side in (STOPPED, TRAINED)]
    calls = {side: np.full(4, "undetermined", dtype=object) for side in ("reference", "trained")}
    families = {
        name: verdict_of_counts(*[(c[rows], n[rows]) for c, n in sides], budget=64)
        for name, rows in STOPPED.families().items()
    }
    verdict = verdict_of_counts(*sides, budget=64)
    key = Key("r", "d", "v", 64)
    return report(key, STOPPED, TRAINED, verdict, calls, families=families, screened=SCREENED)


def test_prompts_are_sorted_by_the_screened_draws():
    assert made()["sightings"] == {"kept": 1, "shrunk": 1, "expanded": 2, "out": 0}


def test_the_null_floor_is_of_the_screened_draws():
    # 64, 1, 65 and 1 hits of 128: half of the draws miss a single hit one time in two, 64 hits and more never
    assert made()["null_floor"] == pytest.approx({"expanded": 1.0, "shrunk": 1.0})


def test_a_family_has_the_screened_draws_of_its_own_prompts():
    assert made()["families"]["x"]["sightings"] == {"kept": 0, "shrunk": 0, "expanded": 2, "out": 0}


def test_all_reference_draws_are_reported_as_drawn():
    assert made()["draws"]["reference"] == {"total": 1168, "least": 64, "most": 512}
