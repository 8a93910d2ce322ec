"""What a person sees of a comparison: the terminal in 80 columns, Markdown, pictures."""

from xml.etree import ElementTree

import pytest
from rich.console import Console

from fe_posttrain.view.arms import interval, markdown, show
from fe_posttrain.view.page.arms import pictures

NUMBERS = {
    "pass_1": 0.5,
    "pass_k": 0.75,
    "gain": 30.0,
    "elicited_low": 21.79,
    "created_low": 0.0,
    "lost_low": 1.29,
    "free_energy": -0.609,
    "gap": None,
    "kl": 1.4302,
    "kl_efficiency": 0.184,
    "generated_tokens": 24_000,
    "verifier_calls": 4_000,
    "gradient_tokens": 12_345,
    "forward_tokens": 9,
    "updates": 24,
    "demonstrations": 0,
    "flops": 2.6e10,
    "train_seconds": 75.0,
}


def arm(role: str, missing: list[int], **changed) -> dict:
    rounds = {"0": [[0, 0.0, 0.25], [8, 0.5, 0.4], [16, 1.5, 0.5]], "1": [[0, 0.0, 0.25], [8, 0.7, 0.6]]}
    return {
        "role": role,
        "seeds": [0, 1],
        "missing": missing,
        "mean": NUMBERS | changed,
        "runs": {},
        "rounds": rounds,
        "families": {
            "tail": {
                "reference": [0.1, 0.1],
                "pass_1": [0.9, 0.8],
                "elicited_low": [9.99, 12.0],
                "created_low": [0.0, 1.0],
                "lost_low": [0.0, 0.0],
            }
        },
    }


def ends(value: float, low: float, high: float) -> dict:
    return {"value": value, "low": low, "high": high, "seeds": 2}


def found() -> dict:
    pair = {
        "recovered": {"all": ends(0.981, 0.9501, 1.0119), "tail": None},
        "problem": None,
        "seeds": [0, 1],
        "differences": {"pass_1": ends(0.021, -0.0031, 0.0442), "kl": ends(1.43, 0.75, 2.1), "gap": None},
        "generated": {
            "holds": False,
            "differences": {"generated_tokens": None, "verifier_calls": -0.375},
            "why": "verifier calls 100 against 160 (-37.5 %)",
        },
        "kl": {"kl": 0.7, "arm": 0.6, "other": 0.55, "difference": ends(0.05, 0.01, 0.09), "why": ""},
    }
    nowhere = {"kl": None, "arm": None, "other": None, "difference": None, "why": "no common KL"}
    conditions = [
        {"name": "creation is certified", "holds": True, "why": "at least 2 points"},
        {"name": "negative controls are silent", "holds": None, "why": "no arm of role negative"},
        {"name": "the ledger [of a seed]", "holds": False, "why": "1 against 2"},
    ]
    trials = [
        {"settings": {"learning_rate": 0.0003}, "pass_1": 0.2, "chosen": False},
        {"settings": {"learning_rate": 0.001}, "pass_1": 0.4, "chosen": True},
    ]
    return {
        "tuning": {"seed": 100, "arms": {"rl": trials}},
        "name": "fair",
        "seeds": [0, 1, 2],
        "baseline": "once",
        "budgets": [1024],
        "draws": 64,
        "k": 64,
        "reference": {"pass_1": 0.25, "pass_k": None},
        "arms": {
            "once": arm("control", []),
            "rl": arm("method", [2], flops=None),
            "[odd]": arm("negative", []),
            "third": arm("base", []),
        },
        "pairs": {
            "rl": pair,
            "[odd]": pair | {"kl": nowhere},
            "third": pair | {"generated": pair["generated"] | {"holds": True}},
            "other": {"problem": "probed on other prompts", "seeds": [0], "differences": {}},
        },
        "verdicts": {"rl": {"conclusion": "undetermined", "budget": [1024], "conditions": conditions}},
        "notes": ["2 common seeds: intervals over fewer than 3 seeds are not meaningful."],
    }


def shown() -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"), force_terminal=False)
    show(console, found())
    return console.export_text()


