"""Prompts forwarded once, and their completions forwarded against the keys and values that were left."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from fe_posttrain.sequences.models import empty_cache


@dataclass(frozen=True)
class Groups:
    """Which of N rows have the same prompt as the row before.

    `first` (n,): the first row of each prompt; `owner` (N,): which of the n prompts each row has.
    """

    first: Tensor
    owner: Tensor

    @classmethod
    def of(cls, prompt_ids: Tensor, prompt_mask: Tensor) -> "Groups":
        """Groups of left-padded prompts (N, P)."""
        shown = prompt_ids.masked_fill(prompt_mask == 0, -1)
        new = torch.ones(len(shown), dtype=torch.bool, device=shown.device)
        new[1:] = (shown[1:] != shown[:-1]).any(1)
        return cls(new.nonzero()[:, 0], new.cumsum(0) - 1)

    def __len__(self) -> int:
        return len(self.first)


def pad_left(rows: list[list[int]], pad_token_id: int, device) -> tuple[Tensor, Tensor]:
    """Ids and mask (N, P) of lists of token ids."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def without_padding(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Left-padded ids and mask without the columns that are padding in every row."""
    first = int(mask.any(0).int().argmax())
    return ids[:, first:], mask[:, first:]


def positions(mask: Tensor) -> Tensor:
    """(N, P) positions of tokens padded on the left, counted from the first real one."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


class SharedPrompts:
    """n different prompts (n, P), forwarded once by `model`; with gradient where it is enabled.

    Rows of the same prompt read repeated keys and values, so autograd sums their gradients into one backward of the
    prompt. The last token of a prompt is left to its completions: what follows it is their first token.
    """

    def __init__(self, model, prompt_ids: Tensor, prompt_mask: Tensor):
        self._model = model
        self._last = prompt_ids[:, -1:]
        self._lengths = prompt_mask.sum(-1, keepdim=True)
        self._mask = None if bool(prompt_mask.all()) else prompt_mask
        self._cache = empty_cache(model)
        if prompt_ids.shape[1] > 1:
            before, mask = prompt_ids[:, :-1], prompt_mask[:, :-1]
            padding = {} if self._mask is None else {"attention_mask": mask}
            model(
                input_ids=before,
                position_ids=positions(mask),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
                **padding,
            )

    def inputs(self, owner: Tensor, completion_ids: Tensor) -> dict:
        """What to call the model with so that its output at position t is the law of completion token t.

        Args:
            owner: (b,) which prompt each row has.
            completion_ids: (b, T) right-padded.
        """
        rows, width = completion_ids.shape
        found = {
            "input_ids": torch.cat([self._last[owner], completion_ids[:, :-1]], dim=1),
            "position_ids": self._lengths[owner] - 1 + torch.arange(width, device=owner.device),
            "past_key_values": self._repeated(owner),
        }
        if self._mask is not None:  # what pads completions stands after everything that is scored
            found["attention_mask"] = torch.cat([self._mask[owner], self._mask.new_ones(rows, width - 1)], dim=1)
        return found

    def _repeated(self, owner: Tensor) -> DynamicCache:
        cache = empty_cache(self._model)
        for kept, layer in zip(self._cache.layers, cache.layers, strict=True):
            if kept.is_initialized:
                layer.lazy_initialization(kept.keys, kept.values)
                layer.keys, layer.values = kept.keys[owner], kept.values[owner]
        return cache


def call_in_tokens(device) -> int:
    """Tokens whose forward takes about as long as what a call of the model costs beside them.

    A guess for small models, where it matters: 128 on a CPU, 2048 on a GPU.
    """
    return 128 if torch.device(device).type == "cpu" else 2048


def chunks_by_length(lengths: list[int], call: int) -> list[list[int]]:
    """Rows dealt into chunks of similar length, so that padding and the number of forwards cost least together.

    Minimises the sum over chunks of (rows x longest) + `call`, over all ways to cut the rows sorted by length.

    Args:
        lengths: tokens of each row.
        call: what one more forward is taken to cost, in tokens.

    Returns:
        Row numbers of each chunk, in order; chunks of longer rows first.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest = np.array([lengths[i] for i in order])
    if longest.sum() + call > len(order) * longest[0]:  # even without any padding two forwards would cost more
        return [list(range(len(lengths)))]
    best, cut = [0.0], [0]
    for end in range(1, len(order) + 1):  # best[end]: cost of the first `end` rows, the last chunk from cut[end] on
        costs = np.array(best) + (end - np.arange(end)) * longest[:end] + call
        cut.append(int(costs.argmin()))
        best.append(float(costs.min()))
    chunks, end = [], len(order)
    while end:
        chunks.insert(0, sorted(order[cut[end] : end]))
        end = cut[end]
    return chunks
