"""Draw completions with the log-prob of every token, after temperature and truncation: the law they were drawn from."""

import logging
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.growing import Growing, Prefilled
from fe_posttrain.sequences.static import Static, why_not

_BLOCK = 128  # tokens
_WIDE = 4096  # tokens of a vocabulary beyond which blocks pay


logger = logging.getLogger(__name__)
_say = lru_cache(maxsize=None)(logger.warning)  # once each


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
    limits: list[int] | None = None,
    compiled: bool = False,
) -> Drawn:
    """Draw one completion per row, with the log-prob of every token under the sampler.

    A prompt that stands in consecutive rows (a group) is prefilled once and its cache repeated. Rows that have
    finished are dropped from the batch once an eighth of it has.

    Args:
        model: causal language model, unwrapped, with a plain cache (`can_sample`).
        prompt_ids: N lists of token ids.
        decoding: temperature, truncation and length.
        eos_token_ids: tokens that end a completion; the token itself belongs to the completion.
        limits: N, the most tokens of each row, 1 or more; default `decoding.max_new_tokens`, which bounds them anyway.
        compiled: on a GPU, decode by a compiled forward over a cache of fixed size (`static`); its random numbers, and
            so its draws, are others. Where that cannot be it is said once.

    Raises:
        FloatingPointError: the model's probabilities are NaN.
    """
    own = {"eos_token_ids": eos_token_ids, "pad_token_id": pad_token_id, "limits": limits}
    with _casting_once(next(model.parameters()).device.type):
        found = Prefilled(model, prompt_ids, pad_token_id)
        if compiled and (reason := why_not(model, found, decoding.max_new_tokens)):
            _say(f"compiled decoding: {reason}; decoding as without")
        if not compiled or reason:
            return complete(Growing(model, found, decoding.max_new_tokens), decoding, **own)
    return complete(Static(model, found, decoding.max_new_tokens), decoding, **own)


def _casting_once(device_type: str) -> torch.autocast:
    """Autocast as it is. A forward that autocasts inside keeps the weights it cast until this ends, not until it
    returns: for each call of `sample`, not for each token."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    return torch.autocast(device_type, dtype=dtype, enabled=enabled)


@torch.no_grad()
def complete(
    decode: Growing | Static,
    decoding: Decoding,
    *,
    eos_token_ids: list[int],
    pad_token_id: int,
    limits: list[int] | None = None,
) -> Drawn:
    """`sample` from prompts that were forwarded.

    Rows are looked at every `decode.LOOKS` tokens; what is drawn meanwhile for rows that have finished is cut off.
    """
    logits, device = decode.logits, decode.logits.device
    warpers, eos = decoding.warpers(), torch.tensor(eos_token_ids, device=device)
    n, length = len(logits), decoding.max_new_tokens
    most = None if limits is None else torch.tensor(limits, device=device)
    tokens = torch.full((n, length), pad_token_id, device=device)
    log_probs, entropies = torch.zeros(2, n, length, device=device)
    lengths = torch.full((n,), length, device=device)
    rows = torch.arange(n, device=device)  # which completion each row of the running batch belongs to
    running = torch.ones(n, dtype=torch.bool, device=device)
    broken = torch.zeros((), device=device)  # sum of the entropies that count: NaN once one of them is
    for t in range(length):
        step_log_probs = warpers(None, logits.float()).log_softmax(-1)
        drawn, entropy = _draw(step_log_probs)
        tokens[rows, t], entropies[rows, t] = drawn[:, 0], entropy
        log_probs[rows, t] = step_log_probs.gather(1, drawn)[:, 0]
        broken += torch.where(running, entropy, 0.0).sum()
        ends = running & (drawn == eos).any(1)
        if most is not None:
            ends |= running & (most[rows] <= t + 1)
        lengths[rows] = torch.where(ends, t + 1, lengths[rows])
        running &= ~ends
        if t + 1 == length or (t + 1) % decode.LOOKS == 0:
            n_running, total = torch.stack([running.sum(), broken]).tolist()
            _require_whole(total, entropies)
            if n_running == 0 or t + 1 == length:
                break
            size = decode.size(int(n_running))
            if size < len(rows):
                keep = running.byte().argsort(descending=True, stable=True)[:size]
                decode.keep(keep)
                rows, running, drawn = rows[keep], running[keep], drawn[keep]
        logits = decode.next(drawn)
    ends = lengths.tolist()
    return Drawn(
        *([row[:end] for row, end in zip(x.tolist(), ends, strict=True)] for x in (tokens, log_probs, entropies))
    )


def _require_whole(total: float, entropies: Tensor) -> None:
    """Refuse a NaN among the summed `total` of entropies (N, T)."""
    if total != total:
        first = int(entropies.isnan().any(0).int().argmax())
        raise FloatingPointError(
            f"sampler: the model's probabilities are NaN at token {first + 1} of the completion; its weights or its "
            "precision are broken; look at the last good checkpoint and lower learning_rate"
        )


def _draw(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """One token (rows, 1) of each law (rows, V), and the entropy of each law (rows,), NaN where the law is.

    A large vocabulary is drawn from in two steps, a block of tokens and then a token of it: the sums over blocks cost
    less than the running sum over all tokens.
    """
    probs = log_probs.exp()
    # A token that is cut off has log-prob -inf and adds nothing.
    entropy = -(probs * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)
    vocabulary = probs.shape[1]
    if vocabulary <= _WIDE:
        return _pick(probs), entropy
    blocks = torch.nn.functional.pad(probs, (0, -vocabulary % _BLOCK)).unflatten(1, (-1, _BLOCK))
    block = _pick(blocks.sum(-1))
    inside = blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK))[:, 0]
    return (block * _BLOCK + _pick(inside)).clamp(max=vocabulary - 1), entropy


def _pick(weights: Tensor) -> Tensor:
    """Index (rows, 1) at which the weights (rows, n), summed in float64, first pass a uniform share of their total.

    One random number a row; `torch.multinomial` draws one a token, which costs much at a large vocabulary.
    """
    summed = weights.cumsum(-1, dtype=torch.float64)
    total = summed[:, -1:]
    picked = torch.searchsorted(summed, total * torch.rand_like(total), right=True)
    return picked.clamp(max=weights.shape[1] - 1)
