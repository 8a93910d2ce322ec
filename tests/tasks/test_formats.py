"""Answers in three formats: rules by hand, shares against plain forwards and draws, the optimum by enumeration."""

import math

import numpy as np
import pytest
import torch
from builders import TINY
from random_llama import random_llama

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.sampling import sample
from fe_posttrain.tasks import formats, formats_base
from fe_posttrain.tasks.files import load_rows
from fe_posttrain.tasks.formats_exact import Formats, at_optimum, exact_formats
from fe_posttrain.tasks.tokenizer import SYMBOLS


@pytest.mark.parametrize(
    ("completion", "right", "label"),
    [
        ("52413", 1.0, "plain"),
        (">52413", 1.0, "marked"),
        ("R52413", 1.0, "echoed"),
        ("31425", 0.0, "plain"),  # the copy
        ("R31425", 0.0, "echoed"),
        ("L52413", 0.0, "echoed"),  # of another letter
        (">>52413", 0.0, "marked"),
        ("52413>", 0.0, "plain"),
        (">", 0.0, "marked"),
        ("", 0.0, None),
        (" 52413", 0.0, None),
        ("<pad>52413", 0.0, None),
    ],
)
def test_verifier_and_label_by_hand(completion, right, label):
    assert formats.correct(["R31425"], [completion], completion_ids=[[0]]) == [right]
    assert formats.label(["R31425"], [completion], completion_ids=[[0]]) == [label]


@pytest.mark.parametrize("prompt", ["31425", "RL31425", "R31424", "Z31425", ""])
def test_malformed_prompts_are_refused(prompt):
    with pytest.raises(ValueError, match=r"not a (digits )?prompt"):
        formats.answers(prompt)


def test_prompts_are_those_of_the_family_and_splits_share_no_list():
    train, probe = (formats.prompts("rare_best", 200, 3, split) for split in ("train", "probe"))
    assert {x[0] for x in train + probe} == {"T"} and len(set(train)) == 200
    everything = {x[1:] for f in formats.FAMILIES for x in formats.prompts(f, 2000, 0)}
    assert not everything & {x[1:] for x in probe}
    assert train == formats.prompts("rare_best", 200, 3) != formats.prompts("rare_best", 200, 4)
    for family, count, wrong in (("rare", 1, "unknown family"), ("alike", 30_000, "train split has")):
        with pytest.raises(ValueError, match=wrong):
            formats.prompts(family, count, 0)


def test_rows_for_recipes():
    rows = load_rows("formats", split="test")
    assert {name: rows["family"].count(name) for name in formats.FAMILIES} == dict.fromkeys(formats.FAMILIES, 256)
    alone = load_rows("formats", split="train_rivals")
    assert set(alone["family"]) == {"rivals"} and {x[0] for x in alone["prompt"]} == {"X"} and len(alone) == 2048
    for split in ("probe", "train_rare", "test_"):
        with pytest.raises(ValueError, match=f"no split {split}; it has train and test"):
            load_rows("formats", split=split)


def test_result_and_copy_differ_in_the_first_digit():
    """So that one token decides: the accuracies of pretraining are then probabilities that the model can have."""
    for family in formats.FAMILIES:
        for split in ("train", "probe"):
            assert all(formats.answers(x)["plain"][0] != x[1] for x in formats.prompts(family, 3000, 0, split))


def test_pretraining_draws_the_law_that_it_states():
    generator = np.random.default_rng(0)
    pairs = formats_base.draw(generator, 20_000)
    owner = {letter: family for family in formats.FAMILIES.values() for letter in family.operations}
    labels = formats.label(*zip(*pairs, strict=True))
    right = formats.correct(*zip(*pairs, strict=True))
    for name, share in formats.SHARES.items():
        assert labels.count(name) / len(pairs) == pytest.approx(
            share, abs=4 * (share * (1 - share) / len(pairs)) ** 0.5
        )
        for family in formats.FAMILIES.values():
            own = [
                hit
                for (x, _), hit, said in zip(pairs, right, labels, strict=True)
                if said == name and owner[x[0]] is family
            ]
            p = family.accuracy[name]
            assert sum(own) / len(own) == pytest.approx(p, abs=4.5 * (p * (1 - p) / len(own)) ** 0.5)
    assert all(y.endswith(x[1:]) for (x, y), hit in zip(pairs, right, strict=True) if not hit)  # wrong: a copy


def test_pretraining_weighs_completions_and_their_end_alone(tokenizer):
    tokens, weights = formats_base._batch(np.random.default_rng(1), 64)
    pairs = formats_base.draw(np.random.default_rng(1), 64)
    for (x, y), row, weight in zip(pairs, tokens, weights, strict=True):
        counted = torch.cat([torch.zeros(len(x)), weight]).bool()
        assert tokenizer.decode(row[counted]) == y + "<eos>" and tokenizer.decode(row[: len(x)]) == x
        assert set(row[len(x) + len(y) + 1 :].tolist()) <= {tokenizer.pad_token_id}


