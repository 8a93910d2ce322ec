"""GSM8K: rows as published become prompts with a solution; the reward reads the last box as a number."""

import sys
import threading
import time

import pytest

from fe_posttrain.tasks import gsm8k
from fe_posttrain.tasks.rows import check_prompts

# In the published format, written by hand.
PUBLISHED = [
    {
        "question": "Ann has 3 boxes of 6 eggs. How many eggs has she?",
        "answer": "She has 3*6=<<3*6=18>>18 eggs.\n#### 18",
    },
    {
        "question": "A house costs $70,000 and a barn $1,234,567. What do they cost together? ",
        "answer": "Together $70,000+$1,234,567=$<<70000+1234567=1304567>>1,304,567.\n#### 1,304,567",
    },
    {"question": "It is 5 degrees and falls by 8. How cold is it?", "answer": "5-8=<<5-8=-3>>-3\n#### -3"},
]


def test_published_rows_become_prompts_that_ask_for_a_box():
    rows = [gsm8k.row(row) for row in PUBLISHED]
    assert [row["solution"] for row in rows] == ["18", "1304567", "-3"]
    assert [len(row["prompt"]) for row in rows] == [1, 1, 1]
    first = rows[0]["prompt"][0]
    assert first["role"] == "user"
    assert first["content"] == (
        "Ann has 3 boxes of 6 eggs. How many eggs has she?\n\n"
        "Reason step by step, and put the final number in \\boxed{}."
    )


def test_a_row_without_its_mark_is_an_error():
    with pytest.raises(ValueError, match="without ####"):
        gsm8k.row({"question": "?", "answer": "18"})


def test_the_task_is_loaded_by_name_and_names_the_hub_when_that_is_out_of_reach():
    from fe_posttrain.tasks.files import load_rows

    with pytest.raises(ValueError, match=r"openai/gsm8k \(split test, configuration main\).*Hub"):
        load_rows("gsm8k", split="test")


def test_loading_maps_every_published_row(monkeypatch):
    from datasets import Dataset

    asked = {}

    def hub(name, *, config, split):
        asked.update(name=name, config=config, split=split)
        return Dataset.from_list(PUBLISHED)

    monkeypatch.setattr("fe_posttrain.tasks.files.load_rows", hub)
    rows = gsm8k.load("test")
    assert asked == {"name": "openai/gsm8k", "config": "main", "split": "test"}
    assert rows.column_names == ["prompt", "solution"] and rows["solution"][:] == ["18", "1304567", "-3"]
    assert check_prompts(rows) == "conversational"


RIGHT = [
    ("\\boxed{18}", "18"),
    ("3 * 6 is 18, so \\boxed{18}.", "18"),
    ("First \\boxed{3}, then \\boxed{18}", "18"),
    ("\\boxed{18.0}", "18"),
    ("\\boxed{18.00}", "18"),
    ("\\boxed{0.5}", "0.5"),
    ("\\boxed{\\frac{1}{2}}", "0.5"),
    ("\\boxed{\\dfrac{36}{2}}", "18"),
    ("\\boxed{36/2}", "18"),
    ("\\boxed{1,234}", "1234"),
    ("\\boxed{1,304,567}", "1304567"),
    ("\\boxed{\\$18}", "18"),
    ("\\boxed{18\\text{ eggs}}", "18"),
    ("\\boxed{-3}", "-3"),
    ("word " * 20_000 + "\\boxed{18}", "18"),
]
WRONG = [
    ("\\boxed{19}", "18"),
    ("\\boxed{18}, no, \\boxed{19}", "18"),
    ("\\boxed{-18}", "18"),
    ("\\boxed{1.8}", "18"),
    ("\\boxed{1,235}", "1234"),
    ("\\boxed{\\frac{1}{3}}", "0.5"),
    ("the answer is 18", "18"),  # no box
    ("$18$", "18"),
    ("\\boxed{}", "18"),
    ("\\boxed{18", "18"),  # never closed
    ("", "18"),
    ("\\boxed{17, 18}", "18"),
    ("\\boxed{" + "1" * 10_000 + "}", "18"),
    ("\\boxed{" * 10_000, "18"),
    ("((((" * 20_000 + "\\boxed{" + "(" * 40 + "}", "18"),
    ("\\boxed{9^{9^{9^{9}}}}", "18"),  # towers that exact arithmetic would never end
    ("\\boxed{9**9**9**9}", "18"),
    ("\\boxed{999999999!}", "18"),
    ("\\boxed{\\sum_{n=1}^{999999999} n}", "18"),
    ("\\boxed{\\binom{999999999}{499999999}}", "18"),
]


@pytest.mark.parametrize(("right", "pairs"), [(1.0, RIGHT), (0.0, WRONG)], ids=["right", "wrong"])
def test_the_reward_reads_the_last_box_as_a_number(right, pairs):
    pytest.importorskip("math_verify")
    completions, solutions = zip(*pairs, strict=True)
    started = time.process_time()
    scores = gsm8k.correct(completions=list(completions), solution=list(solutions), prompts=[], completion_ids=[])
    assert [text[:60] for text, score in zip(completions, scores, strict=True) if score != right] == []
    assert time.process_time() - started < 10


def test_the_reward_reads_conversations_and_runs_in_a_thread():
    pytest.importorskip("math_verify")
    found = []
    turns = [[{"role": "assistant", "content": f"\\boxed{{{n}}}"}] for n in (18, 19)]
    thread = threading.Thread(target=lambda: found.extend(gsm8k.correct(turns, ["18", "18"])))
    thread.start()
    thread.join()
    assert found == [1.0, 0.0]


def test_without_math_verify_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    gsm8k._math_verify.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"\.\[math\]"):
        gsm8k.correct(["\\boxed{1}"], ["1"])
