"""Names for weights: equal where they are equal bit for bit."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def hash_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of weights in the order of their names, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def weights_hash(model: torch.nn.Module) -> str:
    """A name for a model's weights, adapters left out: of the base where the adapter is off."""
    return hash_of((name, weight) for name, weight in model.named_parameters() if "lora_" not in name)[:16]
