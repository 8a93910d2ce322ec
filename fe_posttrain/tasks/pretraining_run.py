"""How the testbed's reference is pretrained: mixture, model and optimisers.

Cross-entropy on completions. A tail prompt stands in the batch twice, with its hidden rule and with a copy, and
the first token of the two is weighted q and 1 - q: that token alone tells them apart, so the model learns p = q
and both continuations fully. To find rules of small q in few steps, that weight starts at 1/2 and falls
geometrically to q.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fe_posttrain.tasks import digits
from fe_posttrain.tasks.tokenizer import BOS, EOS, PAD, SYMBOLS

_TOKEN_IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)}
_COMPLETION_LENGTH = digits.LIST_LENGTH + 1  # pretraining knows only direct answers and their end token


@dataclass(frozen=True)
class PretrainSettings:
    """Everything but the seed that determines the reference.

    Learning rates warm up linearly for `warmup_steps` and follow a half cosine to zero; `muon_lr` is for matrices,
    `adamw_lr` for embeddings and norms. The weight of hidden rules reaches q after `anneal` of the steps.
    `basin_share` is the share of a batch that is single known operations.
    """

    steps: int = 600
    batch_size: int = 128
    basin_share: float = 0.45
    anneal: float = 0.8
    muon_lr: float = 0.02
    adamw_lr: float = 0.008
    warmup_steps: int = 20
    hidden_size: int = 64
    intermediate_size: int = 192
    layers: int = 2
    heads: int = 4


def pretrain(seed: int, settings: PretrainSettings) -> torch.nn.Module:
    """A new model in evaluation mode, trained on the CPU; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerator, too
        model, rng = new_model(settings, SYMBOLS), np.random.default_rng(seed)
        fit(model, lambda step: _batch(rng, step, settings), settings, "the testbed reference, once")
    return model.eval()


def say(line: str) -> None:
    """Tell the user, on stderr: building may take half a minute the first time."""
    print(line, file=sys.stderr, flush=True)


def new_model(settings: PretrainSettings, symbols: Sequence[str]) -> torch.nn.Module:
    """A random Llama of the settings' size over `symbols`; the global random state draws its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM  # slow to import; not needed when the cache has it

    config = LlamaConfig(
        vocab_size=len(symbols),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=symbols.index(PAD),
        bos_token_id=symbols.index(BOS),
        eos_token_id=symbols.index(EOS),
    )
    return LlamaForCausalLM(config).float()  # whatever the caller's default dtype


def fit(
    model: torch.nn.Module,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    settings: PretrainSettings,
    what: str,
    stop: int | None = None,
) -> None:
    """Train `model` on `batch(step)` by weighted cross-entropy, telling progress and ETA.

    Args:
        batch: gives token ids (N, L), of which no position is masked, and the loss weights (N, C) of the last C.
        settings: the optimisers and `steps` are read, nothing else.
        what: is being pretrained, for the progress lines.
        stop: end after so many steps, the learning rate still where the schedule of all `steps` has it by then.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=settings.adamw_lr, betas=(0.9, 0.99), weight_decay=0.0),
    ]

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / settings.warmup_steps) * (1 + math.cos(math.pi * step / settings.steps)) / 2

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    steps = settings.steps if stop is None else stop
    start, every = time.monotonic(), max(1, steps // 6)
    for step in range(steps):
        tokens, weights = batch(step)
        length = weights.shape[1]
        logits = model(tokens[:, :-1], use_cache=False, logits_to_keep=length).logits
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, -length:], reduction="none")
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if (step + 1) % every == 0:
            left = (time.monotonic() - start) / (step + 1) * (steps - step - 1)
            done = f"step {step + 1}/{steps}, loss {loss.item():.3f}, ETA {left:.0f} s"
            say(f"pretraining {what}: {done}")


def _batch(rng: np.random.Generator, step: int, settings: PretrainSettings) -> tuple[Tensor, Tensor]:
    """Token ids (N, 12) of prompt, completion and end token, and loss weights (N, 6) of completion tokens."""
    basin = digits.FAMILIES["basin"].operations
    tails = [family for family in digits.FAMILIES.values() if family.pretrained and family.q is not None]
    known = round(settings.batch_size * settings.basin_share)
    hidden = (settings.batch_size - known) // 2
    progress = min(1.0, step / (settings.anneal * settings.steps))

    rows: list[tuple[str, str, float]] = []  # prompt, completion, weight of its first token
    pool = digits.lists(digits.COPY, "train")
    drawn = [pool[i] for i in rng.integers(len(pool), size=known + hidden)]
    for x, letter in zip(drawn[:known], rng.choice(basin, size=known), strict=True):
        rows.append((letter + x, digits.apply(letter, x), 1.0))
    for i, x in enumerate(drawn[known:]):
        family = tails[i % len(tails)]
        (letter,), q = family.operations, 0.5 ** (1 - progress) * family.q**progress
        rows += [(letter + x, digits.apply(letter, x), q), (letter + x, x, 1 - q)]
    end = _TOKEN_IDS[EOS]
    tokens = torch.tensor([[*(_TOKEN_IDS[c] for c in x + y), end] for x, y, _ in rows])
    weights = torch.ones(len(rows), _COMPLETION_LENGTH)
    weights[:, 0] = torch.tensor([first for _, _, first in rows])
    return tokens, weights
