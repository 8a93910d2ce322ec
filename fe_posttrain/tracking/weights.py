"""Kept copies of a model's trainable weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class KeptWeights:
    """A copy of the trainable weights of an unwrapped model, as they are now."""

    def __init__(self, model: torch.nn.Module):
        self._weights = {name: weight.detach().clone() for name, weight in _trainable(model)}

    @contextmanager
    def swapped_in(self, model: torch.nn.Module) -> Iterator[None]:
        """Inside, `model` has the kept weights; afterwards its own, the very same tensors."""
        own = {name: weight.data for name, weight in _trainable(model)}
        try:
            for name, weight in _trainable(model):
                weight.data = self._weights[name]
            yield
        finally:
            for name, weight in _trainable(model):
                weight.data = own[name]

    def save(self, path: Path) -> None:
        """As safetensors."""
        save_file({name: weight.contiguous() for name, weight in self._weights.items()}, path)

    def load(self, path: Path) -> None:
        """Take back what `save` wrote, onto the devices in use."""
        kept = load_file(path)
        self._weights = {name: kept[name].to(weight.device) for name, weight in self._weights.items()}


def _trainable(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
