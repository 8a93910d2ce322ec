"""Sentences written by hand, for verdicts written by hand."""

import pytest

from fe_posttrain.support.budgets import Key
from fe_posttrain.support.verdict import Term, Verdict
from fe_posttrain.support.words import down, sentence, up

KEY = Key("base", "temperature 1", "exact match", 1024)
RELATIVE = (
    "This is relative to reference base, decoding temperature 1, verifier exact match, B = 1024, delta = 0.05, "
    "alpha = 0.05"
)


def verdict(gain, elicited=(0, 0.4), created=(0, 0.4), lost=(0, 0.4), prompts=128) -> Verdict:
    """Certified terms as (low, high); gain as (value, low, high)."""
    terms = [Term(low, low, high) for low, high in (elicited, created, lost)]
    left = gain[0] - elicited[0] - created[0] + lost[0]
    return Verdict(Term(*gain), terms[0], terms[1], Term(left), terms[2], 1024, 0.05, prompts)


UP, FLAT, DOWN = (41.2, 38.52, 43.96), (-0.04, -2.13, 2.04), (-5.3, -7.5, -3.1)
WRITTEN = {
    "elicited": (
        verdict(UP, elicited=(38.18, 42), created=(0, 2.31), lost=(0, 1.9)),
        "The gain of 41.2 points (38.5 to 44.0) over 128 prompts is consistent with elicitation at B = 1024: at least "
        "38.1 points of it were within the reference's reach, and at most 2.4 points can have been created. No loss "
        "is certified: at most 1.9 points can have been lost; 3.0 points are undetermined.",
    ),
    "elicited, next to nothing created": (
        verdict(UP, elicited=(41.15, 42), created=(0, 0.0)),
        "The gain of 41.2 points (38.5 to 44.0) over 128 prompts is consistent with elicitation at B = 1024: at least "
        "41.1 points of it were within the reference's reach, and less than 0.1 points can have been created. No loss "
        "is certified: at most 0.4 points can have been lost; 0.1 points are undetermined.",
    ),
    "elicited, a little": (
        verdict((3.0, 1.0, 5.0), elicited=(0.047, 5), created=(0, 4), prompts=1),
        "The gain of 3.0 points (1.0 to 5.0) over 1 prompt is consistent with elicitation at B = 1024, though most of "
        "it is undetermined: at least 0.04 points of it were within the reference's reach, and at most 4.0 points can "
        "have been created. No loss is certified: at most 0.4 points can have been lost; 3.0 points are undetermined.",
    ),
    "elicited and lost": (
        verdict((10.0, 8.0, 12.0), elicited=(20, 24), created=(0, 2.3), lost=(9, 14)),
        "The net gain of 10.0 points (8.0 to 12.0) over 128 prompts is consistent with elicitation at B = 1024: at "
        "least 20.0 points of what was gained were within the reference's reach, and at most 2.3 points can have been "
        "created. At least 9.0 points were lost, on prompts that the reference solves more often.",
    ),
    "created": (
        verdict(UP, elicited=(0, 5), created=(36.19, 44)),
        "The gain of 41.2 points (38.5 to 44.0) over 128 prompts goes beyond elicitation at B = 1024: at least 36.1 "
        "points were created, out of reach of 1024 draws of the reference, and no elicitation is certified (at most "
        "5.0 points). No loss is certified: at most 0.4 points can have been lost; 5.0 points are undetermined.",
    ),
    "created and elicited": (
        verdict(UP, elicited=(12.3, 20), created=(20.1, 30)),
        "The gain of 41.2 points (38.5 to 44.0) over 128 prompts goes beyond elicitation at B = 1024: at least 20.1 "
        "points were created, out of reach of 1024 draws of the reference, and at least 12.3 points were within its "
        "reach. No loss is certified: at most 0.4 points can have been lost; 8.8 points are undetermined.",
    ),
    "undetermined": (
        verdict((12.0, 8.0, 16.0), elicited=(0, 30), created=(0, 25), lost=(0, 20)),
        "The gain of 12.0 points (8.0 to 16.0) over 128 prompts is undetermined at B = 1024: nothing of it is "
        "certified as elicited or created; at most 30.0 points can have been elicited, at most 25.0 created. No loss "
        "is certified: at most 20.0 points can have been lost.",
    ),
    "no change": (
        verdict(FLAT, elicited=(0, 3), lost=(0, 3)),
        "The change of +0.0 points (-2.2 to +2.1) over 128 prompts may be chance and comes with no certified "
        "elicitation or creation at B = 1024; at most 3.0 points can have been elicited, at most 0.4 created. No loss "
        "is certified: at most 3.0 points can have been lost.",
    ),
    "gains and losses that balance": (
        verdict(FLAT, elicited=(8.1, 12), lost=(7, 11)),
        "The change of +0.0 points (-2.2 to +2.1) over 128 prompts comes with elicitation at B = 1024: at least 8.1 "
        "points of what was gained were within the reference's reach, and at most 0.4 points can have been created. "
        "At least 7.0 points were lost, on prompts that the reference solves more often.",
    ),
    "a drop": (
        verdict(DOWN, elicited=(0, 1), lost=(2.94, 9)),
        "The drop of 5.3 points (3.1 to 7.5) over 128 prompts comes with no certified elicitation or creation at "
        "B = 1024; at most 1.0 points can have been elicited, at most 0.4 created. At least 2.9 points were lost, on "
        "prompts that the reference solves more often.",
    ),
    "a drop with something new": (
        verdict(DOWN, elicited=(0, 1), created=(4.04, 9), lost=(9.5, 14)),
        "The drop of 5.3 points (3.1 to 7.5) over 128 prompts comes with creation at B = 1024: at least 4.0 points "
        "were created, out of reach of 1024 draws of the reference, and no elicitation is certified (at most 1.0 "
        "points). At least 9.5 points were lost, on prompts that the reference solves more often; 0.2 points are "
        "undetermined.",
    ),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_a_verdict_reads_as_a_careful_person_would_write_it(case):
    found, expected = WRITTEN[case]
    assert sentence(KEY, found) == f"{expected} {RELATIVE}."


@pytest.mark.parametrize("case", WRITTEN)
def test_creation_is_never_denied(case):
    assert "no creation" not in sentence(KEY, WRITTEN[case][0]).lower()


def test_a_failed_bar_check_certifies_nothing():
    checks = {"bar": {"verdict": "failed", "why": "0.31 nats, SE 0.04"}, "closure": {"verdict": "passed"}}
    assert sentence(KEY, verdict(UP, elicited=(38.1, 42)), checks=checks) == (
        "The gain of 41.2 points (38.5 to 44.0) over 128 prompts is not attributed: the BAR check failed (0.31 nats, "
        "SE 0.04), which voids everything that rests on log-weights, so nothing is certified as elicited, created or "
        f"lost. {RELATIVE}; checks: BAR failed, closure passed."
    )


def test_checks_that_were_not_made_are_named_and_void_nothing():
    checks = {"bar": {"verdict": "not checked"}, "guess_floor": {"verdict": "failed"}}
    found = sentence(KEY, verdict(UP, elicited=(38.1, 42)), checks=checks)
    assert "consistent with elicitation" in found
    assert found.endswith("; checks: BAR not checked, guess floor failed.")


def test_too_few_reference_draws_to_certify_creation_are_said():
    weak = verdict(UP, elicited=(20, 42), created=(0, 22))
    said = "(certifying it in full takes about 100 B = 102400 draws of the reference; there were 99)"
    assert said in sentence(KEY, weak, reference_draws=99)
    assert "100 B" not in sentence(KEY, weak, reference_draws=102400)
    assert "100 B" not in sentence(KEY, verdict(UP, elicited=(38, 42), created=(0, 0.01)), reference_draws=99)
    assert "100 B" not in sentence(KEY, verdict(FLAT, created=(0, 9)), reference_draws=99)


@pytest.mark.parametrize(
    ("points", "below", "above"),
    [
        (38.19, "38.1", "38.2"),
        (38.1, "38.1", "38.1"),
        (0.3, "0.3", "0.3"),
        (0.0, "0.0", "0.0"),
        (0.0951, "0.09", "0.1"),
        (0.001, "0.001", "0.1"),
        (-0.04, "-0.1", "0.0"),
        (-2.14, "-2.2", "-2.1"),
    ],
)
def test_rounding_never_claims_more_than_the_number(points, below, above):
    assert (down(points), up(points)) == (below, above)
