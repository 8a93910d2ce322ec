"""Attention of one new token whose heads read shared keys and values where they stand.

Compiled, transformers' own repeats keys and values for every head that shares them, in each layer and for each token:
with two heads a key that writes twice the whole cache and reads it back.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "one_token_packed"


def attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, None]:
    """SDPA of a query (b, heads, 1, width), its heads as rows of the key heads (b, kv, T, width) that they share.

    Args:
        attention_mask: (b, 1, 1, T).

    Returns:
        (b, 1, heads, width), and no attention weights.
    """
    rows, heads, _, width = query.shape
    packed = query.reshape(rows, key.shape[1], -1, width)
    out = torch.nn.functional.scaled_dot_product_attention(
        packed, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return out.reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def one_token(config) -> Iterator[None]:
    """Inside, the model of this configuration attends by `attention`; afterwards as before."""
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
