"""Decoding over a cache that grows with each token: any device, nothing compiled."""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from fe_posttrain.sequences.models import empty_cache
from fe_posttrain.sequences.prompts import pad_left, positions


class _RoomyLayer(DynamicLayer):
    """A growing cache layer with room for `spare` tokens to come; DynamicLayer copies all of itself for each token."""

    spare = 0
    _room: tuple[Tensor, Tensor] | None = None  # what `keys` and `values` are the filled part of

    def batch_select_indices(self, indices: Tensor) -> None:
        """As DynamicLayer's."""
        super().batch_select_indices(indices)
        self._room = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """As DynamicLayer's."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < stop:
            before = self.keys, self.values
            self._room = tuple(
                new.new_empty(*new.shape[:-2], stop + self.spare, new.shape[-1]) for new in (key_states, value_states)
            )
            if start:
                for room, kept in zip(self._room, before, strict=True):
                    room[..., :start, :] = kept
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., start:stop, :] = new
        self.keys, self.values = (room[..., :stop, :] for room in self._room)
        return self.keys, self.values


class Prefilled:
    """Prompts forwarded once each; one that stands in consecutive rows (a group) is forwarded for all of them.

    Attributes:
        cache: keys and values of the n different prompts, padded on the left to P tokens.
        owner: (N,) which of them each row has.
        logits: (N, V) of the first token of each row's completion.
        lengths: (N, 1) tokens of each row's prompt.
        mask: (N, P), 0 where a prompt is padded; None where none is.
    """

    def __init__(self, model, prompt_ids: list[list[int]], pad_token_id: int):
        device = next(model.parameters()).device
        starts = [i == 0 or prompt_ids[i] != prompt_ids[i - 1] for i in range(len(prompt_ids))]
        self.owner = torch.tensor(starts, device=device).cumsum(0) - 1
        prompts = [prompt for prompt, new in zip(prompt_ids, starts, strict=True) if new]
        ids, mask = pad_left(prompts, pad_token_id, device)
        padding = {} if min(map(len, prompts)) == ids.shape[1] else {"attention_mask": mask}
        self.cache = empty_cache(model)
        self.cache.layers = [_RoomyLayer() for _ in self.cache.layers]
        inputs = {"input_ids": ids, "position_ids": positions(mask), **padding}
        out = model(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.logits = out.logits[:, -1][self.owner]
        self.lengths = mask.sum(-1, keepdim=True)[self.owner]
        self.mask = mask[self.owner] if padding else None


class Growing:
    """Logits of the next token of every row, over a cache that grows with each."""

    LOOKS = 1  # tokens between two looks at which rows run
    SPARE = 64  # tokens that the cache has room for beyond its own

    def __init__(self, model, found: Prefilled, max_new_tokens: int):
        self._model, self._cache, self._mask, self._lengths = model, found.cache, found.mask, found.lengths
        self._cache.batch_select_indices(found.owner)
        for layer in self._cache.layers:
            layer.spare = min(self.SPARE, max_new_tokens)
        self.logits = found.logits

    def size(self, running: int) -> int:
        """Rows to go on with when so many run: all of the batch until an eighth of it has finished."""
        rows = len(self._lengths)
        return running if running <= rows * 7 // 8 else rows

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch alone."""
        self._cache.batch_select_indices(rows)
        self._lengths = self._lengths[rows]
        self._mask = None if self._mask is None else self._mask[rows]

    def next(self, drawn: Tensor) -> Tensor:
        """Logits (rows, V) after one more token (rows, 1)."""
        inputs = {"input_ids": drawn, "position_ids": self._lengths}
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(drawn), 1)], dim=1)
            inputs["attention_mask"] = self._mask
        out = self._model(**inputs, past_key_values=self._cache, use_cache=True)
        self._lengths = self._lengths + 1
        return out.logits[:, -1]
