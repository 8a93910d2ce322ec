"""Rollouts that start inside the demonstration of their prompt, and what of such a start is trained.

A completion is then prefix + continuation: the first l tokens of the demonstration y*, and what the policy draws after
them. The reward is that of the whole; the policy gradient and the KL run over the continuation:

    s    = w_r reward - beta sum_{t > l} (log pi - log ref),   A = s - mean of s over the other rows of the group
    loss = -1/N sum_rows [ sum_{t > l} A log pi(y_t) + sum_{t in U} A log pi(y*_t) + w sum_{t <= l} log pi(y*_t) ]

over the constant divisor; U the tokens of the prefix that `prefix_update` lets join (the 20 % of highest entropy under
the policy), w the `prefix_likelihood_weight`. N counts all rows, with a prefix or without. All rollouts of a prompt
start with the same tokens, or with none: the first `prefix_rollouts` of its group do.

Sources, and what is different here:

* UFT (Liu et al., arXiv 2505.16984, and its public code): l ~ Binomial(L, q), q a cosine from .95 to .05 over the first
  60 % of the run and 0 afterwards; w sum log pi of the hint; group-relative advantages. Its code draws 5 slices of the
  demonstration, not L tokens, adds a token *mean* of the hint per micro-batch with weight .001, divides advantages by
  their deviation and bounds the continuation alone; here each token is drawn for itself, the hint is summed like every
  term of F, and `max_completion_length` bounds prefix and continuation together.
* Prefix-RFT (Huang et al., arXiv 2507.01679, and its public code): one rollout of a group of 8 starts so; its length is
  uniform between a lower share, a cosine from 95 % to 5 %, and 95 %; its advantage is that of the group without
  deviation (Dr. GRPO); of its prefix the 20 % most uncertain tokens are trained. Here the share is the schedule's own,
  the 20 % are those of each prefix and not of a micro-batch, the baseline leaves the row itself out, and the prefix
  is not clipped by ranges of its own.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing

from fe_posttrain.sequences.sampling import Drawn
from fe_posttrain.training.finite import stop_unless_finite
from fe_posttrain.training.prefix_settings import share_at


def prefix_length(law: str, share: float, length: int, key: tuple[int, ...]) -> int:
    """Tokens of a demonstration of `length` that a rollout starts with.

        fixed      share * length, rounded (halves up)
        binomial   Binomial(length, share), drawn from `key` alone

    >>> prefix_length("fixed", 0.5, 5, ())
    3
    """
    if law == "binomial":
        return int(np.random.default_rng(key).binomial(length, share))
    return math.floor(share * length + 0.5)


def most_uncertain(entropies: Tensor, mask: Tensor, share: float) -> Tensor:
    """Which tokens (B, T) are among the `share` of each row's that have the highest entropy, at least one of a row.

    Args:
        entropies: (B, T) nats; what is masked is never read.
        mask: (B, T) bool, the tokens to choose from. Of equal entropies the earlier token goes first.
    """
    order = entropies.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
    wanted = (mask.sum(1, keepdim=True).double() * share - 1e-9).ceil()
    return (order.argsort(dim=1) < wanted) & mask


class Prefixes:
    """Decides for every generation of training which rows start inside their demonstration; evaluation has none.

    What it decides follows from seed, micro-step and dataset row alone: it is the same on every process and after a
    resume, and two rows of one prompt start alike.

    Args:
        trainer: ours; its sampler draws the continuations.
        demonstrations: number of a dataset row -> its prepared demonstration, prompt and completion in `input_ids`.

    Raises:
        ValueError: the trainer's rollouts are not drawn by our sampler, or nothing is left of any demonstration.
    """

    def __init__(self, trainer, demonstrations: dict[int, dict]):
        if trainer.rollout_func is not type(trainer)._rollout:
            raise ValueError(
                f"prefix_share: {trainer.args.prefix_share}; our own sampler must draw what follows a demonstration, "
                "and it does not under vLLM, tools, environments, a rollout_func, sharded weights, generation_kwargs, "
                "cache_implementation, repetition_penalty or continuous batching; leave these out, or prefix_share"
            )
        if not demonstrations:
            raise ValueError(
                f"max_length: {trainer.args.max_length}; no demonstration has a token left after its prompt, and "
                "prefix_share starts rollouts inside them; write a larger one"
            )
        self._trainer, self._args, self._demonstrations = trainer, trainer.args, demonstrations
        self._of_row: list[int | None] = []
        self._lengths: list[int] = []
        self._share = 0.0

    @property
    def in_force(self) -> bool:
        """Whether the generation at hand may hold rows with a prefix; the same on every process."""
        return self._share > 0

    def begin(self, dataset_rows: list[int | None], mode: str) -> None:
        """Before a generation of these rows of the dataset: what share is in force."""
        self._of_row = dataset_rows
        state = self._trainer.state
        self._share = share_at(self._args, state.global_step, state.max_steps) if mode == "train" else 0.0

    def draw(self, draw: Callable[..., Drawn], prompt_ids: list[list[int]]) -> tuple[Drawn, dict[str, list]]:
        """Completions, prefixes included, and what TRL is told of them beside.

        Prefix tokens were not drawn: their log-prob is 0 (q = 1), and TRL's mask of what the model wrote leaves them
        out.

        Args:
            draw: `sample`, given lists of token ids to continue and `limits`.
            prompt_ids: of this process's rows.
        """
        if not self.in_force:
            return draw(prompt_ids), {}
        starts = self._starts(prompt_ids)
        self._lengths = [len(start) for start in starts]
        most = self._args.max_completion_length
        drawn = draw(
            [prompt + start for prompt, start in zip(prompt_ids, starts, strict=True)],
            limits=[most - length for length in self._lengths],
        )
        rows = zip(starts, *drawn, strict=True)
        joined = [
            (start + ids, [0.0] * len(start) + log_probs, [0.0] * len(start) + entropies)
            for start, ids, log_probs, entropies in rows
        ]
        written = [
            [0] * length + [1] * len(ids) for length, ids in zip(self._lengths, drawn.completion_ids, strict=True)
        ]
        return Drawn(*map(list, zip(*joined, strict=True))), {"env_mask": written}

    def _starts(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """What each row of this process starts with, [] for those that start at their prompt's end."""
        first = self._trainer.accelerator.process_index * len(prompt_ids)
        found: list[list[int]] = []
        for i, (prompt, key) in enumerate(zip(prompt_ids, self._of_row, strict=True)):
            starts_so = self._may_start(first + i) and key in self._demonstrations
            found.append(self._start(prompt, key) if starts_so else [])
        return found

    def _may_start(self, row: int) -> bool:
        """Whether the row, numbered over all processes, is one of its group's that start inside a demonstration."""
        group, wanted = self._trainer.num_generations, self._args.prefix_rollouts
        return wanted is None or row % group < wanted

    def _start(self, prompt: list[int], key: int) -> list[int]:
        whole = self._demonstrations[key]["input_ids"]
        if whole[: len(prompt)] != prompt:
            raise ValueError(
                f"demonstration: that of train_dataset row {key} does not begin with the tokens of its prompt as "
                "rollouts have it; max_length cut it, or the tokenizer joins the two; raise max_length, or begin the "
                "completion at a token's start"
            )
        body = whole[len(prompt) :]
        ends = [i for i, token in enumerate(body) if token in self._trainer.eos_token_ids]
        body = body[: ends[0]] if ends else body
        drawn_from = (self._args.seed, self._trainer._step, key)
        length = prefix_length(self._args.prefix_law, self._share, len(body), drawn_from)
        return body[: min(length, self._args.max_completion_length - 1)]  # one token at least is the policy's own

    def arrange(self, batch: dict) -> None:
        """Mark prefixes in TRL's fresh batch, let the tokens that are to join the reward term do so, and record."""
        metrics = self._trainer._metrics["train"]
        metrics["prefix/share"].append(self._share)
        if not self.in_force:
            metrics["prefix/tokens"].append(0.0)
            return
        mask = batch["completion_mask"]
        lengths = torch.tensor(self._lengths, device=mask.device)
        inside = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
        batch["prefix_mask"] = inside & mask.bool()
        first = self._trainer.accelerator.process_index * len(lengths)
        may = sum(self._may_start(first + i) for i in range(len(lengths)))
        counted = self._trainer.accelerator.gather(torch.stack([lengths.sum(), lengths.new_tensor(may)])[None]).sum(0)
        metrics["prefix/tokens"].append((counted[0] / counted[1]).item())
        if self._args.prefix_update == "uncertain" and inside.any():
            entropies = self._entropies(batch, inside)
            chosen = most_uncertain(entropies, inside, self._args.prefix_update_share)
            batch["tool_mask"] = batch["tool_mask"].masked_fill(chosen, 1)
            for row, length in enumerate(self._lengths):
                self._trainer._drawn_entropies[row][:length] = entropies[row, :length].tolist()

    def _entropies(self, batch: dict, inside: Tensor) -> Tensor:
        """Entropies (B, T) of the policy's law at prefix tokens, zero elsewhere; one forward of the prefixes."""
        trainer, rows = self._trainer, inside.any(1)
        width = max(self._lengths)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"][:, :width]], dim=1)[rows]
        mask = torch.cat([batch["prompt_mask"], inside[:, :width].long()], dim=1)[rows]
        with (
            torch.no_grad(),
            trainer._watching_log_probs(None),
            disable_gradient_checkpointing(trainer.model, self._args.gradient_checkpointing_kwargs),
        ):
            scored = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, width, batch_size=trainer._scoring_batch_size(), compute_entropy=True
            )[1]
        found = torch.zeros(inside.shape, device=inside.device)
        found[rows, :width] = scored.float()
        return found.masked_fill(~inside, 0.0)

    def with_hints(self, inputs: dict, rows: Tensor | None) -> Tensor | None:
        """Rows (B,) of a loss's batch with a gradient: `rows`, and those whose hint's likelihood counts; None: all."""
        if rows is None or not self._args.prefix_likelihood_weight or "prefix_mask" not in inputs:
            return rows
        return rows | inputs["prefix_mask"].any(1)

    def likelihood(self, inputs: dict, log_probs: Tensor) -> Tensor | float:
        """w mean over rows of -log pi(prefix), over the constant divisor, of one micro-batch; recorded undivided.

        Args:
            inputs: of the loss.
            log_probs: (B, T) of the loss's own forward, with its graph.
        """
        trainer, weight = self._trainer, self._args.prefix_likelihood_weight
        if not (weight and trainer.model.training):
            return 0.0
        if "prefix_mask" not in inputs:
            trainer._metrics["train"]["free_energy/demonstration"].append(0.0)
            return 0.0
        per_row = -log_probs.masked_fill(~inputs["prefix_mask"], 0.0).sum(1)
        energy = weight * per_row.mean()
        stop_unless_finite(trainer.accelerator, "prefix likelihood", energy, per_row)
        recorded = trainer.accelerator.gather(energy.detach().reshape(1)).mean().item()
        trainer._metrics["train"]["free_energy/demonstration"].append(recorded)
        hints = inputs["prefix_mask"]
        trainer._account.add(gradient_tokens=hints.sum(), demonstrations=hints.any(1).sum())
        return energy / trainer._divisor / trainer.current_gradient_accumulation_steps
