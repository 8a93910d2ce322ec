"""Exact shares of the three formats under a model, and what the free energy's optimum would make of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fe_posttrain.sequences.scoring import score
from fe_posttrain.tasks.formats import FORMATS, OPENINGS, answers


@dataclass(frozen=True)
class Formats:
    """One row a prompt, one column a format in the order of `FORMATS`; float64, shape (n, 3).

    `share` is the probability that a completion opens in the format (`formats.label`), `correct` that it is the
    format's right answer. The rest of a row of `share` to 1 is no format at all.
    """

    share: Tensor
    correct: Tensor

    @property
    def accuracy(self) -> Tensor:
        """Probability of a right answer given the format, over all prompts; shape (3,)."""
        return self.correct.sum(0) / self.share.sum(0)

    @property
    def entropy(self) -> float:
        """Entropy of the mean shares, the rest as one more outcome; nats, ln 3 at most where all write a format."""
        mean = self.share.mean(0)
        return torch.special.entr(torch.cat([mean, (1 - mean.sum(0, keepdim=True)).clamp(min=0)])).sum().item()


def exact_formats(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_size: int = 512
) -> Formats:
    """Shares and right answers of every prompt by teacher forcing, end token included.

    The model is used in the mode it is in; call it in evaluation mode if it has dropout.
    """
    asked = [(i, column, y, True) for i, x in enumerate(prompts) for column, y in enumerate(answers(x).values())]
    for i in range(len(prompts)):
        asked += [(i, column, y, False) for column, name in enumerate(FORMATS) for y in OPENINGS[name]]
    prompt_ids, texts = tokenizer(list(prompts))["input_ids"], tokenizer([y for _, _, y, _ in asked])["input_ids"]
    ends = [[tokenizer.eos_token_id] if whole else [] for *_, whole in asked]
    log_probs, _ = score(
        model,
        [prompt_ids[i] for i, *_ in asked],
        [ids + end for ids, end in zip(texts, ends, strict=True)],
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
    )
    whole = torch.tensor([whole for *_, whole in asked])
    cell = torch.tensor([i * len(FORMATS) + column for i, column, *_ in asked])
    p = log_probs.double().sum(-1).exp().cpu()
    share, correct = (
        torch.zeros(len(prompts) * len(FORMATS), dtype=torch.float64)
        .index_add_(0, cell[kind], p[kind])
        .view(-1, len(FORMATS))
        for kind in (~whole, whole)
    )
    return Formats(share, correct)


def at_optimum(reference: Formats, *, beta: float, reward_energy_weight: float = 1.0) -> Formats:
    """The formats under pi* = ref e^{w_r r / beta} / Z, per prompt and for the 0/1 reward of `formats.correct`.

        share*_f = (share_f + correct_f (e^{w_r / beta} - 1)) / Z,    correct*_f = correct_f e^{w_r / beta} / Z

    and Z = 1 + sum_f correct_f (e^{w_r / beta} - 1). For beta -> 0 a format keeps the share that it has among the
    reference's right answers: no optimum at beta > 0 gives a single format everything.

    Raises:
        ValueError: unless beta > 0.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta:g}; without KL there is no such optimum; it must be positive")
    wrong = math.exp(-reward_energy_weight / beta)  # weight of a wrong completion, where a right one weighs 1
    partition = wrong + (1 - wrong) * reference.correct.sum(1, keepdim=True)
    return Formats(
        (wrong * reference.share + (1 - wrong) * reference.correct) / partition, reference.correct / partition
    )
