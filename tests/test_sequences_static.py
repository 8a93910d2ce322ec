"""The static decoder draws what the growing one draws, here on a CPU with torch.compile's simpler backends."""

import gc
import inspect
import shutil
import weakref

import pytest
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
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
from transformers.cache_utils import StaticLayer

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.growing import Growing, Prefilled
from fe_posttrain.sequences.sampling import complete
from fe_posttrain.sequences.scoring import score
from fe_posttrain.sequences.static import Static, why_not

PAD, EOS, LENGTH = 0, 1, 40
ENDS = [EOS, 2]
SIZES = {"vocab_size": 12, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None, "initializer_range": 0.3}
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FEWER = {"num_attention_heads": 4, "num_key_value_heads": 2}
BUILDERS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **LAYERS)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **LAYERS | FEWER)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **LAYERS | FEWER, head_dim=8)),
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
    own = {"smallest": 2, **own} if issubclass(kind, Static) else own
    decode = kind(model, found, LENGTH, **own)
    torch.manual_seed(seed)
    return complete(decode, Decoding(LENGTH), eos_token_ids=ENDS, pad_token_id=PAD), decode


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("prompts", [PROMPTS, EVEN], ids=["padded", "even"])
def test_both_decoders_draw_the_same(name, prompts):
    model = build(name)
    wanted, _ = draw(model, GrowingAlike, prompts)
    found, decode = draw(model, Watched, prompts, backend="eager")
    assert model.config._attn_implementation == "sdpa"  # as before
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
    """One graph for each batch size, so the forward is compiled whole; shorter calls take the start of the cache."""
    model, compiled = build(), []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    sizes, addresses = {len(PROMPTS)}, set()
    for seed in range(4):
        _, decode = draw(model, Watched, seed=seed, backend=backend)
        sizes.update(decode.sizes)
        addresses.add(tuple(layer.values.data_ptr() for layer in decode._cache.layers))
        assert len(compiled) == len(sizes)
    _, decode = draw(model, Static, PROMPTS[:5], backend=backend)
    addresses.add(tuple(layer.values.data_ptr() for layer in decode._cache.layers))
    assert len(addresses) == 1


def test_a_larger_batch_gets_a_larger_cache():
    model = build()
    draw(model, Static, PROMPTS[:5], backend="eager")
    drawn, _ = draw(model, Static, backend="eager")
    for row, known in zip(drawn.log_probs, law(model, drawn), strict=True):
        assert row == pytest.approx(known, abs=2e-5)


def test_what_is_kept_dies_with_the_model():
    model = build()
    _, decode = draw(model, Static, backend="eager")
    kept = weakref.ref(model), weakref.ref(decode._cache.layers[0].keys)
    del model, decode
    gc.collect()
    assert [x() for x in kept] == [None, None]


def test_a_nan_between_two_looks_is_named_at_its_token():
    """After two prompt tokens, the fifth drawn one stands at position 6: the law of the sixth is NaN."""
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.wpe.weight[6] = float("nan")
    with torch.no_grad():
        decode = Static(model, Prefilled(model, [[5, 6]] * 8, PAD), LENGTH, backend="eager")
    with pytest.raises(FloatingPointError, match="NaN at token 6 of the completion"):
        complete(decode, Decoding(LENGTH), eos_token_ids=[99], pad_token_id=PAD)


def test_mixed_precision_by_accelerate(monkeypatch):
    """The forward that accelerate wraps is compiled whole too, and its cache has the precision of its keys."""
    for state in (PartialState, AcceleratorState):  # which other tests may have set for the whole process
        monkeypatch.setattr(state, "_shared_state", {})
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    model = accelerator.unwrap_model(accelerator.prepare_model(build("gpt2")))
    drawn, decode = draw(model, Watched, backend=backend)
    assert len(graphs) == len({len(PROMPTS), *decode.sizes})
    assert decode._cache.layers[0].keys.dtype == torch.bfloat16
    for row, known in zip(drawn.log_probs, law(model, drawn), strict=True):
        assert row == pytest.approx(known, abs=0.1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_draws_the_same():
    """One real compilation: one layer, one batch size."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES, **LAYERS | FEWER | {"num_hidden_layers": 1}, head_dim=8)).eval()
    wanted, _ = draw(model, GrowingAlike, PROMPTS[:3])
    found, _ = draw(model, Static, PROMPTS[:3])
    assert found.completion_ids == wanted.completion_ids
    for row, known in zip(found.log_probs, wanted.log_probs, strict=True):
        assert row == pytest.approx(known, abs=2e-5)


def test_a_cpu_decodes_over_the_growing_cache():
    model = build()
    assert "CUDA" in why_not(model, Prefilled(model, PROMPTS, PAD), LENGTH)


def test_private_names_of_transformers_are_as_they_must_be():
    model, layer = build(), StaticLayer(max_cache_len=4)
    assert model._can_compile_fullgraph and model.config._attn_implementation == "sdpa"
    assert {"keys", "values", "cumulative_length", "is_initialized", "max_cache_len"} <= set(vars(layer))
    assert "self.cumulative_length.add_(kv_length)" in inspect.getsource(StaticLayer.update)
    assert "guard" in inspect.signature(torch._dynamo.mark_static_address).parameters
    assert isinstance(torch._dynamo.config.recompile_limit, int)
