"""The report of counts; expectations derived by hand."""

import json

import numpy as np
import pytest

from fe_posttrain.support.budgets import Key
from fe_posttrain.support.counts import Counts
from fe_posttrain.support.report import report, report_of_counts

TERMS = ("gain", "elicited", "created", "undetermined", "lost")
NAMES = {"sentence", "key", "prompts", "draws", "verdict", "calls", "attribution", "b50", "b50_above", "sightings"}
NAMES |= {"null_floor", "srr", "ndr", "sds", "nscr", "population", "checks", "families", "points"}


def key(budget=64) -> Key:
    return Key("base", "temperature 1", "exact match", budget)


def counts(correct, drawn, tags=None) -> Counts:
    drawn = np.broadcast_to(drawn, np.shape(correct))
    return Counts(tuple(f"prompt {i}" for i in range(len(drawn))), correct, drawn, tags)


@pytest.fixture(scope="module")
def created():
    """40 prompts that the reference never solves in 1024 draws and the trained model always in 256."""
    return report_of_counts(key(), counts([0] * 40, 1024), counts([256] * 40, 256))


def test_every_name_is_there_and_it_is_json(created):
    assert set(created) == NAMES
    assert set(created["verdict"]) == set(TERMS)
    assert all(set(term) == {"value", "low", "high"} for term in created["verdict"].values())
    assert json.loads(json.dumps(created, allow_nan=False)) == created
    assert created["key"] == {
        "reference": "base",
        "decoding": "temperature 1",
        "verifier": "exact match",
        "budget": 64,
        "delta": 0.05,
        "alpha": 0.05,
    }
    assert created["prompts"] == 40
    assert created["draws"]["trained"] == {"total": 10240, "least": 256, "most": 256}
    assert created["families"] == {} and created["checks"] == {}


def test_points_hold_each_prompt_in_one_order_and_family():
    found = report_of_counts(key(), counts([0, 30], 64, ("a", None)), counts([64, 1], 64, ("a", None)))["points"]
    assert found["prompt"] == ["prompt 0", "prompt 1"] and found["family"] == ["a", None]
    assert found["correct"] == {"reference": [0, 30], "trained": [64, 1]}
    assert found["drawn"] == {"reference": [64, 64], "trained": [64, 64]}
    # 30 of 64 and 64 of 64 are surely beyond .1; none of 64 tells nothing at B = 64, nor does one
    assert found["regime"] == {"reference": ["undetermined", "basin"], "trained": ["basin", "undetermined"]}


def test_what_was_never_seen_before_is_certified_as_created(created):
    # All prompts enter; L = a^(1/5120) from 40 x 128 hits of as many, 1-U = a^(1/20480) from 40 x 512 draws without
    # one, a = .05/12. So created.low = L - (1 - (1-U)^64) = a^(1/5120) - 1 + a^(64/20480).
    a = 0.05 / 12
    expected = 100 * (a ** (1 / 5120) - 1 + a ** (64 / 20480))
    assert created["verdict"]["created"]["low"] == pytest.approx(expected, abs=1e-6)
    assert created["verdict"]["gain"]["value"] == 100.0
    assert created["verdict"]["elicited"]["low"] == created["verdict"]["lost"]["low"] == 0.0
    assert f"at least {np.floor(10 * expected) / 10} points were created" in created["sentence"]
    assert created["calls"]["reference"]["out"] == created["calls"]["trained"]["basin"] == 40
    assert [row["share"] for row in created["attribution"]] == [0.0] * 6
    assert (created["b50"], created["b50_above"]) == (None, 4**10)


def test_attribution_is_that_of_the_plain_shares_and_the_budget_joins_the_ladder():
    # From 1/2 to 1: B draws reach 1 - 2^-B, so A(B) = 1 - 2^(1-B); A(1) = 0, A(2) = 1/2.
    found = report_of_counts(key(3), counts([50] * 4, 100), counts([100] * 4, 100))
    assert [row["budget"] for row in found["attribution"]] == [3, 4, 16, 64, 256, 1024, 4096]
    assert [row["share"] for row in found["attribution"][:2]] == pytest.approx([0.75, 0.875])
    assert (found["b50"], found["b50_above"]) == (2, None)


def test_without_a_gain_shares_are_null():
    same = counts([3, 5], 16)
    found = report_of_counts(key(), same, same)
    assert all(row["share"] is None for row in found["attribution"])
    assert (found["b50"], found["b50_above"]) == (None, None)


def test_sightings_and_their_null_floor():
    # Seen by both, by the reference only, by the trained only, by neither; 2 draws against 4.
    found = report_of_counts(key(), counts([1, 1, 0, 0], 2), counts([1, 0, 1, 0], 4))
    assert found["sightings"] == {"kept": 1, "shrunk": 1, "expanded": 1, "out": 1}
    assert (found["srr"], found["ndr"], found["sds"], found["nscr"]) == (1 / 2, 1 / 2, 1 / 2, 0.0)
    # Pooled: c hits of 6. 2 of 6 are missed by 2 draws with C(4,2)/C(6,2) = 6/15, by 4 with C(4,4)/C(6,4) = 1/15;
    # 1 of 6 with 4/6 and 2/6. Expanded: 6/15 + 2 x 4/6; shrunk: 1/15 + 2 x 2/6.
    assert found["null_floor"]["expanded"] == pytest.approx(6 / 15 + 8 / 6)
    assert found["null_floor"]["shrunk"] == pytest.approx(1 / 15 + 4 / 6)


