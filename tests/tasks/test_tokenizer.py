"""The tokenizer: one character a token, nothing added, nothing lost, also after a reload."""

import pytest
from transformers import AutoTokenizer

from fe_posttrain.tasks import digits


@pytest.fixture(scope="module", params=["built", "reloaded"])
def either(request, tokenizer, tmp_path_factory):
    if request.param == "built":
        return tokenizer
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_symbols(either):
    assert len(either) == 26
    assert either.padding_side == "left"
    assert (either.pad_token_id, either.bos_token_id, either.eos_token_id, either.unk_token_id) == (0, 1, 2, 3)


def test_round_trip_and_concatenation(either):
    for prompt in ("R31425", "U90817", "RT31425"):
        completion = digits.demonstration(prompt)
        ids = either.encode(prompt + completion)
        assert ids == either.encode(prompt) + either.encode(completion)
        assert len(ids) == len(prompt + completion)
        assert either.decode(ids) == prompt + completion
        assert either.decode([*ids, either.eos_token_id, 0], skip_special_tokens=True) == prompt + completion


def test_every_character_outside_is_one_unknown(either):
    assert either.encode("R 3\nz") == [either.encode("R")[0], 3, either.encode("3")[0], 3, 3]


def test_batches_pad_on_the_left(either):
    batch = either(["R31425", "RT31425"], padding=True)
    assert batch["input_ids"][0][0] == 0
    assert batch["attention_mask"][0] == [0, 1, 1, 1, 1, 1, 1]