def test_the_base_is_cached_by_all_that_determines_it(tmp_path, monkeypatch):
    folder = formats_base.formats_model(tmp_path, settings=TINY)
    assert folder.name.startswith("formats-") and (folder / "model.safetensors").is_file()
    assert formats_base.formats_model(tmp_path, settings=TINY) == folder
    assert formats_base.formats_model(tmp_path, seed=1, settings=TINY) != folder
    monkeypatch.setitem(formats.SHARES, "plain", 0.4)
    monkeypatch.setitem(formats.SHARES, "echoed", 0.3)
    assert formats_base.formats_model(tmp_path, settings=TINY) != folder


@pytest.fixture(scope="module")
def model():
    return random_llama(5, spread=0.6)


PROMPTS = ["R31425", "T90817", "X12345"]


def test_exact_shares_and_right_answers_equal_plain_forwards(model, tokenizer):
    found = exact_formats(model, tokenizer, PROMPTS, batch_size=7)
    for i, x in enumerate(PROMPTS):
        with torch.no_grad():
            law = model(torch.tensor([tokenizer.encode(x)])).logits[0, -1].double().softmax(-1)
        by_symbol = dict(zip(SYMBOLS, law.tolist(), strict=True))
        shares = [sum(by_symbol[d] for d in "0123456789"), by_symbol[">"], sum(by_symbol[c] for c in "CRSDLTXPUVW")]
        rest = sum(by_symbol[s] for s in ("<pad>", "<bos>", "<eos>", "<unk>"))
        assert found.share[i].tolist() == pytest.approx(shares, rel=1e-4)
        assert found.share[i].sum().item() + rest == pytest.approx(1.0, abs=1e-6)
        result = {"R31425": "52413", "T90817": "79081", "X12345": "52341"}[x]
        for column, y in enumerate((result, ">" + result, x[0] + result)):
            ids = torch.tensor([[*tokenizer.encode(x + y), tokenizer.eos_token_id]])
            with torch.no_grad():
                steps = model(ids).logits.double().log_softmax(-1)[0, len(x) - 1 : -1]
            p = steps.gather(-1, ids[0, len(x) :, None]).sum().exp().item()
            assert found.correct[i, column].item() == pytest.approx(p, rel=1e-4)
    assert min(found.share.min().item(), found.share.std(0).min().item()) > 1e-3  # the law is no trivial one


def test_exact_shares_agree_with_labels_of_draws(model, tokenizer):
    n = 3000
    ids = [row for row in tokenizer(PROMPTS)["input_ids"] for _ in range(n)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn, _, _ = sample(model, ids, Decoding(3), eos_token_ids=[tokenizer.eos_token_id], pad_token_id=0)
    labels = formats.label([x for x in PROMPTS for _ in range(n)], tokenizer.batch_decode(drawn))
    share = exact_formats(model, tokenizer, PROMPTS).share
    for i in range(len(PROMPTS)):
        own = labels[i * n : (i + 1) * n]
        for column, name in enumerate(formats.FORMATS):
            p = share[i, column].item()
            assert own.count(name) / n == pytest.approx(p, abs=4 * (p * (1 - p) / n) ** 0.5)


# A prompt's completions one by one: probability under the reference, format, reward.
WORLD = [
    (0.20, "plain", 1), (0.05, "plain", 0), (0.17, "plain", 0), (0.03, "marked", 1), (0.18, "marked", 0),
    (0.12, "echoed", 1), (0.15, "echoed", 0), (0.06, None, 0), (0.04, None, 0),
]  # fmt: skip


def summed(law: list[float], only_right: bool) -> list[float]:
    rows = list(zip(law, WORLD, strict=True))
    return [sum(p for p, (_, f, r) in rows if f == name and r >= only_right) for name in formats.FORMATS]


@pytest.mark.parametrize(("beta", "weight"), [(0.3, 1.0), (0.05, 1.0), (2.0, 3.0), (50.0, 1.0)])
def test_optimum_equals_enumeration(beta, weight):
    reference = [p for p, _, _ in WORLD]
    tilted = [p * math.exp(weight * r / beta) for p, _, r in WORLD]
    law = [value / sum(tilted) for value in tilted]
    start = Formats(*(torch.tensor([summed(reference, right)], dtype=torch.float64) for right in (False, True)))
    found = at_optimum(start, beta=beta, reward_energy_weight=weight)
    assert found.share[0].tolist() == pytest.approx(summed(law, False), rel=1e-9)
    assert found.correct[0].tolist() == pytest.approx(summed(law, True), rel=1e-9)


def test_optimum_at_small_beta_is_the_reference_among_its_right_answers():
    start = Formats(torch.tensor([[0.5, 0.3, 0.2]]).double(), torch.tensor([[0.1, 0.1, 0.2]]).double())
    assert at_optimum(start, beta=1e-4).share[0].tolist() == pytest.approx([0.25, 0.25, 0.5])
    with pytest.raises(ValueError, match="must be positive"):
        at_optimum(start, beta=0.0)


def test_accuracy_and_entropy_by_hand():
    share = torch.tensor([[0.5, 0.25, 0.0], [0.5, 0.25, 0.0]], dtype=torch.float64)  # a quarter is no format
    found = Formats(share, share * torch.tensor([[0.2, 1.0, 0.0], [0.4, 0.5, 0.0]]))
    assert found.accuracy[:2].tolist() == pytest.approx([0.3, 0.75])
    assert found.entropy == pytest.approx(1.5 * math.log(2))
