"""The table of a comparison: numbers by hand, pairing, and what cannot be compared."""

import json

import pytest
from fake_runs import report, run, told

from fe_posttrain.methods.measured import measured
from fe_posttrain.methods.results import ArmRuns, results


def arm(label: str, *runs, role: str = "method") -> ArmRuns:
    return ArmRuns(label, role, dict(enumerate(runs)))


def compared(*arms: ArmRuns, seeds=(0, 1, 2), match=("generated", "kl")):
    found = results(arms, name="by hand", seeds=seeds, baseline=arms[0].label, match=match)
    json.dumps(found, allow_nan=False)
    return found


def low(hits: list[int], **how):
    return run(report(5, 0.4, hits, screened=[1, 1], **how))


def test_numbers_of_an_arm():
    lows = {"elicited": 3.0, "created": 2.0, "lost": 1.0, "gain": 50.0}
    one = run(report(5, 0.4, [8, 4], screened=[4, 0], lows=lows))
    found = compared(arm("one", one), arm("two", one))
    mean = found["arms"]["one"]["mean"]
    assert (mean["pass_1"], mean["gain"]) == (0.75, 50.0)
    # B is 16 and 8 are drawn: pass@8 is 1 where there is a hit
    assert (found["k"], found["draws"], mean["pass_k"]) == (8, 8, 1.0)
    assert found["reference"] == {"pass_1": 0.25, "pass_k": 0.5}
    assert [mean[f"{term}_low"] for term in ("elicited", "created", "lost")] == [3.0, 2.0, 1.0]
    assert (mean["free_energy"], mean["gap"], mean["kl"]) == (-0.5, 0.1, 0.4)
    # .75 ln(.75/.25) + .25 ln(.25/.75) = .5 ln 3 = .5493 nats of .4: KL was estimated too low
    assert mean["kl_efficiency"] == pytest.approx(0.5493 / 0.4, rel=1e-3)
    # 100 parameters: 6 * 500 + 2 * (1000 + 2000) tokens
    assert mean["flops"] == 100 * 9000
    assert mean["train_seconds"] == 3.5


def test_paired_differences_and_matches():
    mine = arm("mine", low([8, 4]), low([7, 5]), low([8, 4]))
    base = arm("base", low([4, 4]), low([3, 5]), low([4, 4]))
    pair = compared(base, mine)["pairs"]["mine"]
    found = pair["differences"]["pass_1"]
    # +.5 on the first prompt, 0 on the second, in every seed
    assert found["value"] == pytest.approx(0.25)
    assert found["low"] < 0.25 < found["high"] and found["seeds"] == 3
    assert pair["differences"]["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0, "seeds": 3}
    assert pair["generated"]["holds"] and pair["generated"]["why"] == "equal within 2 %"
    # All reach .4 and end there
    assert [pair["kl"][name] for name in ("kl", "arm", "other")] == pytest.approx([0.4, 0.75, 0.5])


def test_share_of_the_baselines_gain_by_hand_and_by_family():
    """Reference 1/8 of both families; the baseline ends at 7/8 and 1/8, the arm at 5/8 and 1/8."""
    how = {"families": ["tail"] * 6 + ["other"] * 2, "screened": [1] * 8, "prompts": tuple("abcdefgh")}
    mine, theirs = (
        [run(report(5, 0.4, [up] * 6 + [1, 1], created={"tail": low}, **how)) for low in lows]
        for up, lows in ((5, (2.0, 3.0, 4.0)), (7, (0.0, 0.0, 0.0)))
    )
    found = compared(arm("base", *theirs), arm("mine", *mine))
    shares = found["pairs"]["mine"]["recovered"]
    # (5/8 - 1/8) / (7/8 - 1/8) = 4/6, over all prompts too: three quarters of each gain
    assert shares["all"]["value"] == pytest.approx(4 / 6)
    assert shares["tail"]["value"] == pytest.approx(4 / 6)
    assert shares["tail"]["low"] < 4 / 6 < shares["tail"]["high"]
    assert shares["other"] is None  # nothing was gained there
    families = found["arms"]["mine"]["families"]
    assert families["tail"]["created_low"] == [2.0, 3.0, 4.0]
    assert families["tail"]["pass_1"] == [0.625] * 3 and families["tail"]["reference"] == [0.125] * 3
    assert families["other"]["pass_1"] == [0.125] * 3 and families["other"]["created_low"] == [0.0] * 3


def test_equal_kl_looks_at_both_where_they_moved_equally_far():
    far = [run(report(1, 0.4, [4, 4], screened=[0, 0]), report(2, 0.8, [8, 8], screened=[0, 0])) for _ in range(3)]
    near = [run(report(1, 0.2, [2, 2], screened=[0, 0])) for _ in range(3)]
    found = compared(arm("near", *near), arm("far", *far))["pairs"]["far"]
    # at .2 the far one is half way from 0 to .5
    assert (found["kl"]["kl"], found["kl"]["other"]) == (0.2, 0.25)
    assert found["kl"]["arm"] == pytest.approx(0.25)
    assert found["differences"]["pass_1"]["value"] == 0.75
    still = [run(report(1, 0.0, [0, 0], screened=[0, 0])) for _ in range(3)]
    found = compared(arm("still", *still), arm("far", *far))["pairs"]["far"]
    assert found["kl"]["why"] == "no common KL" and found["kl"]["difference"] is None


def test_f_of_another_objective_is_not_subtracted():
    other = run(report(5, 0.4, [4, 4]), recipe={"beta": 0.3})
    found = compared(arm("a", low([4, 4])), arm("b", other), seeds=(0,))
    assert found["pairs"]["b"]["differences"]["free_energy"] is None
    assert found["pairs"]["b"]["differences"]["kl"] is not None
    assert any("different weights or beta" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"prompts": ("a", "x")}, "probed on other prompts"),
        ({"key": "other"}, "probed against another reference, decoding or verifier"),
    ],
)
def test_what_was_measured_otherwise_is_not_paired(other, words):
    body = report(5, 0.4, [4, 4], **other)
    body["key"]["reference"] = other.get("key", "ref")
    found = compared(arm("a", low([4, 4])), arm("b", run(body)), seeds=(0,))
    assert found["pairs"]["b"]["problem"] == words and found["pairs"]["b"]["differences"] == {}
    assert any(words in note for note in found["notes"])


