"""Rows that do not fit, counted by hand: the testbed's tokenizer makes one token of each character."""

import pytest
from datasets import Dataset
from small import SETTINGS, TOKENIZER, length_reward, model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fe_posttrain.tasks.tokenizer import build_tokenizer
from fe_posttrain.training import demonstrations
from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.fit import fit_prompts, tokenise_prompts
from fe_posttrain.training.fit_demonstrations import fit_demonstrations, fit_paired
from fe_posttrain.training.trainer import FreeEnergyTrainer

# `<bos>` before each message, and `>` where the answer begins.
TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{{ more or '' }}{% endif %}"
)


def config(**settings) -> FreeEnergyConfig:
    return FreeEnergyConfig("unused", **{**SETTINGS, "max_completion_length": 10, **settings})


def prompts(*texts):
    return Dataset.from_dict({"prompt": list(texts), "n": list(range(len(texts)))})


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def chat_tokenizer():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


PLAIN = prompts("R123", "R1234567", "S12", "R12345678")  # 4, 8, 3 and 9 tokens; a context of 16 leaves 6


def test_prompts_that_fit_are_left_alone():
    for context in (None, 19):
        rows, fit = fit_prompts(PLAIN, TOKENIZER, config(), context, "error")
        assert rows is PLAIN and fit.lines() == [] and fit.tokens == [4, 8, 3, 9]


def test_long_prompts_are_an_error_with_rows_lengths_and_remedy():
    with pytest.raises(ValueError) as caught:
        fit_prompts(PLAIN, TOKENIZER, config(), 16, "error")
    assert str(caught.value) == (
        "overlong_prompts: 2 of 4 prompts (row: tokens 2: 8, 4: 9) are longer than 6 tokens; the model's context is "
        "16 and max_completion_length 10; write a smaller max_completion_length, or overlong_prompts: drop or truncate"
    )
    with pytest.raises(ValueError, match=r"max_completion_length: 10; .*context of 10 tokens leaves no room"):
        fit_prompts(PLAIN, TOKENIZER, config(), 10, "drop")


def test_long_prompts_are_dropped_and_reported():
    rows, fit = fit_prompts(PLAIN, TOKENIZER, config(), 16, "drop")
    assert rows.to_list() == [{"prompt": "R123", "n": 0}, {"prompt": "S12", "n": 2}]
    assert fit.lines() == ["2 of 4 prompts dropped: longer than 6 tokens (rows 2, 4)"] and fit.tokens == [4, 3]
    with pytest.raises(ValueError, match=r"nothing would be left"):
        fit_prompts(PLAIN, TOKENIZER, config(), 12, "drop")


def test_long_plain_prompts_are_truncated_to_their_last_tokens():
    rows, fit = fit_prompts(PLAIN, TOKENIZER, config(), 16, "truncate")
    assert rows["prompt"][:] == ["R123", "234567", "S12", "345678"] and rows["n"][:] == [0, 1, 2, 3]
    assert fit.lines() == ["2 of 4 prompts truncated to 6 tokens (rows 2, 4)"] and fit.tokens == [4, 6, 3, 6]


def test_truncation_stays_within_the_limit_where_tokens_merge_across_the_cut():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    text = "the cat sat on the mat, the rat sat on the cat; éé çà 好好 the end"
    words = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator([text] * 3, words)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    whole = len(tokenizer(text)["input_ids"])
    for limit in range(1, whole):
        rows, fit = fit_prompts(prompts(text), tokenizer, config(), limit + 10, "truncate")
        (short,) = rows["prompt"]
        assert text.endswith(short) and fit.truncated == [1]
        assert fit.tokens == [len(tokenizer(short)["input_ids"])] and fit.tokens[0] <= limit
    assert fit.tokens[0] >= whole - 3


def test_conversations_are_measured_by_their_template_and_not_truncated():
    rows = Dataset.from_dict({"prompt": [user("R1"), user("R123")]})  # <bos> R 1 > and <bos> R 1 2 3 >
    with pytest.raises(ValueError, match=r"chat_template_path: missing; .*no chat template"):
        fit_prompts(rows, TOKENIZER, config(), None, "error")
    assert fit_prompts(rows, chat_tokenizer(), config(), None, "error")[1].tokens == [4, 6]
    longer = config(chat_template_kwargs={"more": "SS"})
    assert fit_prompts(rows, chat_tokenizer(), longer, None, "error")[1].tokens == [6, 8]
    assert fit_prompts(rows, chat_tokenizer(), config(), 15, "drop")[1].dropped == [2]
    with pytest.raises(ValueError, match=r"row: tokens 2: 6.*a conversation cannot be truncated; write drop"):
        fit_prompts(rows, chat_tokenizer(), config(), 15, "truncate")


@pytest.mark.parametrize("conversational", [False, True])
def test_prompts_are_tokenised_as_the_trainer_tokenises_them(conversational, tmp_path):
    texts = ["R123", "S12"]
    given = [user(x) for x in texts] if conversational else texts
    args = FreeEnergyConfig(
        tmp_path, **SETTINGS, beta=0.0, chat_template_kwargs={"more": "S"}, num_generations=2, max_completion_length=2
    )
    trainer = FreeEnergyTrainer(
        model(), length_reward, args, Dataset.from_dict({"prompt": given}), processing_class=chat_tokenizer()
    )
    assert tokenise_prompts(given, chat_tokenizer(), args) == trainer._tokenize_prompts(given)[0]


def sft(**settings) -> FreeEnergyConfig:
    return config(reward_energy_weight=0.0, demonstration_energy_weight=1.0, beta=0.0, **settings)


