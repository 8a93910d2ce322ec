"""The outside task: its rewards by hand arithmetic, its splits, and the folder that its script writes."""

import importlib.util
import json
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fe_posttrain.tasks import chain_sum
from fe_posttrain.tasks.pretraining_run import PretrainSettings
from fe_posttrain.training.rewards import find_reward

SCRIPT = Path(__file__).parents[2] / "scripts" / "chain_sum.py"
TINY = PretrainSettings(steps=3, batch_size=8, hidden_size=8, intermediate_size=8, layers=1, heads=2)


@pytest.fixture(scope="module")
def gym():
    pytest.importorskip("reasoning_gym", reason="the outside task needs pip install -e '.[tasks]'")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("chain_sum_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "completion, answer, reward",
    [
        ("2", "2", 1.0),
        ("-12", "-12", 1.0),
        ("+012.0", "12", 1.0),  # the same number
        ("12", "-12", 0.0),
        ("3", "2", 0.0),
        ("", "2", 0.0),
        ("2 2", "2", 0.0),  # the gym gives 1/3 for containing the answer
        ("12-", "12", 0.0),  # and 2/3 here
        ("122", "12", 0.0),
        ([{"role": "assistant", "content": "12"}], "12", 1.0),
        ([{"role": "assistant", "content": "the answer is 12"}], "12", 0.0),
    ],
)
def test_full_marks_of_the_gym_are_1_and_everything_else_is_0(gym, completion, answer, reward):
    assert find_reward("chain_sum")(["?"], [completion], answer=[answer], terms=[2]) == [reward]


def test_answers_are_the_values_of_their_prompts(gym):
    for row in chain_sum.rows("train", 200, seed=0):
        numbers = row["prompt"].removesuffix("=").replace("-", "+-").split("+")
        assert int(row["answer"]) == sum(int(number) for number in numbers)
        assert len(numbers) == row["terms"] in (2, 3)


def test_no_seed_trains_on_what_another_tests_and_no_prompt_comes_twice(gym):
    train, test = (
        [[row["prompt"] for row in chain_sum.rows(split, count, seed)] for seed in (0, 1)]
        for split, count in (("train", 1000), ("test", 200))
    )
    assert train[0] != train[1] and test[0] != test[1]
    assert not {*train[0], *train[1]} & {*test[0], *test[1]}
    assert [len(set(prompts)) for prompts in (*train, *test)] == [1000, 1000, 200, 200]


def test_more_rows_than_there_are_is_an_error_and_not_an_endless_search(gym, monkeypatch):
    monkeypatch.setattr(chain_sum, "PATIENCE", 100)
    with pytest.raises(ValueError, match="test split has"):
        chain_sum.rows("test", 4201, seed=0)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        chain_sum.rows("probe", 1, seed=0)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.arithmetic.chain_sum", None)
    with pytest.raises(ImportError, match=r"pip install -e '.\[tasks\]'"):
        chain_sum.correct(["1+1="], ["2"], answer=["2"])


def test_loss_is_weighted_on_answers_and_end_tokens_alone(gym, script):
    tokens, weights = script.batches(seed=0, rows=32)(0)
    targets = [
        "".join(script.SYMBOLS[token] for token, weight in zip(row[1:], kept, strict=True) if weight)
        for row, kept in zip(tokens.tolist(), weights.tolist(), strict=True)
    ]
    dealt = [row["answer"] + "<eos>" for row in islice(chain_sum.stream("train", seed=0), 32)]
    assert targets == dealt


def test_script_writes_a_whole_folder_that_loads_and_overwrites_nothing(gym, script, tmp_path):
    out = tmp_path / "chain"
    measured = script.build(out, seed=0, settings=TINY, counts=(40, 20), stop=2)
    rows = {s: [json.loads(line) for line in (out / f"{s}.jsonl").read_text().splitlines()] for s in ("train", "test")}
    assert {s: len(found) for s, found in rows.items()} == {"train": 40, "test": 20}
    assert set(rows["train"][0]) == {"prompt", "answer", "terms"}
    assert sum(len(rewards) for rewards in measured.values()) == 20 * script.DRAWS

    model = AutoModelForCausalLM.from_pretrained(out / "reference")
    tokenizer = AutoTokenizer.from_pretrained(out / "reference")
    assert (out / "reference" / "model.safetensors").is_file()
    assert tokenizer.decode(tokenizer("7+4-9=")["input_ids"]) == "7+4-9="
    assert model(torch.tensor([tokenizer("7+4-9=")["input_ids"]])).logits.shape == (1, 6, len(tokenizer))

    assert [path.name for path in tmp_path.iterdir()] == ["chain"]  # no staging folder is left
    with pytest.raises(ValueError, match="not empty"):
        script.build(out, seed=0, settings=TINY)


def test_script_that_fails_leaves_nothing(gym, script, tmp_path, monkeypatch):
    def broken(folder):
        raise OSError("disk full")

    monkeypatch.setattr(script, "build_tokenizer", lambda symbols: type("T", (), {"save_pretrained": broken}))
    monkeypatch.setattr(script, "success", lambda model, rows: {})
    with pytest.raises(OSError, match="disk full"):
        script.build(tmp_path / "chain", seed=0, settings=TINY, counts=(5, 5), stop=1)
    assert list(tmp_path.iterdir()) == []
