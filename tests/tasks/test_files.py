"""Rows from files, folders and names; what cannot be read is one sentence with file, line and remedy."""

import json
import time

import datasets
import pytest
from datasets import Dataset

from fe_posttrain.tasks.files import load_rows, local_files
from fe_posttrain.tasks.rows import check_prompts, with_system_prompt


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = [{"prompt": "1+1=", "solution": 2}, {"prompt": "2+2=", "solution": 4}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "list.json", "rows.parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if name == "list.json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif name == "rows.parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    else:
        jsonl(path, ROWS)
    assert load_rows(str(path)).to_list() == ROWS
    assert local_files(str(path)) == [path]


def test_a_folder_gives_the_files_that_its_names_assign_to_a_split(tmp_path):
    jsonl(tmp_path / "data" / "train-00000-of-00002.jsonl", ROWS[:1])
    second = jsonl(tmp_path / "data" / "train-00001-of-00002.jsonl", ROWS[1:])
    held = jsonl(tmp_path / "data" / "test.jsonl", [{"prompt": "9"}])
    jsonl(tmp_path / ".cache" / "train.jsonl", [{"prompt": "hidden"}])
    (tmp_path / "README.md").write_text("rows")
    (tmp_path / "train.py").write_text("raise SystemExit('never run')")
    assert load_rows(str(tmp_path)).to_list() == ROWS
    assert load_rows(str(tmp_path), split="test").to_list() == [{"prompt": "9"}]
    assert local_files(str(tmp_path))[1:] == [second] and local_files(str(tmp_path), "test") == [held]
    with pytest.raises(ValueError, match=r"no split validation; .*test\.jsonl.*call one validation\.jsonl"):
        load_rows(str(tmp_path), split="validation")


def test_a_folder_whose_names_say_nothing_is_all_train(tmp_path):
    jsonl(tmp_path / "a.jsonl", ROWS[:1])
    jsonl(tmp_path / "b.jsonl", ROWS[1:])
    assert load_rows(str(tmp_path)).to_list() == ROWS


def test_a_folder_of_two_kinds_or_of_arrow_files_is_refused(tmp_path):
    jsonl(tmp_path / "a.jsonl", ROWS)
    Dataset.from_list(ROWS).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="json and parquet files in split train; keep one kind"):
        load_rows(str(tmp_path))
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"save_to_disk; .*to_parquet"):
        load_rows(str(tmp_path / "saved"))


GOOD = '{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + '{"prompt": "b"\n' + GOOD, r"rows\.jsonl line 2: not JSON \(Expecting ',' delimiter, column 15\)"),
        (GOOD * 3 + '{"prompt": "cut o', r"line 4: not JSON .*write one JSON object a line"),
        (GOOD + "\n" + '{"prompt": NaN x}\n', r"line 3: not JSON"),
        (GOOD + '"b"\n', r'line 2: a str; a row is an object; write \{"prompt"'),
        ('[{"prompt": "a"},\n {"prompt": }]', r"line 2: not JSON .*mend the list"),
        ("", r"rows\.jsonl: empty; .*write rows into it"),
        ("null\n" + GOOD, r"line 1: a NoneType; a row is an object"),
        (GOOD + '{"prompt": 1.5}\n', r"line 2: prompt: a number, where rows before it hold text"),
        ('{"prompt": "a", "n": 12345678901234567891}\n', r"line 1: n: an integer beyond 64 bits; write it as text"),
        (GOOD.encode() + '{"prompt": "é"}\n'.encode("latin-1"), r"line 2: not UTF-8; .*save the file as UTF-8"),
    ],
)
def test_what_is_no_json_is_named_by_file_and_line(tmp_path, content, message, capfd):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        load_rows(str(path))
    assert "Failed to load" not in capfd.readouterr().err


def test_text_stays_text_and_late_keys_are_kept_whatever_the_size_of_the_file(tmp_path):
    path, count = tmp_path / "rows.jsonl", 60_000
    lines = [json.dumps({"prompt": "x" * 200, "answer": "2024-01-01", "n": i}) for i in range(count)]
    path.write_text("\n".join([*lines, json.dumps({"prompt": "y", "n": 0.5, "late": {"a": 1}})]) + "\n")
    rows = load_rows(str(path))
    assert rows[0] == {"prompt": "x" * 200, "answer": "2024-01-01", "n": 0.0, "late": None}
    assert rows[count] == {"prompt": "y", "answer": None, "n": 0.5, "late": {"a": 1}}


def test_a_split_is_found_wherever_it_stands_in_a_name(tmp_path):
    for name in ("math_train", "math_test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    assert load_rows(str(tmp_path))["prompt"] == ["math_train"]
    assert load_rows(str(tmp_path), split="test")["prompt"] == ["math_test"]


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_text("PAR")
    with pytest.raises(ValueError, match=r"rows\.parquet: cannot be read; "):
        load_rows(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("missing.jsonl", {}, "no such file; .*write the path"),
        ("rows.jsonl", {"split": "test"}, "no split test; one file is all train; .*test.jsonl"),
        ("rows.jsonl", {"config": "main"}, "configuration 'main'; only datasets of the Hub have one"),
        ("rows.csv", {}, "a file of another kind; .*convert it"),
    ],
)
def test_names_and_splits_that_are_not_there(tmp_path, name, options, message):
    jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "rows.csv").write_text("prompt\na\n")
    with pytest.raises(ValueError, match=message):
        load_rows(str(tmp_path / name), **options)


def test_a_hub_name_out_of_reach_says_so():
    with pytest.raises(ValueError, match=r"owner/rows \(split train\): no file, .*the Hub says: .*Couldn't reach"):
        load_rows("owner/rows")
    with pytest.raises(ValueError, match="neither a file, a folder nor a Hub name"):
        load_rows("what is this")


def test_rows_are_read_and_checked_column_wise(tmp_path):
    with (tmp_path / "rows.jsonl").open("w") as file:
        file.writelines(f'{{"prompt": "{i}+{i}="}}\n' for i in range(200_000))
    started = time.process_time()
    rows = load_rows(str(tmp_path / "rows.jsonl"))
    check_prompts(rows)
    rows = with_system_prompt(rows, "be brief")
    assert time.process_time() - started < 5  # 0.4 s on two old cores; a Python object per row takes longer
    assert len(rows) == 200_000 and rows[199_999]["prompt"][1]["content"] == "199999+199999="


def test_a_file_that_was_changed_is_read_again(tmp_path):
    for word in ("old", "new"):
        path = jsonl(tmp_path / "rows.jsonl", [{"prompt": word}])
        assert load_rows(str(path))["prompt"][:] == [word]