def test_what_is_missing_is_told():
    found = compared(arm("a", low([4, 4])), arm("b", low([4, 4]), low([4, 4])), arm("c"))
    assert found["arms"]["c"]["missing"] == [0, 1, 2] and found["arms"]["c"]["mean"] == {}
    assert found["arms"]["b"]["missing"] == [2]
    assert found["pairs"]["b"]["seeds"] == [0] and "c" not in found["pairs"]
    assert "1 common seed: intervals over fewer than 3 seeds are not meaningful." in found["notes"]
    found = compared(arm("a"), arm("b", low([4, 4])))
    assert found["pairs"] == {} and "a, the baseline, has no finished run: no differences." in found["notes"]
    with pytest.raises(ValueError, match="no run is finished"):
        compared(arm("a"), arm("b"))


def test_three_seeds_and_one_budget_need_no_warning():
    three = [low([4, 4], drawn=16) for _ in range(3)]
    assert compared(arm("a", *three), arm("b", *three))["notes"] == []
    other = [low([4, 4], drawn=64, budget=64) for _ in range(3)]
    assert any("different B (16, 64)" in note for note in compared(arm("a", *three), arm("b", *other))["notes"])


def test_only_methods_are_judged():
    one = low([4, 4])
    found = compared(arm("a", one, role="control"), arm("b", one), arm("c", one, role="negative"))
    assert list(found["verdicts"]) == ["b"]


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (lambda t: t.summary.update(support={"off": "OOM"}), "tracking was switched off (OOM)"),
        (lambda t: t.probes.clear(), "no probe round"),
        (lambda t: t.probes[-1]["report"]["points"].pop("screened"), "the reference's counts"),
        (lambda t: t.summary["account"].pop("verifier_calls"), "no account of verifier_calls"),
        (lambda t: t.summary.pop("account"), "no account of demonstrations, forward_tokens"),
    ],
)
def test_a_run_that_lacks_something_is_refused_with_its_folder(spoiled, words):
    one = told(report(1, 0.5, [4]))
    spoiled(one)
    with pytest.raises(ValueError, match="runs/fake: ") as error:
        measured(one)
    assert words in str(error.value)
