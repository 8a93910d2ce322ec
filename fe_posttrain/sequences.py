"""Sample completions with their log-probs, and score given ones. The one place that does either.

Shapes: N rows, P the longest prompt, T the longest completion, V the vocabulary. Prompts are padded on the
left, completions on the right. Log-probs are natural logarithms in float32, taken after temperature and
truncation: they are the law that the tokens were really drawn from (the *sampler*).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Decoding:
    """The declared decoding: what every log-prob of a sampler, and every support statement, is relative to.

    `temperature` divides the logits; `top_k` (0: off), `top_p` (1: off) and `min_p` (None: off) truncate. The
    defaults draw from the model itself, which is the only setting whose samples follow the policy of F.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None

    @property
    def truncates(self) -> bool:
        """Whether some tokens are cut off, so that the sampler is not the (tempered) policy."""
        return self.top_p < 1.0 or self.top_k > 0 or bool(self.min_p)

    def warpers(self) -> LogitsProcessorList:
        """The same processors, in the same order, as `generate` applies."""
        chain = LogitsProcessorList()
        if self.temperature != 1.0:
            chain.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k > 0:
            chain.append(TopKLogitsWarper(top_k=self.top_k))
        if self.top_p < 1.0:
            chain.append(TopPLogitsWarper(top_p=self.top_p))
        if self.min_p:
            chain.append(MinPLogitsWarper(min_p=self.min_p))
        return chain


def can_sample(model) -> bool:
    """Whether `sample` handles this model: every layer keeps a plain, growing key-value cache.

    Sliding-window, hybrid and recurrent models do not; the trainer leaves their generation to TRL.
    """
    cache = DynamicCache(config=model.config.get_text_config())
    return not model.config.is_encoder_decoder and all(type(layer) is DynamicLayer for layer in cache.layers)


def _pad_left(rows: list[list[int]], pad_token_id: int, device) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_token_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.no_grad()
def sample(
    model,
    prompt_ids: list[list[int]],
    decoding: Decoding,
    *,
    eos_token_ids: list[int],
    pad_token_id: int,
) -> tuple[list[list[int]], list[list[float]]]:
    """Draw one completion per row, with the log-prob of every token under the sampler.

    A prompt that stands in consecutive rows (a group) is prefilled once and its cache repeated. Rows that have
    finished are dropped from the batch once at least half of it has.

    Args:
        model: causal language model, unwrapped, with a plain cache (`can_sample`).
        prompt_ids: N lists of token ids.
        decoding: temperature, truncation and length.
        eos_token_ids: tokens that end a completion; the token itself belongs to the completion.

    Returns:
        N lists of completion token ids, and N lists of as many log-probs (nats).

    Raises:
        FloatingPointError: the model's probabilities are NaN.
    """
    device = next(model.parameters()).device
    starts = [i == 0 or prompt_ids[i] != prompt_ids[i - 1] for i in range(len(prompt_ids))]
    owner = torch.tensor(starts, device=device).cumsum(0) - 1  # which prefilled prompt each row repeats
    ids, mask = _pad_left([p for p, new in zip(prompt_ids, starts, strict=True) if new], pad_token_id, device)

    cache = DynamicCache(config=model.config.get_text_config())
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)}
    logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache.batch_select_indices(owner)
    logits, mask = logits[owner], mask[owner]

    warpers, eos = decoding.warpers(), torch.tensor(eos_token_ids, device=device)
    n, length = len(prompt_ids), decoding.max_new_tokens
    tokens = torch.full((n, length), pad_token_id, device=device)
    log_probs = torch.zeros(n, length, device=device)
    lengths = torch.full((n,), length, device=device)
    rows = torch.arange(n, device=device)  # which completion each row of the running batch belongs to
    for t in range(length):
        step_log_probs = warpers(None, logits.float()).log_softmax(-1)
        if bool(step_log_probs.isnan().any()):
            raise FloatingPointError(
                f"sampler: the model's probabilities are NaN at token {t + 1} of the completion; its weights or its "
                "precision are broken; look at the last good checkpoint and lower learning_rate"
            )
        drawn = torch.multinomial(step_log_probs.exp(), 1)
        tokens[rows, t] = drawn[:, 0]
        log_probs[rows, t] = step_log_probs.gather(1, drawn)[:, 0]
        ended = torch.isin(drawn[:, 0], eos)
        lengths[rows[ended]] = lengths[rows[ended]].clamp(max=t + 1)
        running = lengths[rows] == length
        n_running = int(running.sum())
        if n_running == 0 or t + 1 == length:
            break
        if n_running <= len(rows) // 2:
            keep = running.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, mask, drawn = rows[keep], mask[keep], drawn[keep]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = model(
            input_ids=drawn,
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    ends = lengths.tolist()
    return (
        [row[:end] for row, end in zip(tokens.tolist(), ends, strict=True)],
        [row[:end] for row, end in zip(log_probs.tolist(), ends, strict=True)],
    )


@torch.no_grad()
def score(
    model,
    prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    *,
    pad_token_id: int,
    temperature: float = 1.0,
    batch_size: int = 256,
) -> tuple[Tensor, Tensor]:
    """Log-probs of given completions under `model`, by teacher forcing.

    Args:
        model: causal language model, unwrapped.
        prompt_ids, completion_ids: N lists of token ids each; completions hold their end token if they have one.
        temperature: divides the logits.

    Returns:
        log_probs (N, T) in nats, zero where masked, and mask (N, T), true on completion tokens.
    """
    device = next(model.parameters()).device
    width = max(len(row) for row in completion_ids)
    log_probs = torch.zeros(len(prompt_ids), width, device=device)
    mask = torch.zeros(len(prompt_ids), width, dtype=torch.bool, device=device)
    for start in range(0, len(prompt_ids), batch_size):
        stop = min(start + batch_size, len(prompt_ids))
        prompts, prompt_mask = _pad_left(prompt_ids[start:stop], pad_token_id, device)
        for row, completion in enumerate(completion_ids[start:stop], start=start):
            mask[row, : len(completion)] = True
        completions = torch.full((stop - start, width), pad_token_id, device=device)
        completions[mask[start:stop]] = torch.tensor(
            [token for row in completion_ids[start:stop] for token in row], device=device
        )
        attention = torch.cat([prompt_mask, mask[start:stop].long()], dim=1)
        logits = model(
            input_ids=torch.cat([prompts, completions], dim=1),
            attention_mask=attention,
            position_ids=_positions(attention),
            use_cache=False,
            logits_to_keep=width + 1,
        ).logits[:, :-1]
        scaled = logits.float() / temperature
        log_probs[start:stop] = scaled.log_softmax(-1).gather(-1, completions[..., None])[..., 0]
    return log_probs.masked_fill(~mask, 0.0), mask


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
