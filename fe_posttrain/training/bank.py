"""The bank: completions of every training prompt, drawn once and judged once, that forward projection is fitted to.

Drawn from the policy as it stands at a refresh, the reference at the start. A draw's weight is e^{w_r r/beta} ref/q
over the mean of *all* of its prompt's draws; normalised within the few that share an update it would train on failures
wherever these hold no success. Kept in the run folder, so that a resumed run goes on with the same draws.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from trl import is_conversational

from fe_posttrain.theory.projections import bank_weights
from fe_posttrain.training.demonstrations import PAIRED_ROW
from fe_posttrain.training.rollout_events import prompt_key

logger = logging.getLogger(__name__)

FOLDER = "bank"  # in the run folder


@dataclass(frozen=True)
class Bank:
    """Draws of M prompts, N each, in order of `prompts`.

    Args:
        step: optimizer steps made before it was drawn.
        prompts: (M,) `prompt_key` of each.
        tokens, ends: completions laid end to end, (tokens,) and where each ends, (M N,).
        rewards: (M, N, functions), unweighted; NaN where one failed.
        log_sampler, log_reference: (M, N) ln q and ln ref of each completion, nats.
    """

    step: int
    prompts: torch.Tensor
    tokens: torch.Tensor
    ends: torch.Tensor
    rewards: torch.Tensor
    log_sampler: torch.Tensor
    log_reference: torch.Tensor

    def weights(self, reward_weights: torch.Tensor, **settings: float) -> torch.Tensor:
        """(M, N) weights of mean 1 over each prompt's draws; `settings` as `bank_weights` takes them."""
        per_function = self.rewards * reward_weights.to(self.rewards)
        rewards = per_function.nansum(-1).masked_fill(per_function.isnan().all(-1), torch.nan)
        return bank_weights(rewards, self.log_reference - self.log_sampler, **settings)

    def completion(self, prompt: int, draw: int) -> list[int]:
        """Token ids of one draw, end token included."""
        row = prompt * self.log_sampler.shape[1] + draw
        start = int(self.ends[row - 1]) if row else 0
        return self.tokens[start : int(self.ends[row])].tolist()

    def save(self, path: Path) -> None:
        """Write the file whole, by one rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".staged")
        parts = {key: value.contiguous() for key, value in vars(self).items() if key != "step"}
        save_file(parts, staged, metadata={"step": str(self.step)})
        staged.rename(path)

    @classmethod
    def load(cls, path: Path, step: int) -> "Bank":
        """What `save` wrote for this step.

        Raises:
            ValueError: it is not there.
        """
        if not path.is_file():
            raise ValueError(
                f"--resume: {path}, from which this run was trained, is not there; it cannot be drawn again from later "
                "weights; restore it, or start the run anew"
            )
        return cls(step=step, **load_file(path))


def bank_path(trainer, step: int) -> Path:
    """Where the bank that was drawn before optimizer step `step` is kept."""
    return Path(trainer.args.output_dir) / FOLDER / f"step-{step:06d}.safetensors"


def draw_bank(trainer) -> Bank:
    """Draw, score and judge `bank_draws` completions of every training prompt; all processes take part.

    Raises:
        RewardError: a reward failed, as in rollouts.
    """
    args, accelerator = trainer.args, trainer.accelerator
    rows = trainer.train_dataset.to_list()
    for row in rows:
        row.pop(PAIRED_ROW, None)  # ours: no reward sees it
    known = list({prompt_key(row["prompt"]): row for row in rows}.values())  # a prompt counts once
    world, rank = accelerator.num_processes, accelerator.process_index
    mine = known[rank::world] or known[:1]
    most = -(-len(known) // world)
    mine += mine[-1:] * (most - len(mine))  # every process judges as many: rewards are gathered
    if accelerator.is_main_process:
        logger.info("drawing the bank: %d completions of each of %d prompts", args.bank_draws, len(known))
    rows = [row for row in mine for _ in range(args.bank_draws)]
    size = args.generation_batch_size // world  # what a rollout draws at once fits
    parts = [_draw(trainer, rows[start : start + size]) for start in range(0, len(rows), size)]
    completions = [ids for part in parts for ids in part[0]]
    numbers = [torch.cat([part[i] for part in parts]).unflatten(0, (-1, args.bank_draws)) for i in (1, 2, 3)]
    found = {}
    for place, row in enumerate(mine):
        first = place * args.bank_draws
        drawn = completions[first : first + args.bank_draws]
        found[prompt_key(row["prompt"])] = (drawn, *(kind[place] for kind in numbers))
    merged = {key: drawn for part in gather_object([found]) for key, drawn in part.items()}
    keys = [prompt_key(row["prompt"]) for row in known]
    completions = [ids for key in keys for ids in merged[key][0]]
    rewards, log_sampler, log_reference = (torch.stack([merged[key][i] for key in keys]) for i in (1, 2, 3))
    return Bank(
        step=trainer.state.global_step,
        prompts=torch.tensor(keys),
        tokens=torch.tensor([token for ids in completions for token in ids], dtype=torch.int32),
        ends=torch.tensor(np.cumsum([len(ids) for ids in completions])),
        rewards=rewards,
        log_sampler=log_sampler,
        log_reference=log_reference,
    )


def _draw(trainer, inputs: list[dict]) -> tuple[list[list[int]], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Completion ids, rewards (rows, functions), ln q and ln ref (rows,) of one completion of each row's prompt."""
    prompts = [row["prompt"] for row in inputs]
    prompt_ids = trainer._tokenize_groups(prompts)
    drawn = trainer._sample(prompt_ids)
    texts = trainer.processing_class.batch_decode(drawn.completion_ids, skip_special_tokens=True)
    if is_conversational(inputs[0]):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    gathered = trainer._judge(inputs, prompts, texts, drawn.completion_ids)
    first = trainer.accelerator.process_index * len(inputs)
    rewards = gathered[first : first + len(inputs)].cpu().double()
    log_sampler = torch.tensor([sum(row) for row in drawn.log_probs], dtype=torch.float64)
    log_reference = log_sampler
    if trainer.state.global_step and trainer.args.uses_reference:
        log_reference = trainer._log_reference_of(prompt_ids, drawn.completion_ids)
    trainer._account.add(generated_tokens=sum(map(len, drawn.completion_ids)), verifier_calls=len(inputs))
    return drawn.completion_ids, rewards, log_sampler, log_reference


def chosen(bank: Bank, keys: list[int], group: int, seed: int, step: int, first: int) -> NDArray[np.int64]:
    """(rows, 2) prompt and draw in the bank of each rollout row, without replacement within a group.

    Depends on seed, step and place alone: the same after a resume, and on whatever process a row lies.

    Args:
        keys: `prompt_key` of each row of this process.
        first: place of the first of them among the rows of all processes.
    """
    places = {int(key): place for place, key in enumerate(bank.prompts.tolist())}
    count = bank.log_sampler.shape[1]
    found, orders = [], {}
    for row, key in enumerate(keys, start=first):
        number, place = divmod(row, group)
        if number not in orders:
            orders[number] = np.random.default_rng([seed, step, number]).permutation(count)
        found.append((places[key], orders[number][place % count]))
    return np.array(found)
