"""What a recipe's data keys give a trainer: files, tasks, the testbed; prompts, demonstrations, evaluation."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from fe_posttrain.recipe.data import load
from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining import reference_model
from fe_posttrain.tasks.tokenizer import build_tokenizer
from fe_posttrain.training.config import FreeEnergyConfig

QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "max_completion_length": 12}
QUIET |= {"num_generations": 2, "per_device_train_batch_size": 2}  # one prompt is enough
SFT = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}
PROMPTS = [{"prompt": "R12345", "goal": "54321"}, {"prompt": "S31425", "goal": "12345"}]
DEMOS = [{"prompt": "R12345", "completion": "54321"}, {"prompt": "S31425", "completion": "12345"}]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model_path() -> str:
    return str(reference_model())  # a context of 64 tokens


def config(**settings) -> FreeEnergyConfig:
    return FreeEnergyConfig("unused", **{**QUIET, **settings})


def jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tokenizer(template: str | None = None):
    made = build_tokenizer()
    made.chat_template = template
    return made


def test_prompts_from_a_file_keep_their_columns(tmp_path, model_path):
    file = jsonl(tmp_path / "p.jsonl", PROMPTS)
    data = load(RunSettings(dataset_name=file), config(), tokenizer(), model_path)
    assert data.prompts.to_list() == PROMPTS and data.demonstrations is None and data.evaluation is None
    assert data.files == (tmp_path / "p.jsonl",) and data.report == [] and data.example == "R12345"
    assert data.fits["prompts"].tokens == [6, 6] and data.fits["prompts"].limit == 64 - 12


def test_a_mixture_reads_demonstrations_of_their_own(tmp_path, model_path):
    settings = RunSettings(
        dataset_name=jsonl(tmp_path / "p.jsonl", PROMPTS),
        demonstration_dataset_name=jsonl(tmp_path / "d.jsonl", DEMOS),
    )
    data = load(settings, config(demonstration_energy_weight=0.5), tokenizer(), model_path)
    assert data.prompts.to_list() == PROMPTS and data.demonstrations.to_list() == DEMOS
    assert data.files == (tmp_path / "p.jsonl", tmp_path / "d.jsonl")
    assert data.fits["demonstrations"].tokens == [12, 12] and data.fits["demonstrations"].trained == 12


def test_pure_sft_reads_demonstrations_from_dataset_name_as_sft_users_expect(tmp_path, model_path):
    for rows in (DEMOS, [{"text": "R1234554321"}] * 2, [{"prompt": "R1", "demonstration": "1"}] * 2):
        settings = RunSettings(dataset_name=jsonl(tmp_path / "d.jsonl", rows))
        data = load(settings, config(**SFT), tokenizer(), model_path)
        assert data.prompts is None and len(data.demonstrations) == 2
    assert data.demonstrations[0] == {"prompt": "R1", "completion": "1"}


def test_columns_that_sft_would_misread_are_left_out(tmp_path, model_path):
    messages = [{"role": "user", "content": "R1"}, {"role": "assistant", "content": "1"}]
    rows = [{"prompt": "R1", "messages": messages, "input_ids": [5], "id": n} for n in range(2)]
    settings = RunSettings(dataset_name=jsonl(tmp_path / "d.jsonl", rows))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    data = load(settings, config(**SFT), tokenizer(template), model_path)
    assert data.demonstrations.to_list() == [{"messages": messages}] * 2
    assert data.fits["demonstrations"].tokens == [3, 3] and data.example == messages[:1]


def test_rows_keep_their_numbers_when_others_are_dropped(tmp_path, model_path):
    rows = [
        {"prompt": "R" * n, "demonstration": answer} for n, answer in ((60, "1"), (2, None), (2, "1" * 70), (2, "1"))
    ]
    settings = RunSettings(dataset_name=jsonl(tmp_path / "p.jsonl", rows))
    settings.overlong_prompts = settings.overlong_demonstrations = "drop"
    data = load(settings, config(demonstration_energy_weight=1.0), tokenizer(), model_path)
    assert data.report == [
        "1 of 4 prompts dropped: longer than 52 tokens (row 1)",
        "1 of 2 demonstrations dropped: longer than 64 tokens (row 3)",
    ]
    assert data.prompts["demonstration"][:] == [None, None, "1"]
    data = load(settings, config(**SFT), tokenizer(), model_path)  # 60 + 1 + 1 tokens fit
    assert data.report == ["1 of 3 demonstrations dropped: longer than 64 tokens (row 3)"]
    assert len(data.demonstrations) == 2


def test_fewer_prompts_than_a_generation_batch_are_an_error(tmp_path, model_path):
    settings = RunSettings(dataset_name=jsonl(tmp_path / "p.jsonl", PROMPTS))
    with pytest.raises(RecipeError, match="dataset_name: 2 prompts; one generation batch takes 3"):
        load(settings, config(per_device_train_batch_size=6), tokenizer(), model_path)


def test_evaluation_is_a_split_or_a_dataset_of_its_own(tmp_path, model_path):
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder" / "train.jsonl", PROMPTS)
    jsonl(tmp_path / "folder" / "test.jsonl", PROMPTS[1:])
    evaluated = config(eval_strategy="steps", eval_steps=1, num_generations_eval=1)
    settings = RunSettings(dataset_name=str(tmp_path / "folder"), dataset_test_split="test")
    assert load(settings, evaluated, tokenizer(), model_path).evaluation.to_list() == PROMPTS[1:]
    own = jsonl(tmp_path / "e.jsonl", PROMPTS[:1])
    settings = RunSettings(dataset_name=str(tmp_path / "folder" / "train.jsonl"), eval_dataset_name=own)
    data = load(settings, evaluated, tokenizer(), model_path)
    assert data.evaluation.to_list() == PROMPTS[:1] and data.files[-1] == Path(own)
    # Pure SFT evaluates demonstrations, unless a reward asks for rollouts.
    sft = config(**SFT, eval_strategy="steps", eval_steps=1)
    demos = jsonl(tmp_path / "d.jsonl", DEMOS)
    settings = RunSettings(dataset_name=demos, eval_dataset_name=demos)
    assert load(settings, sft, tokenizer(), model_path).evaluation.to_list() == DEMOS
    settings = RunSettings(dataset_name=demos, eval_dataset_name=own, reward_funcs=["digits"])
    assert load(settings, sft, tokenizer(), model_path).evaluation.to_list() == PROMPTS[:1]


def test_a_system_prompt_makes_conversations_that_need_a_template(tmp_path, model_path):
    settings = RunSettings(dataset_name=jsonl(tmp_path / "p.jsonl", PROMPTS), system_prompt="R")
    with pytest.raises(ValueError, match="chat_template_path: missing"):
        load(settings, config(), tokenizer(), model_path)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    data = load(settings, config(), tokenizer(template), model_path)
    wanted = [{"role": "system", "content": "R"}, {"role": "user", "content": "R12345"}]
    assert data.prompts[0]["prompt"] == wanted and data.fits["prompts"].tokens == [7, 7]


def test_rows_that_do_not_fit_follow_the_policy_and_are_reported(tmp_path, model_path):
    rows = [*PROMPTS, {"prompt": "R" * 53, "goal": "x"}]  # 64 - 12 = 52
    file = jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(ValueError, match=r"overlong_prompts: 1 of 3 prompts \(row: tokens 3: 53\)"):
        load(RunSettings(dataset_name=file), config(), tokenizer(), model_path)
    data = load(RunSettings(dataset_name=file, overlong_prompts="drop"), config(), tokenizer(), model_path)
    assert data.prompts.to_list() == PROMPTS
    assert data.report == ["1 of 3 prompts dropped: longer than 52 tokens (row 3)"]


def test_a_bad_row_or_line_is_named_by_key_and_file(tmp_path, model_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(RecipeError, match=r"^dataset_name: .*bad\.jsonl line 2: not JSON"):
        load(RunSettings(dataset_name=str(tmp_path / "bad.jsonl")), config(), tokenizer(), model_path)
    file = jsonl(tmp_path / "none.jsonl", [{"prompt": None, "goal": "x"}, *PROMPTS])
    with pytest.raises(RecipeError, match=r"^dataset_name: prompt: row 1 is missing"):
        load(RunSettings(dataset_name=file), config(), tokenizer(), model_path)


def test_the_testbed_gives_prompts_with_their_known_p_and_demonstrations(model_path):
    settings = RunSettings(
        prompts={"tail_10": 1},
        prompt_rows=8,
        demonstrations={"barrier": 1},
        demonstration_rows=6,
        reward_funcs=["digits"],
    )
    data = load(settings, config(demonstration_energy_weight=1.0, seed=5), tokenizer(), model_path)
    assert data.prompts["prompt"][:] == digits.dataset({"tail_10": 1}, 8, 5)["prompt"][:]
    assert 0 < min(data.prompts["reference_p"]) < max(data.prompts["reference_p"]) < 0.6
    drawn = digits.dataset({"barrier": 1}, 6, 6, demonstrations=True)
    assert data.demonstrations.to_list() == drawn.select_columns(["prompt", "completion"]).to_list()
    settings.demonstrations_paired = True
    data = load(settings, config(demonstration_energy_weight=1.0, seed=5), tokenizer(), model_path)
    assert data.demonstrations is None
    assert data.prompts["demonstration"][:] == [digits.demonstration(x) for x in data.prompts["prompt"]]


def test_demonstrations_without_a_source_or_with_two(tmp_path, model_path):
    weighted = config(demonstration_energy_weight=1.0)
    settings = RunSettings(dataset_name=jsonl(tmp_path / "p.jsonl", PROMPTS))
    with pytest.raises(RecipeError, match="demonstration_dataset_name: missing; demonstration_energy_weight is 1"):
        load(settings, weighted, tokenizer(), model_path)
    paired = Dataset.from_list([{"prompt": "R1", "demonstration": "1"}])
    paired.to_parquet(tmp_path / "paired.parquet")
    settings = RunSettings(dataset_name=str(tmp_path / "paired.parquet"))
    assert load(settings, weighted, tokenizer(), model_path).fits["demonstrations"].tokens == [4]
    settings.demonstration_dataset_name = jsonl(tmp_path / "d.jsonl", DEMOS)
    with pytest.raises(RecipeError, match="beside a column `demonstration`"):
        load(settings, weighted, tokenizer(), model_path)
