"""Rows are text, of one kind, and complete; the system prompt stands before all of them."""

import datasets
import pytest
from datasets import Dataset, Features, Image, Value

from fe_posttrain.tasks.files import load_rows
from fe_posttrain.tasks.rows import check_demonstrations, check_prompts, with_system_prompt


def said(*turns: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in turns]


USER, SYSTEM, ANSWER = ("user", "1+1?"), ("system", "Count."), ("assistant", "2")


@pytest.mark.parametrize(
    ("prompts", "kind"),
    [
        (["a", " "], "plain"),
        ([said(USER), said(SYSTEM, USER), said(USER, ANSWER, USER)], "conversational"),
    ],
)
def test_prompts_are_plain_or_conversational(prompts, kind):
    assert check_prompts(Dataset.from_dict({"prompt": prompts})) == kind


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", None, "", "b"], r"prompt: row 2 is missing \(null\), row 3 is empty \(2 of 4 rows, counted from 1\)"),
        ([None, None], r"row 1 is missing .*2 of 2"),
        ([""] * 7, r"row 5 is empty, \.\.\. \(7 of 7 rows"),
        ([3, 4], r"row 1 is a number"),
        ([said(USER), None, []], r"row 2 is missing .*row 3 is empty \(2 of 3"),
        ([said(USER, ANSWER)], r"row 1 ends with a message of role assistant"),
        ([said(("", "x"))], r"row 1 has a message of role ''"),
        ([said(("user", ""))], r"row 1 has a user message without content"),
        ([said(("user", None))], r"row 1 has a user message without content"),
        ([[{"role": "user", "content": [{"type": "image"}]}]], r"content of type image \(only text is supported\)"),
        ([[{"role": "user", "content": [{"type": "text", "text": "x"}]}]], r"in blocks \(write it as one string\)"),
        ([["a", "b"]], r"row 1 has a message without role and content"),
    ],
)
def test_a_bad_prompt_is_named_by_row_before_training(prompts, message):
    with pytest.raises(ValueError, match=message):
        check_prompts(Dataset.from_dict({"prompt": prompts}))


TURNS = '[{"role": "user", "content": "b"}]'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            '{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}\n',
            r"rows\.jsonl line 2: prompt: a list, where rows before it hold text",
        ),
        (
            '{"prompt": [{"role": "user", "content": "b"}]}\n{"prompt": "a"}\n',
            r"line 2: prompt: text, where rows before it hold a list",
        ),
        ('{"prompt": "a"}\n{"question": "b"}\n', r"row 2 is missing \(null\)"),
        ('{"question": "b"}\n', "prompt: no such column; the rows have question"),
        ('{"prompt": [{"role": "user", "content": "b"}]}\n{"prompt": [{"role": "user", "text": "b"}]}\n', "row 2"),
    ],
)
def test_files_with_mixed_or_missing_prompts(tmp_path, lines, message, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=message):
        check_prompts(load_rows(str(tmp_path / "rows.jsonl")))


def test_images_and_sound_are_refused():
    for column in ("image", "images", "videos", "audio"):
        with pytest.raises(ValueError, match=f"{column}: .*only text is supported"):
            check_prompts(Dataset.from_dict({"prompt": ["a"], column: ["x"]}))
    rows = Dataset.from_dict(
        {"prompt": ["a"], "drawing": [None]}, features=Features({"prompt": Value("string"), "drawing": Image()})
    )
    with pytest.raises(ValueError, match=r"drawing: .*only text is supported"):
        check_demonstrations(rows)


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ({"prompt": ["a"], "completion": ["b"]}, "plain"),
        ({"prompt": [said(USER)], "completion": [said(ANSWER)]}, "conversational"),
        ({"messages": [said(SYSTEM, USER, ANSWER)]}, "conversational"),
        ({"text": ["a b"]}, "plain"),
    ],
)
def test_demonstrations_come_in_four_forms(columns, kind):
    assert check_demonstrations(Dataset.from_dict(columns)) == kind


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["a"], "completion": [said(ANSWER)]}, "completion: row 1 is a list"),
        ({"prompt": [said(USER)], "completion": ["b"]}, "completion: row 1 is a plain string and no list"),
        ({"prompt": ["a", "b"], "completion": ["b", None]}, "completion: row 2 is missing"),
        ({"prompt": [said(USER)], "completion": [said(USER)]}, "completion: row 1 ends with a message of role user"),
        ({"messages": [said(USER)]}, "messages: row 1 ends with a message of role user"),
        ({"messages": ["a"]}, "messages: row 1 is a plain string and no list"),
        ({"text": ["a", ""]}, "text: row 2 is empty .*write a non-empty string"),
        ({"prompt": ["a"]}, "columns prompt; a demonstration needs"),
    ],
)
def test_a_bad_demonstration_is_named_by_column_and_row(columns, message):
    with pytest.raises(ValueError, match=message):
        check_demonstrations(Dataset.from_dict(columns))


def test_paired_demonstrations_are_of_the_kind_of_their_prompt_or_absent():
    assert check_prompts(Dataset.from_dict({"prompt": ["a", "b"], "demonstration": ["c", None]})) == "plain"
    rows = {"prompt": [said(USER)] * 2, "demonstration": [None, said(ANSWER)]}
    assert check_prompts(Dataset.from_dict(rows)) == "conversational"
    with pytest.raises(ValueError, match="demonstration: row 1 is a plain string"):
        check_prompts(Dataset.from_dict({"prompt": [said(USER)], "demonstration": ["c"]}))


def test_the_system_prompt_makes_plain_rows_conversations():
    rows = Dataset.from_dict({"prompt": ["a", "b", "c"], "n": [1, 2, 3], "demonstration": ["x", None, "z"]})
    made = with_system_prompt(rows.select([2, 0, 1]), "S")
    assert made.column_names == ["prompt", "n", "demonstration"]
    assert made["prompt"][:] == [said(("system", "S"), ("user", x)) for x in "cab"]
    assert made["demonstration"][:] == [said(("assistant", "z")), said(("assistant", "x")), None]
    assert made["n"][:] == [3, 1, 2] and check_prompts(made) == "conversational"
    demonstrations = with_system_prompt(Dataset.from_dict({"prompt": ["a"], "completion": ["b"]}), "S")
    assert demonstrations.to_list() == [
        {"prompt": said(("system", "S"), ("user", "a")), "completion": said(("assistant", "b"))}
    ]


def test_the_system_prompt_comes_first_in_conversations_and_only_once():
    rows = Dataset.from_dict({"messages": [said(USER, ANSWER)], "n": [1]})
    assert with_system_prompt(rows, "S").to_list() == [{"messages": said(("system", "S"), USER, ANSWER), "n": 1}]
    rows = Dataset.from_dict({"prompt": [said(USER), said(SYSTEM, USER)]})
    with pytest.raises(ValueError, match=r"system_prompt: row 2 has one \(1 of 2 rows"):
        with_system_prompt(rows, "S")
    with pytest.raises(ValueError, match="system_prompt: rows of running text"):
        with_system_prompt(Dataset.from_dict({"text": ["a"]}), "S")
