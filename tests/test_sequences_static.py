"""The static decoder draws what the growing one draws, here on a CPU with torch.compile's simpler backends."""

import gc
import weakref

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.growing import Growing, Prefilled
from fe_posttrain.sequences.sampling import complete
from fe_posttrain.sequences.scoring import score
from fe_posttrain.sequences.static import Static, fits

PAD, EOS, LENGTH = 0, 1, 40
ENDS = [EOS, 2]
SIZES = {"vocab_size": 12, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None, "initializer_range": 0.3}
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FEWER = {"num_key_value_heads": 1}
BUILDERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **LAYERS)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **LAYERS, **FEWER)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **LAYERS, **FEWER, head_dim=8)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2)),
}
PROMPTS = [[5, 6, 7, 8]] * 12 + [[9]] * 12 + [[5, 6]] * 8
EVEN = [[5, 6, 7, 8]] * 16 + [[9, 8, 7, 6]] * 16


def build(name: str = "qwen3"):
    torch.manual_seed(0)
    return BUILDERS[name]().eval()


class GrowingAlike(Growing):
    """Looks at rows and drops them when the static decoder does, so that both use the same random numbers."""

    LOOKS = Static.LOOKS

    def size(self, running):
        rows = len(self._lengths)
        while running <= rows // 2 and rows // 2 >= 2:
            rows //= 2
        return rows


class Watched(Static):
    """Keeps the batch sizes it was halved to."""

    def keep(self, rows):
        self.__dict__.setdefault("sizes", []).append(len(rows))
        super().keep(rows)


@torch.no_grad()
def draw(model, kind, prompts=PROMPTS, seed=3, **own):
    found = Prefilled(model, prompts, PAD)
    decode = kind(model, found, LENGTH, smallest=2, **own) if issubclass(kind, Static) else kind(model, found)
    torch.manual_seed(seed)
    return complete(decode, Decoding(LENGTH), eos_token_ids=ENDS, pad_token_id=PAD), decode


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("prompts", [PROMPTS, EVEN], ids=["padded", "even"])
def test_both_decoders_draw_the_same(name, prompts):
    model = build(name)
    wanted, _ = draw(model, GrowingAlike, prompts)
    found, decode = draw(model, Watched, prompts, backend="eager")
    assert found.completion_ids == wanted.completion_ids
    assert decode.sizes and all(size in (16, 8, 4, 2) for size in decode.sizes)
    assert len({len(row) for row in found.completion_ids}) > 4
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        for row, known in zip(ours, theirs, strict=True):
            assert row == pytest.approx(known, abs=2e-5)


def law(model, drawn):
    scores, mask = score(model, PROMPTS, drawn.completion_ids, pad_token_id=PAD)
    return [row[kept].tolist() for row, kept in zip(scores, mask, strict=True)]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_weights_changed_in_place_are_the_next_law(backend):
    model = build()
    before, _ = draw(model, Static, backend=backend)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.8)
    after, _ = draw(model, Static, backend=backend)
    assert after.log_probs[0][0] != pytest.approx(before.log_probs[0][0], abs=1e-3)
    for row, known in zip(after.log_probs, law(model, after), strict=True):
        assert row == pytest.approx(known, abs=2e-5)


def test_nothing_is_compiled_or_allocated_twice():
    model, compiled = build(), []

    def backend(graph, inputs):
        compiled.append(len(inputs))
        return graph.forward

    _, first = draw(model, Watched, backend=backend)
    shapes = len({32, *first.sizes})
    assert len(compiled) == shapes
    addresses = {layer.keys.data_ptr() for layer in first._cache.layers}
    for seed in range(3):
        _, again = draw(model, Watched, seed=seed, backend=backend)
        shapes = max(shapes, len({16, 8, 4, 2}) if 2 in again.sizes else 0)
        assert {layer.keys.data_ptr() for layer in again._cache.layers} == addresses
    assert len(compiled) <= 4
