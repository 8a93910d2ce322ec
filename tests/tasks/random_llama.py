"""A model of random weights, small enough to enumerate."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fe_posttrain.tasks.tokenizer import SYMBOLS


def random_llama(seed: int, spread: float = 1.0) -> LlamaForCausalLM:
    """A one-layer model of random weights, wide enough apart that its next-token laws are far from uniform."""
    config = LlamaConfig(
        vocab_size=len(SYMBOLS),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=SYMBOLS.index("<eos>"),
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=spread)
    return model
