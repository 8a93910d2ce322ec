import io

import pytest
from rich.console import Console

from fe_posttrain.view.support import show


def term(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def a_report(**changes):
    calls = {"basin": 100, "tail": 10, "barrier": 0, "out": 8, "singular": 0, "undetermined": 10}
    return {
        "sentence": "The gain of 41.2 points [over 128 prompts] is consistent with elicitation.",
        "key": {"reference": "base", "budget": 1024},
        "prompts": 128,
        "draws": {
            "reference": {"total": 9000, "least": 16, "most": 4096},
            "trained": {"total": 8192, "least": 64, "most": 64},
        },
        "verdict": {
            "gain": term(41.21, 38.52, 43.96),
            "elicited": term(38.19, 38.19, 41.91),
            "created": term(0.0, 0.0, 2.31),
            "undetermined": term(3.02),
            "lost": term(0.0, 0.0, 1.99),
        },
        "calls": {"reference": calls, "trained": calls},
        "attribution": [{"budget": 4**i, "share": 0.1 * i} for i in range(1, 7)],
        "b50": 271,
        "b50_above": None,
        "sightings": {"kept": 90, "shrunk": 1, "expanded": 20, "out": 17},
        "null_floor": {"expanded": 3.21, "shrunk": 1.14},
        "srr": 0.989,
        "ndr": 0.182,
        "sds": None,
        "nscr": 0.171,
        "checks": {},
        "families": {},
    } | changes


def shown(report, width=80) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(console, report)
    return console.file.getvalue()


def row(text, start) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.strip().startswith(start))


def test_certified_numbers_are_rounded_towards_caution():
    text = shown(a_report())
    assert row(text, "gain")[1:4] == ["41.2", "38.5", "44.0"]
    assert row(text, "elicited")[1:4] == ["38.1", "38.1", "42.0"]
    assert row(text, "created")[1:4] == ["0.0", "0.0", "2.4"]
    assert row(text, "undetermined")[1] == "3.0"
    assert row(text, "lost")[1:4] == ["0.0", "0.0", "2.0"]


def test_the_rest_is_shown_and_the_sentence_is_last():
    text = shown(a_report(), width=120)
    assert row(text, "reference") == ["reference", "100", "10", "0", "8", "0", "10"]
    assert row(text, "share") == ["share", "0.10", "0.20", "0.30", "0.40", "0.50", "0.60", "271"]
    assert row(text, "seen") == ["seen", "90", "1", "20", "17"]
    assert row(text, "by chance") == ["by", "chance", "1.1", "3.2"]
    assert row(text, "SRR") == ["SRR", "0.99", "NDR", "0.18", "SDS", "-", "NSCR", "0.17"]
    assert "16 to 4096 of the reference; 64 of the trained" in text
    assert text.rstrip().endswith("[over 128 prompts] is consistent with elicitation.")


def test_half_gain_budgets_without_a_number():
    assert row(shown(a_report(b50=None, b50_above=4**10)), "share")[-2:] == [">", "1048576"]
    empty = [{"budget": 4, "share": None}]
    assert row(shown(a_report(b50=None, attribution=empty)), "share") == ["share", "-", "-"]


def test_families_and_checks_have_lines_of_their_own():
    void = a_report()["verdict"] | {"elicited": term(0.0, 0.0, None)}
    checks = {"bar": {"verdict": "failed", "why": "0.31 nats"}, "guess_floor": {"verdict": "not checked"}}
    text = shown(a_report(families={"a [b]": a_report(), "c": a_report(verdict=void)}, checks=checks))
    assert row(text, "a [b]") == ["a", "[b]", "128", "41.2", "38.1", "0.0", "3.0", "0.0"]
    assert row(text, "c ")[:4] == ["c", "128", "41.2", "0.0"]
    assert "check bar failed: 0.31 nats" in text
    assert "check guess_floor not checked" in text


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off(width):
    text = shown(a_report(families={"arithmetic": a_report()}), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
