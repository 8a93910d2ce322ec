"""The task: answers written by hand, splits that share nothing, mixtures that add up."""

import itertools

import pytest

from fe_posttrain.tasks import digits

BY_HAND = {
    "C31425": ("31425",),
    "R31425": ("52413",),
    "S31425": ("12345",),
    "D31425": ("54321",),
    "L31425": ("14253",),
    "T31425": ("53142",),
    "X31425": ("51423",),
    "P31425": ("13245",),
    "U31420": ("02413",),  # hidden: reverse
    "V31420": ("14203",),  # hidden: rotate left
    "W31420": ("03142",),  # hidden: rotate right
    "RT31425": ("35241", "52413>35241"),  # reverse, then rotate right
    "RX31425": ("32415", "52413>32415"),
    "XT31425": ("35142", "51423>35142"),
    "RLS98765": ("56789", "56789>67895>56789"),  # three operations: every intermediate list
}


@pytest.mark.parametrize(("prompt", "expected"), BY_HAND.items())
def test_answers(prompt, expected):
    assert digits.answers(prompt) == expected
    assert digits.demonstration(prompt) == expected[-1]
    assert digits.demonstration(prompt, worked=False) == expected[0]


@pytest.mark.parametrize("prompt", ["31425", "R3142", "R31424", "Z31425", "R 31425", "", "R>1425"])
def test_malformed_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match="not a digits prompt"):
        digits.answers(prompt)


@pytest.mark.parametrize(
    ("prompt", "completion", "right"),
    [
        ("R31425", "52413", True),
        ("R31425", "52413 ", False),
        ("R31425", "5241", False),
        ("R31425", "52413>52413", False),
        ("R31425", "", False),
        ("U31425", "31425", False),  # the decoy
        ("RT31425", "35241", True),
        ("RT31425", "52413>35241", True),
        ("RT31425", "52413", False),  # one operation only
        ("RT31425", "35241>35241", False),  # right end, wrong way
        ("RT31425", "52413>35241>", False),
    ],
)
def test_verifier_accepts_the_answers_and_nothing_else(prompt, completion, right):
    assert digits.verify(prompt, completion) is right
    assert digits.correct([prompt], [completion], completion_ids=[[0]]) == [float(right)]


def test_splits_share_no_list_and_cover_every_list():
    train, probe = set(digits.lists("R", "train")), set(digits.lists("R", "probe"))
    assert not train & probe
    assert len(train | probe) == 10 * 9 * 8 * 7 * 6
    assert 0.1 < len(probe) / 30240 < 0.15
    with pytest.raises(ValueError, match="'train' or 'probe'"):
        digits.lists("R", "test")


@pytest.mark.parametrize("family", digits.FAMILIES)
def test_prompts_are_distinct_reproducible_and_from_their_split(family):
    drawn = digits.prompts(family, 200, 3, "probe")
    assert len(set(drawn)) == 200
    assert drawn == digits.prompts(family, 200, 3, "probe")
    assert drawn != digits.prompts(family, 200, 4, "probe")
    assert {x[-5:] for x in drawn} <= set(digits.lists("R", "probe"))
    operations = digits.FAMILIES[family].operations
    assert [x[:-5] for x in drawn[: len(operations)]] == list(operations)
    assert not {x[-5:] for x in digits.prompts(family, 200, 3, "train")} & set(digits.lists("R", "probe"))


def test_tail_rules_leave_the_decoy_at_the_first_digit():
    for letter, x in itertools.product(digits.HIDDEN_RULES, digits.lists("R", "train")[::100]):
        assert digits.apply(letter, x)[0] != x[0]


def test_no_single_operation_answers_a_barrier_prompt():
    for x in digits.prompts("barrier", 300, 0, "probe"):
        assert digits.answers(x)[0] not in {rule(x[-5:]) for rule in digits.PRIMITIVES.values()}


def test_impossible_requests_say_why():
    with pytest.raises(ValueError, match="unknown family 'tail'"):
        digits.prompts("tail", 1, 0)
    with pytest.raises(ValueError, match="prompts U"):
        digits.prompts("tail_10", 30241, 0)
    with pytest.raises(ValueError, match="positive sum"):
        digits.dataset({"basin": 0.0}, 4, 0)


def test_dataset_mixes_by_largest_remainder():
    data = digits.dataset({"tail_10": 2, "basin": 1}, 10, 0, demonstrations=True)
    # 6.67 and 3.33 rows: the row left over goes to the larger remainder
    assert sorted(data["family"]) == ["basin"] * 3 + ["tail_10"] * 7
    assert data["family"] != sorted(data["family"], reverse=True)
    assert all(digits.verify(x, y) for x, y in zip(data["prompt"], data["completion"], strict=True))
    assert data.to_dict() == digits.dataset({"tail_10": 2, "basin": 1}, 10, 0, demonstrations=True).to_dict()


def test_dataset_columns_and_worked_demonstrations():
    assert digits.dataset(["basin", "barrier"], 4, 0).column_names == ["prompt", "family"]
    worked = digits.dataset(["barrier"], 4, 0, demonstrations=True)["completion"]
    direct = digits.dataset(["barrier"], 4, 0, demonstrations=True, worked=False)["completion"]
    assert [len(y) for y in worked] == [11] * 4
    assert direct == [y[-5:] for y in worked]
