"""Sampling and scoring: the log-probs that come with samples are the law they were drawn from."""

import pytest
import torch
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.models import can_sample
from fe_posttrain.sequences.prompts import Groups, chunks_by_length
from fe_posttrain.sequences.sampling import _draw, sample
from fe_posttrain.sequences.scoring import score

VOCABULARY, PAD, EOS = 12, 0, 1
SIZES = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BUILDERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **LAYERS, initializer_range=0.3)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, **LAYERS, num_key_value_heads=1, head_dim=8, initializer_range=0.3)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)),
}
PROMPTS = [[5, 6, 7, 8]] * 6 + [[9]] * 6 + [[5, 6]] * 4


def build(name: str):
    torch.manual_seed(0)
    return BUILDERS[name]().eval()


def draw(model, decoding, prompts=PROMPTS):
    return sample(model, prompts, decoding, eos_token_ids=[EOS], pad_token_id=PAD)[:2]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_log_probs_are_those_of_an_unpadded_uncached_forward(name, temperature):
    model = build(name)
    completions, log_probs = draw(model, Decoding(9, temperature=temperature))
    assert len({len(row) for row in completions}) > 2  # rows end at different tokens and are dropped on the way
    for prompt, completion, drawn in zip(PROMPTS, completions, log_probs, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
        assert drawn == pytest.approx(wanted.tolist(), abs=2e-5)
        assert EOS not in completion[:-1] and (len(completion) == 9 or completion[-1] == EOS)


@pytest.mark.parametrize("name", BUILDERS)
def test_scores_do_not_depend_on_padding_or_batches(name):
    model = build(name)
    completions, log_probs = draw(model, Decoding(9))
    together, mask = score(model, PROMPTS, completions, pad_token_id=PAD)
    split, _ = score(model, PROMPTS, completions, pad_token_id=PAD, batch_size=3)
    assert torch.allclose(together, split, atol=2e-5)
    assert mask.sum(1).tolist() == [len(row) for row in completions]
    assert (together[~mask] == 0).all()
    for row, kept, drawn in zip(together, mask, log_probs, strict=True):
        assert row[kept].tolist() == pytest.approx(drawn, abs=2e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_each_row_may_have_a_limit_of_its_own(name):
    model, limits = build(name), [1, 9, 4, 20, 2, 9] + [3] * 6 + [1, 9, 9, 5]
    own = {"eos_token_ids": [EOS], "pad_token_id": PAD}
    torch.manual_seed(1)
    drawn = sample(model, PROMPTS, Decoding(9), limits=limits, **own)
    for ids, log_probs, entropies, most in zip(*drawn, limits, strict=True):
        assert len(ids) == len(log_probs) == len(entropies) <= min(most, 9)
        assert EOS not in ids[:-1] and (ids[-1] == EOS or len(ids) == min(most, 9))
    assert sum(len(ids) == most for ids, most in zip(drawn.completion_ids, limits, strict=True)) > 6
    scored, mask = score(model, PROMPTS, drawn.completion_ids, pad_token_id=PAD)
    for row, kept, found in zip(scored, mask, drawn.log_probs, strict=True):
        assert row[kept].tolist() == pytest.approx(found, abs=2e-5)
    torch.manual_seed(1)
    free = sample(model, PROMPTS, Decoding(9), **own)
    torch.manual_seed(1)
    assert sample(model, PROMPTS, Decoding(9), limits=[9] * len(PROMPTS), **own) == free


def test_samples_follow_the_law_of_the_model():
    """20,000 completions of at most two tokens against their exact probabilities."""
    model = build("llama")
    rows = 20_000
    completions, _ = draw(model, Decoding(2), [[5, 6]] * rows)
    every = [[EOS], *([a, b] for a in range(VOCABULARY) if a != EOS for b in range(VOCABULARY))]
    log_probs, _ = score(model, [[5, 6]] * len(every), every, pad_token_id=PAD)
    p = log_probs.double().sum(1).exp()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-5)
    counts = torch.tensor([completions.count(row) for row in every])
    large = p * rows >= 5
    observed = torch.cat([counts[large], counts[~large].sum()[None]])
    expected = torch.cat([p[large], p[~large].sum()[None]]) / p.sum() * rows
    assert chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(("own", "allowed"), [({"top_k": 3}, 3), ({"min_p": 0.999}, 1), ({"top_p": 1e-6}, 1)])
def test_truncated_samples_come_with_the_truncated_law(own, allowed):
    model = build("llama")
    decoding = Decoding(1, **own)
    assert decoding.truncates and not Decoding(1, temperature=0.5).truncates
    completions, log_probs = draw(model, decoding, [[5, 6]] * 500)
    logits = model(torch.tensor([[5, 6]])).logits[0, -1]
    kept = logits.topk(allowed).indices
    wanted = logits[kept].log_softmax(-1)
    by_token = dict(zip(kept.tolist(), wanted.tolist(), strict=True))
    assert {row[0] for row in completions} <= set(by_token)
    for row, drawn in zip(completions, log_probs, strict=True):
        assert drawn[0] == pytest.approx(by_token[row[0]], abs=1e-5)


def test_a_wide_law_is_drawn_from():
    """A vocabulary that is drawn from by blocks: 40,000 draws against a law with cut tokens and a short last block."""
    vocabulary, rows, calls = 5000, 4000, 10
    logits = torch.full((vocabulary,), -torch.inf)
    kept = torch.tensor([0, 127, 128, 129, 2500, 2501, 4990, 4999])
    logits[kept] = torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0, 1.5, 0.3, 0.7])
    law = logits.log_softmax(-1)
    torch.manual_seed(0)
    drawn, entropies = zip(*(_draw(law.expand(rows, -1)) for _ in range(calls)), strict=True)
    counts = torch.cat(drawn)[:, 0].bincount(minlength=vocabulary)
    assert counts[kept].sum() == rows * calls
    p = law[kept].double().exp()
    assert chisquare(counts[kept].numpy(), (p / p.sum() * rows * calls).numpy()).pvalue > 1e-4
    assert entropies[0].tolist() == pytest.approx([-float((p * p.log()).sum())] * rows, rel=1e-5)


