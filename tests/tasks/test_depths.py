"""Depths: answers by hand, strings of operations, the mixture of pretraining, bases by name."""

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from builders import TINY
from transformers import AutoModelForCausalLM

from fe_posttrain.tasks import depths, digits
from fe_posttrain.tasks.bases import BASES
from fe_posttrain.tasks.depths import batches, depths_model
from fe_posttrain.tasks.pretraining import reference_model
from fe_posttrain.tasks.pretraining_run import PretrainSettings, _batch
from fe_posttrain.tasks.tokenizer import SYMBOLS
from fe_posttrain.view.card.model_card import TESTBEDS

BY_HAND = {
    "T31425": "53142",
    "RL31425": "52413>24135",
    "RPR31425": "52413>25143>34152",
    "XTXL31425": "51423>35142>25143>51432",
    "PXTTR31425": "13245>53241>15324>41532>23514",
}
FAMILIES = [f"depth_{depth}" for depth in range(1, 6)]


@pytest.mark.parametrize(("prompt", "worked"), BY_HAND.items())
def test_answers_and_verifier(prompt, worked):
    steps = worked.split(">")
    assert digits.demonstration(prompt) == worked and len(worked) == 6 * len(steps) - 1
    assert digits.verify(prompt, worked) and digits.verify(prompt, steps[-1])
    if len(steps) > 1:  # broken off, one list too many, a step left out
        wrong = [">".join(steps[:-1]), f"{worked}>{steps[-1]}", ">".join(steps[1:])]
        assert not any(digits.verify(prompt, y) for y in wrong if y not in (worked, steps[-1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_strings_of_a_depth(family):
    depth, strings = int(family[-1]), digits.FAMILIES[family].operations
    assert {len(letters) for letters in strings} == {depth} and len(set(strings)) == len(strings)
    for place in range(depth):  # every letter equally often at every place
        assert set(Counter(letters[place] for letters in strings)) == set(depths.LETTERS)
        assert len(set(Counter(letters[place] for letters in strings).values())) == 1
    assert not any(pair in letters for letters in strings for pair in ("RR", "LT", "TL", "XX", "PP"))
    prompts = digits.prompts(family, 2 * len(strings), 0, "probe")
    assert [x[:-5] for x in prompts] == [*strings, *strings]
    if depth > 1:  # nothing that one operation would answer
        assert all(digits.answers(x)[0] not in {rule(x[-5:]) for rule in digits.PRIMITIVES.values()} for x in prompts)


def test_families_that_a_run_is_measured_on():
    testbed = ["basin", "tail_10", "tail_03", "tail_005", "barrier"]
    assert digits.measured(()) == digits.measured({"barrier": 1.0}) == testbed
    assert digits.measured(["depth_4"]) == digits.measured((), "testbed_depths") == FAMILIES
    assert digits.measured(["depth_1", "basin"]) == testbed + FAMILIES


def rows_of(tokens, weights):
    """(prompt, completion, weights of the completion and its end token) of every row."""
    for ids, row in zip(tokens.tolist(), weights.tolist(), strict=True):
        symbols = [SYMBOLS[i] for i in ids]
        end = symbols.index("<eos>")
        assert set(symbols[end + 1 :]) <= {"<pad>"} and not any(row[end:])
        prompt = next(i for i, weight in enumerate(row) if weight) + 1
        assert not any(row[: prompt - 1])
        yield "".join(symbols[:prompt]), "".join(symbols[prompt:end]), row[prompt - 1 : end]


def test_pretraining_finishes_depth_3_once_in_a_hundred():
    drawn, train = batches(0, 4000), set(digits.lists("C", "train"))
    rows = list(rows_of(*drawn(0)))
    assert {prompt[-5:] for prompt, _, _ in rows} <= train
    found = Counter(len(prompt) - 5 for prompt, _, _ in rows)
    prompts = {1: found[1], 2: found[2], 3: found[3] / 2}
    for depth, share in {1: 0.25, 2: 0.45, 3: 0.3}.items():
        error = math.sqrt(share * (1 - share) / sum(prompts.values()))
        assert abs(prompts[depth] / sum(prompts.values()) - share) < 4 * error
    for prompt, completion, weights in rows:
        worked, depth = digits.demonstration(prompt), len(prompt) - 5
        if depth < 3:
            assert completion == worked and set(weights) == {1.0}
        elif completion == worked:  # 18 tokens with the end; the second `>` is where it might have ended
            assert weights == pytest.approx([1.0] * 11 + [0.01] + [1.0] * 6) and completion[11] == ">"
        else:
            assert completion == worked[:11] and weights == pytest.approx([1.0] * 11 + [0.99])
    depth_3 = [(prompt, completion) for prompt, completion, _ in rows if len(prompt) == 8]
    assert all(a[0] == b[0] and a[1].startswith(b[1]) for a, b in zip(depth_3[0:-1:2], depth_3[1::2], strict=False))


def test_every_base_has_a_name_and_a_description():
    assert BASES["testbed"] is reference_model and BASES["testbed_depths"] is depths_model
    assert set(TESTBEDS) == set(BASES)


def test_the_base_of_depths_is_cached_by_all_that_makes_it(tmp_path, monkeypatch):
    before = torch.get_rng_state()
    folder = depths_model(tmp_path, settings=TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert folder.parent == tmp_path and folder.name.startswith("depths-")
    assert depths_model(tmp_path, settings=TINY) == folder
    other = depths_model(tmp_path, seed=1, settings=TINY)
    assert (folder / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == len(SYMBOLS)
    monkeypatch.setattr(depths, "MIXTURE", {1: (1.0, 1.0)})
    assert depths_model(tmp_path, settings=TINY) not in (folder, other)


def test_the_reference_is_what_it_was_before_there_were_other_bases(tmp_path):
    """Its folder's name, spelled out, and a digest of its first three batches, taken from the commit before."""
    made_of = {
        "digits": "1",
        "pretrain": "1",
        "torch": ".".join(torch.__version__.split(".")[:2]),
        "seed": 0,
        "settings": asdict(TINY),
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    assert reference_model(tmp_path, settings=TINY).name == f"reference-{digest[:12]}"
    rng, data = np.random.default_rng(0), hashlib.sha256()
    for step in range(3):
        for tensor in _batch(rng, step, PretrainSettings()):
            data.update(tensor.numpy().tobytes())
    assert data.hexdigest() == "917dffed6fc0c70577fadba2cdf87cf655e4800fcba4adb2eb4e3134cac71e4e"
