"""Names for weights: equal where they are equal bit for bit."""

import hashlib
from collections.abc import Iterable

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor


def hash_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of weights in the order of their names, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_hash(model: torch.nn.Module) -> str:
    """A name for the weights that a model computes with: adapters that are off are left out."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    active = {f".{name}." for layer in layers if not layer.disable_adapters for name in layer.active_adapters}
    counts = (
        (name, weight)
        for name, weight in model.named_parameters()
        if "lora_" not in name or any(adapter in name for adapter in active)
    )
    return hash_of(counts)[:16]