class Casts(TorchDispatchMode):
    """Counts copies of tensors of one shape in another precision."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.found = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.found += function is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        return function(*args, **(kwargs or {}))


def test_weights_are_cast_once_a_call_under_mixed_precision():
    """Two layers of two weights (up, gate) of that shape, whatever the number of tokens."""
    model = build("llama")
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    with Casts(model.model.layers[0].mlp.up_proj.weight.shape) as casts:
        completions, _ = draw(model, Decoding(9))
    assert max(map(len, completions)) > 2
    assert casts.found == 4
    assert not torch.is_autocast_enabled("cpu")


def test_an_empty_completion_is_one_end_token():
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[EOS] = 1e4 * torch.sign(model.model(torch.tensor([[5]])).last_hidden_state[0, -1])
    completions, log_probs = draw(model, Decoding(4), [[5]] * 3)
    assert completions == [[EOS]] * 3
    assert log_probs == [pytest.approx([0.0], abs=1e-5)] * 3


def test_a_model_whose_probabilities_are_nan_is_named():
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(FloatingPointError, match="sampler: the model's probabilities are NaN at token 1"):
        draw(model, Decoding(4))


def test_models_without_a_plain_cache_are_left_to_trl():
    config = Qwen3Config(
        **SIZES, **LAYERS, num_key_value_heads=1, head_dim=8, sliding_window=4, use_sliding_window=True
    )
    config.layer_types = ["sliding_attention", "full_attention"]
    assert not can_sample(Qwen3ForCausalLM(config))
    assert can_sample(build("llama"))


def test_entropies_are_those_of_the_law_of_each_token():
    model = build("qwen3")
    drawn = sample(model, PROMPTS, Decoding(5), eos_token_ids=[EOS], pad_token_id=PAD)
    for prompt, completion, entropies in zip(PROMPTS, drawn.completion_ids, drawn.entropies, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        wanted = torch.distributions.Categorical(logits=logits).entropy()
        assert entropies == pytest.approx(wanted.tolist(), abs=2e-5)


def test_rare_tokens_are_drawn_as_often_as_they_should():
    """300 tokens of 1/3000 each behind one of .9: their share, and every one of them."""
    law = torch.full((1, 301), 1 / 3000)
    law[0, 0] = 0.9
    torch.manual_seed(0)
    drawn, _ = _draw(law.log().expand(60_000, -1))
    counts = drawn[:, 0].bincount(minlength=301).numpy()
    expected = law[0].double().numpy()
    assert chisquare(counts, f_exp=60_000 * expected / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("lengths", [[3, 9, 1, 9, 4, 2], [5] * 6, [1, 2, 4, 8, 16, 32], [7]])
@pytest.mark.parametrize("call", [1, 6, 100])
def test_chunks_cost_least_among_all_partitions(lengths, call):
    def cost(chunks):
        return sum(len(chunk) * max(lengths[i] for i in chunk) + call for chunk in chunks)

    def partitions(rows):
        if not rows:
            yield []
            return
        for others in partitions(rows[1:]):
            yield [[rows[0]], *others]
            for k in range(len(others)):
                yield [*others[:k], [rows[0], *others[k]], *others[k + 1 :]]

    found = chunks_by_length(lengths, call)
    assert sorted(i for chunk in found for i in chunk) == list(range(len(lengths)))
    assert cost(found) == min(cost(chunks) for chunks in partitions(list(range(len(lengths)))))


def test_groups_are_consecutive_rows_of_one_prompt_whatever_the_padding_token():
    ids = torch.tensor([[0, 5], [0, 5], [5, 5], [0, 5], [0, 5], [0, 0]])
    mask = torch.tensor([[0, 1], [0, 1], [1, 1], [0, 1], [1, 1], [1, 1]])  # a padding token may also be a real one
    groups = Groups.of(ids, mask)
    assert groups.owner.tolist() == [0, 0, 1, 2, 3, 4] and groups.first.tolist() == [0, 2, 3, 4, 5]
