"""Tokenizer settings by SFTConfig's keys, in a run of its own kind: conversational demonstrations and prompts."""

import pytest
import small
from datasets import Dataset

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.tasks.tokenizer import build_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<unk>{% endif %}{% endfor %}"


def train(folder, **own):
    settings = {"max_steps": 1, "beta": 0.1, "demonstration_energy_weight": 1.0, **small.ROLLOUTS, **own}
    prompts = [[{"role": "user", "content": x}] for x in small.prompts()["prompt"]]
    rows = small.demonstrations()
    demos = {
        "prompt": [[{"role": "user", "content": x}] for x in rows["prompt"]],
        "completion": [[{"role": "assistant", "content": y}] for y in rows["completion"]],
    }
    return small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings=settings,
        model=small.model(),
        reward_funcs=[small.length_reward],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        demo_dataset=Dataset.from_dict(demos),
        processing_class=build_tokenizer(),
    )


def test_template_file_and_tokens_reach_rollouts_and_demonstrations(tmp_path):
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    record, trainer = train(tmp_path, chat_template_path=str(tmp_path / "chat.jinja"), eos_token="<unk>")
    end = trainer._tokenizer.convert_tokens_to_ids("<unk>")
    assert trainer._tokenizer.eos_token_id == end and end in trainer.eos_token_ids
    row = trainer._demonstrations.rows[0]
    assert row["input_ids"][-1] == end and row["labels"][-1] == end
    first = next(i for i, label in enumerate(row["labels"]) if label != -100)
    assert trainer._tokenizer.decode(row["input_ids"][:first]) == small.demonstrations()["prompt"][0]
    assert record.logs[0]["free_energy/demonstration"] > 0


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"eos_token": "<end>"}, "eos_token: '<end>'; the tokenizer has no such token"),
        ({"chat_template_path": "nowhere.jinja"}, "chat_template_path: nowhere.jinja; no Jinja file"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, own, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **own)