def test_a_terminal_of_80_columns_shows_every_word():
    text = shown()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines()]
    assert ["(reference)", "25.0", "–"] == next(row for row in rows if row[:1] == ["(reference)"])[:3]
    # certified ends are rounded down: 21.79 is 21.7
    assert ["rl", "method", "2", "of", "3", "50.0", "75.0", "21.7", "0.0", "1.2"] in rows
    assert ["rl", "-0.609", "–", "1.430", "0.18"] in rows
    assert ["once", "24k", "12k", "4.0k", "0", "24", "2.6e+10", "1:15"] in rows
    assert ["rl", "24k", "12k", "4.0k", "0", "24", "–", "1:15"] in rows
    assert ["[odd]", "no", "common", "KL"] in rows
    assert ["rl", "0.700", "60.0", "55.0", "+5.0", "[+1.0,", "+9.0]"] in rows
    assert ["rl", "paid,", "other", "did", "not", "-37.5", "%", "✗", "not", "matched"] in rows
    # means over seeds of pass@1, the least of what is certified
    assert ["rl", "tail", "10.0", "85.0", "9.9", "0.0", "0.0"] in rows
    assert ["all", "98.1", "[95.0,", "101.2]", "98.1", "[95.0,", "101.2]"] in rows
    assert not [row for row in rows if row[:1] == ["tail"]]  # nothing was gained there
    assert ["rl", "learning_rate", "0.0003", "20.0"] in rows
    assert ["rl", "learning_rate", "0.001", "40.0", "✓"] in rows
    assert "Trials of seed 100; the best was taken" in text
    assert "rl: undetermined at B = 1024 (1 of 3 conditions not checked)" in text
    assert "✓ creation is certified: at least 2 points" in text
    assert "? negative controls are silent: no arm of role negative" in text
    assert "✗ the ledger [of a seed]: 1 against 2" in text
    assert "not meaningful" in text


def test_differences_of_what_cannot_be_paired_are_left_out():
    assert "other" not in [word for line in shown().splitlines() for word in line.split()[:1]]


@pytest.mark.parametrize(
    ("one", "scale", "text"),
    [
        (ends(0.021, -0.0031, 0.0442), 100, "+2.1 [-0.4, +4.5]"),  # ends outwards
        (ends(2.0, 1.29, 3.01), 1, "+2.0 [+1.2, +3.1]"),
        (ends(0.0, 0.0, 0.0), 100, "0.0 [0.0, 0.0]"),
        (ends(-0.32, -0.916, 0.2764), None, "-0.320 [-0.916, +0.276]"),
        (ends(-1e-9, -1e-9, 1e-9), None, "0.000 [0.000, 0.000]"),
        (None, 100, "–"),
        (ends(0.021, 0.021, 0.021) | {"seeds": 1}, 100, "+2.1 (one seed)"),
        (ends(-1.5, -1.5, -1.5) | {"seeds": 1}, None, "-1.500 (one seed)"),
    ],
)
def test_intervals_claim_no_more_than_they_know(one, scale, text):
    assert interval(one, scale) == text


def test_markdown_holds_the_same_tables_and_the_pictures():
    text = markdown(found(), {"pass@1 over steps": "figures/steps.svg"})
    assert text.startswith("# fair\n")
    assert "| rl | method | 2 of 3 | 50.0 | 75.0 | 21.7 | 0.0 | 1.2 |" in text
    assert "| pass@1 | +2.1 [-0.4, +4.5] | +2.1 [-0.4, +4.5] | +2.1 [-0.4, +4.5] |" in text
    assert "![pass@1 over steps](figures/steps.svg)" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert len(tables) == 9


def test_pictures_are_files_of_their_own_and_show_the_means():
    drawn = {name: text for name, _, text in pictures(found())}
    assert list(drawn) == ["success_over_kl", "success_over_steps", "differences"]
    for text in drawn.values():
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 1
    titles = [
        node.text for node in ElementTree.fromstring(drawn["success_over_kl"]).iter("{http://www.w3.org/2000/svg}title")
    ]
    # The second seed has two rounds: KL (.5 + .7)/2, success (.4 + .6)/2
    assert titles[:2] == ["once, KL, nats 0: 25", "once, KL, nats 0.6: 50"]
    assert "1 rl, arm 1: 2.1" in drawn["differences"]


def test_nothing_is_drawn_where_nothing_was_measured():
    bare = found() | {"pairs": {}, "arms": {"a": arm("method", [0, 1], **{}) | {"rounds": {}}}}
    assert list(pictures(bare)) == []