# Tokens with the end token, of which trained: 3 + 4 + 1 = 8 (5), 3 + 2 + 1 = 6 (3), 7 + 2 + 1 = 10 (3).
DEMOS = Dataset.from_dict({"prompt": ["R12", "S12", "R123456"], "completion": ["3456", "34", "78"]})


def test_demonstrations_that_fit_are_counted():
    for limits in ({"max_length": 10}, {"max_length": None}):
        rows, fit = fit_demonstrations(DEMOS, TOKENIZER, sft(**limits), None, "error")
        assert rows is DEMOS and fit.tokens == [8, 6, 10] and fit.trained == 5 + 3 + 3 and fit.lines() == []


@pytest.mark.parametrize(("max_length", "context"), [(7, None), (100, 7), (7, 8), (None, 7)])
def test_long_demonstrations_are_an_error_or_dropped(max_length, context):
    args = sft(max_length=max_length)
    with pytest.raises(ValueError, match=r"2 of 3 demonstrations \(row: tokens 1: 8, 3: 10\) are longer than 7"):
        fit_demonstrations(DEMOS, TOKENIZER, args, context, "error")
    rows, fit = fit_demonstrations(DEMOS, TOKENIZER, args, context, "drop")
    assert rows.to_list() == [{"prompt": "S12", "completion": "34"}]
    assert fit.lines() == ["2 of 3 demonstrations dropped: longer than 7 tokens (rows 1, 3)"]
    assert (fit.tokens, fit.trained) == ([6], 3)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("max_length", [2, 4, 5, 7, 9])
def test_truncation_agrees_with_what_trl_then_makes_of_the_rows(max_length, mode):
    args = sft(max_length=max_length, truncation_mode=mode)
    kept = [i for i in range(3) if mode == "keep_end" or (3, 3, 7)[i] < max_length]  # something trained is left
    if not kept:
        with pytest.raises(ValueError, match="nothing would be left"):
            fit_demonstrations(DEMOS, TOKENIZER, args, 20, "truncate")
        return
    rows, fit = fit_demonstrations(DEMOS, TOKENIZER, args, 20, "truncate")
    assert rows.to_list() == [DEMOS[i] for i in kept]
    assert fit.dropped == [i + 1 for i in range(3) if i not in kept]
    assert fit.truncated == [i + 1 for i in kept if (8, 6, 10)[i] > max_length]
    prepared = demonstrations.prepare(rows, TOKENIZER, args, shuffle=False)
    assert fit.tokens == [len(ids) for ids in prepared["input_ids"]]
    assert fit.trained == sum(label != -100 for labels in prepared["labels"] for label in labels)


def test_truncation_beyond_the_context_is_an_error():
    with pytest.raises(ValueError, match=r"max_length: 9; .*the model's context is 7; write 7 or less"):
        fit_demonstrations(DEMOS, TOKENIZER, sft(max_length=9), 7, "truncate")
    with pytest.raises(ValueError, match=r"max_length: None; .*write 7 or less"):
        fit_demonstrations(DEMOS, TOKENIZER, sft(max_length=None), 7, "truncate")


def test_packing_that_splits_loses_nothing():
    args = sft(max_length=5, packing=True, packing_strategy="bfd_split")
    _, fit = fit_demonstrations(DEMOS, TOKENIZER, args, 5, "error")
    assert fit.tokens == [8, 6, 10] and fit.lines() == []
    with pytest.raises(ValueError, match=r"3 of 3 demonstrations .* longer than 5"):
        fit_demonstrations(DEMOS, TOKENIZER, sft(max_length=5, packing=True), None, "error")


@pytest.mark.parametrize(("strategy", "context"), [("bfd_split", 9), ("wrapped", 10)])
def test_packing_that_reaches_beyond_the_context_is_an_error(strategy, context):
    args = sft(max_length=12, packing=True, packing_strategy=strategy)
    with pytest.raises(ValueError, match=f"max_length: 12; .*context is {context}; write {context} or less"):
        fit_demonstrations(DEMOS, TOKENIZER, args, context, "drop")
    assert fit_demonstrations(DEMOS, TOKENIZER, args, 12, "error")[1].tokens == [8, 6, 10]


def test_conversations_and_messages_are_measured_by_their_template():
    answer = [{"role": "assistant", "content": "21"}]
    pairs = Dataset.from_dict({"prompt": [user("R12")], "completion": [answer]})
    messages = Dataset.from_dict({"messages": [user("R12") + answer]})
    for rows in (pairs, messages):  # <bos> R 1 2 <bos> 2 1: the template writes no end token
        assert fit_demonstrations(rows, chat_tokenizer(), sft(), None, "error")[1].tokens == [7]
        with pytest.raises(ValueError, match="chat_template_path: missing"):
            fit_demonstrations(rows, TOKENIZER, sft(), None, "error")


def test_a_paired_demonstration_is_dropped_and_its_prompt_stays():
    rows = Dataset.from_dict({"prompt": ["R12", "S12", "R12"], "demonstration": [None, "34567", "34"], "n": [1, 2, 3]})
    args = config(demonstration_energy_weight=1.0)
    kept, fit = fit_paired(rows, TOKENIZER, args, 8, "drop")  # 3 + 5 + 1 = 9 and 3 + 2 + 1 = 6
    assert kept["demonstration"][:] == [None, None, "34"] and kept["prompt"][:] == ["R12", "S12", "R12"]
    assert fit.lines() == ["1 of 2 demonstrations dropped: longer than 8 tokens (row 2)"] and kept["n"][:] == [1, 2, 3]
    with pytest.raises(ValueError, match=r"1 of 2 demonstrations \(row: tokens 2: 9\)"):
        fit_paired(rows, TOKENIZER, args, 8, "error")
    with pytest.raises(ValueError, match="demonstration: empty in every row"):
        fit_paired(rows.select([0]), TOKENIZER, args, 8, "error")
