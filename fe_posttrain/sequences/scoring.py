"""Log-probs of given completions under a model, by teacher forcing."""

import torch
from torch import Tensor

from fe_posttrain.sequences.models import can_sample
from fe_posttrain.sequences.prompts import Groups, SharedPrompts, pad_left, positions


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
    lengths = torch.tensor([len(row) for row in completion_ids], device=device)
    mask = torch.arange(width, device=device) < lengths[:, None]
    completions = torch.full(mask.shape, pad_token_id, device=device)
    completions[mask] = torch.tensor([token for row in completion_ids for token in row], device=device)
    shares, log_probs = can_sample(model), []
    for start in range(0, len(prompt_ids), batch_size):
        rows = slice(start, start + batch_size)
        prompts, prompt_mask = pad_left(prompt_ids[rows], pad_token_id, device)
        groups = Groups.of(prompts, prompt_mask)
        if shares and len(groups) < len(prompts):
            shared = SharedPrompts(model, prompts[groups.first], prompt_mask[groups.first])
            logits = model(**shared.inputs(groups.owner, completions[rows])).logits
        else:
            attention = torch.cat([prompt_mask, mask[rows].long()], dim=1)
            logits = model(
                input_ids=torch.cat([prompts, completions[rows]], dim=1),
                attention_mask=attention,
                position_ids=positions(attention),
                use_cache=False,
                logits_to_keep=width + 1,
            ).logits[:, :-1]
        scaled = logits.float() / temperature
        log_probs.append(scaled.log_softmax(-1).gather(-1, completions[rows, :, None])[..., 0])
    return torch.cat(log_probs).masked_fill(~mask, 0.0), mask