def test_ratios_of_nothing_are_null():
    found = report_of_counts(key(), counts([0, 0], 8), counts([0, 0], 8))
    assert (found["srr"], found["ndr"], found["sds"], found["nscr"]) == (None, None, None, None)
    assert found["verdict"]["gain"]["value"] == 0.0


def test_unequal_draws_are_thinned_out_for_the_sightings():
    reference = counts([10, 0, 1000], [10, 12, 1000])
    trained = counts([0, 64, 64], [64, 64, 65])
    found = report_of_counts(key(), reference, trained)
    assert found["sightings"] == {"kept": 1, "shrunk": 1, "expanded": 1, "out": 0}
    assert found["draws"]["reference"] == {"total": 1022, "least": 10, "most": 1000}


def test_the_terms_add_up_and_a_family_is_its_own_verdict():
    rng = np.random.default_rng(3)
    p = np.repeat([0.2, 0.02, 0.0], 20)
    tags = tuple(np.repeat(["basin", "tail", "barrier"], 20))
    reference = counts(rng.binomial(512, p), 512, tags)
    trained = counts(rng.binomial(128, np.repeat([0.9, 0.8, 0.05], 20)), 128, tags)
    found = report_of_counts(key(), reference, trained)
    assert list(found["families"]) == ["basin", "tail", "barrier"]
    for part in (found, *found["families"].values()):
        gain, elicited, created, undetermined, lost = (part["verdict"][name]["value"] for name in TERMS)
        assert gain == pytest.approx(elicited + created + undetermined - lost)
    basin = report_of_counts(key(), reference.picked(range(20)), trained.picked(range(20)))
    assert basin["families"]["basin"]["verdict"] == basin["verdict"] == found["families"]["basin"]["verdict"]
    assert set(found["families"]["tail"]) == NAMES - {"families", "points"}
    assert "over 20 prompts" in found["families"]["tail"]["sentence"]
    for side in ("reference", "trained"):
        parts = [part["calls"][side] for part in found["families"].values()]
        assert {name: sum(part[name] for part in parts) for name in parts[0]} == found["calls"][side]


def test_order_and_seed_are_those_of_the_reference():
    reference, trained = counts([3, 0, 90, 7], 100), counts([90, 80, 95, 7], 100)
    turned = trained.picked([2, 0, 3, 1])
    assert report_of_counts(key(), reference, turned, seed=5) == report_of_counts(key(), reference, trained, seed=5)


def _verdict_and_calls(reference, trained):
    from fe_posttrain.support.verdict import verdict_of_counts

    found = verdict_of_counts((reference.correct, reference.drawn), (trained.correct, trained.drawn), budget=64)
    names = np.array(["tail"] * reference.prompts, dtype=object)
    return found, {"reference": names, "trained": names}


def test_a_failed_bar_check_voids_the_terms_and_others_do_not():
    reference, trained = counts([30] * 40, 100, ("only",) * 40), counts([90] * 40, 100)
    trained = Counts(trained.prompt_ids, trained.correct, trained.drawn, reference.tags)
    found, calls = _verdict_and_calls(reference, trained)
    assert found.elicited.low > 50
    checks = {"bar": {"verdict": "failed", "df": 0.31}}
    void = report(key(), reference, trained, found, calls, checks=checks, families={"only": found})
    nothing = {"value": 0.0, "low": 0.0, "high": None}
    for part in (void, void["families"]["only"]):
        assert part["verdict"]["elicited"] == part["verdict"]["created"] == part["verdict"]["lost"] == nothing
        assert part["verdict"]["undetermined"]["value"] == part["verdict"]["gain"]["value"] == 60.0
        assert "nothing is certified" in part["sentence"]
        assert part["checks"] == checks
    checks = {"bar": {"verdict": "not checked"}, "closure": {"verdict": "failed"}}
    kept = report(key(), reference, trained, found, calls, checks=checks)
    assert kept["verdict"]["elicited"]["low"] == found.elicited.low
    assert kept["families"] == {}


def test_what_does_not_belong_together_is_refused():
    reference, trained = counts([30, 1], 100), counts([90, 2], 100)
    found, calls = _verdict_and_calls(reference, trained)
    with pytest.raises(ValueError, match="another order"):
        report(key(), reference, trained.picked([1, 0]), found, calls)
    with pytest.raises(ValueError, match=r"B = 16 .* verdict at B = 64"):
        report(key(16), reference, trained, found, calls)
    with pytest.raises(ValueError, match="1 prompts"):
        report(key(), reference.picked([0]), trained.picked([0]), found, calls)
    with pytest.raises(ValueError, match="budget"):
        report_of_counts(key(0), reference, trained)
