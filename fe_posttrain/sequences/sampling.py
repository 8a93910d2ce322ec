"""Draw completions with the log-prob of every token, after temperature and truncation: the law they were drawn from."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.models import empty_cache
from fe_posttrain.sequences.prompts import pad_left, positions


class Drawn(NamedTuple):
    """N completions: lists of token ids, and as many log-probs and entropies of the law of each token, in nats."""

    completion_ids: list[list[int]]
    log_probs: list[list[float]]
    entropies: list[list[float]]


@torch.no_grad()
def sample(
    model,
    prompt_ids: list[list[int]],
    decoding: Decoding,
    *,
    eos_token_ids: list[int],
    pad_token_id: int,
) -> Drawn:
    """Draw one completion per row, with the log-prob of every token under the sampler.

    A prompt that stands in consecutive rows (a group) is prefilled once and its cache repeated. Rows that have
    finished are dropped from the batch once an eighth of it has.

    Args:
        model: causal language model, unwrapped, with a plain cache (`can_sample`).
        prompt_ids: N lists of token ids.
        decoding: temperature, truncation and length.
        eos_token_ids: tokens that end a completion; the token itself belongs to the completion.

    Raises:
        FloatingPointError: the model's probabilities are NaN.
    """
    decode = _Decode(model, prompt_ids, pad_token_id)
    logits, device = decode.logits, decode.logits.device
    warpers, eos = decoding.warpers(), torch.tensor(eos_token_ids, device=device)
    n, length = len(prompt_ids), decoding.max_new_tokens
    tokens = torch.full((n, length), pad_token_id, device=device)
    log_probs, entropies = torch.zeros(2, n, length, device=device)
    lengths = torch.full((n,), length, device=device)
    rows = torch.arange(n, device=device)  # which completion each row of the running batch belongs to
    for t in range(length):
        step_log_probs = warpers(None, logits.float()).log_softmax(-1)
        drawn, entropies[rows, t] = _draw(step_log_probs, t)
        tokens[rows, t] = drawn[:, 0]
        log_probs[rows, t] = step_log_probs.gather(1, drawn)[:, 0]
        running = ~torch.isin(drawn[:, 0], eos) & (lengths[rows] == length)
        lengths[rows[~running]] = lengths[rows[~running]].clamp(max=t + 1)
        n_running = int(running.sum())
        if n_running == 0 or t + 1 == length:
            break
        if n_running <= len(rows) * 7 // 8:
            keep = running.nonzero()[:, 0]
            decode.keep(keep)
            rows, drawn = rows[keep], drawn[keep]
        logits = decode.next(drawn)
    ends = lengths.tolist()
    return Drawn(
        *([row[:end] for row, end in zip(x.tolist(), ends, strict=True)] for x in (tokens, log_probs, entropies))
    )


def _draw(log_probs: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """One token (rows, 1) of each law (rows, V), and the entropy of each law (rows,).

    The token is where the law's summed probabilities, in float64, first pass a uniform draw.

    One random number a row: drawing by one number a token, as `torch.multinomial` does, takes longer than the whole
    model at a large vocabulary.
    """
    probs = log_probs.exp()
    summed = probs.cumsum(-1, dtype=torch.float64)
    total = summed[:, -1:]
    if bool(total.isnan().any()):
        raise FloatingPointError(
            f"sampler: the model's probabilities are NaN at token {t + 1} of the completion; its weights or its "
            "precision are broken; look at the last good checkpoint and lower learning_rate"
        )
    drawn = torch.searchsorted(summed, total * torch.rand_like(total), right=True)
    # A token that is cut off has log-prob -inf and adds nothing.
    entropy = -(probs * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)
    return drawn.clamp(max=log_probs.shape[1] - 1), entropy


class _RoomyLayer(DynamicLayer):
    """A growing cache layer with room for tokens to come; DynamicLayer copies all of itself for each token."""

    ROOM = 64
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
                new.new_empty(*new.shape[:-2], stop + self.ROOM, new.shape[-1]) for new in (key_states, value_states)
            )
            if start:
                for room, kept in zip(self._room, before, strict=True):
                    room[..., :start, :] = kept
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[..., start:stop, :] = new
        self.keys, self.values = (room[..., :stop, :] for room in self._room)
        return self.keys, self.values


class _Decode:
    """Logits of the next token of every row, over a cache that grows with each."""

    def __init__(self, model, prompt_ids: list[list[int]], pad_token_id: int):
        device = next(model.parameters()).device
        starts = [i == 0 or prompt_ids[i] != prompt_ids[i - 1] for i in range(len(prompt_ids))]
        owner = torch.tensor(starts, device=device).cumsum(0) - 1
        prompts = [prompt for prompt, new in zip(prompt_ids, starts, strict=True) if new]
        ids, mask = pad_left(prompts, pad_token_id, device)
        self._model, self._cache = model, empty_cache(model)
        self._cache.layers = [_RoomyLayer() for _ in self._cache.layers]
        self._mask = None if bool(mask.all()) else mask
        out = self._call(input_ids=ids, position_ids=positions(mask), logits_to_keep=1)
        self._cache.batch_select_indices(owner)
        self.logits = out[owner]
        self._lengths = mask.sum(-1, keepdim=True)[owner]
        self._mask = None if self._mask is None else self._mask[owner]

    def _call(self, **inputs) -> Tensor:
        padding = {} if self._mask is None else {"attention_mask": self._mask}
        return self._model(**inputs, **padding, past_key_values=self._cache, use_cache=True).logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch alone."""
        self._cache.batch_select_indices(rows)
        self._lengths = self._lengths[rows]
        self._mask = None if self._mask is None else self._mask[rows]

    def next(self, drawn: Tensor) -> Tensor:
        """Logits (rows, V) after one more token (rows, 1)."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(drawn), 1)], dim=1)
        logits = self._call(input_ids=drawn, position_ids=self._lengths)
        self._lengths = self._lengths + 1
        return logits
