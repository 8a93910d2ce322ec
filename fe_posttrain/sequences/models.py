"""What this room needs of a model: a plain cache, and evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def empty_cache(model) -> DynamicCache:
    """A cache for this model's keys and values, one layer for each of its own."""
    return DynamicCache(config=model.config.get_text_config())


def can_sample(model) -> bool:
    """Whether this room handles the model: every layer keeps a plain, growing key-value cache that starts empty.

    Sliding-window, hybrid and recurrent models do not, nor do adapters that put tokens before the prompt.
    """
    if model.config.is_encoder_decoder or getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", 0):
        return False
    return all(type(layer) is DynamicLayer for layer in empty_cache(model).layers)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every submodule is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
