"""The event `on_rollouts`: what one generation made, told to callbacks before anything is trained on it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rollouts:
    """Fresh rollouts of all processes, in TRL's row order (a group's rows adjoin), N in all.

    Args:
        step: optimizer steps made before; the policy that drew them is that of this step.
        prompt: (N,) `prompt_key` of each row's prompt, int64.
        rewards: (N, functions) values of the reward functions, unweighted; NaN where one failed.
        reward_names: of the functions.
        log_sampler: (N,) ln q of each completion, q the law it was really drawn from, nats; None where that law is
            not known (truncated or penalised sampling by TRL, which reports no log-probs).
        log_policy: (N,) ln pi under the policy as it is.
        log_reference: (N,) ln ref at the sampling temperature, untruncated; None where F has no KL.
        mine: which of the N rows are this process's.
        inputs: dataset rows of this process's rollouts.
        completions: this process's, plain or conversational as the prompts are.
        score: indices among this process's rows -> their ln pi under the weights that the policy holds when called.
    """

    step: int
    prompt: np.ndarray
    rewards: np.ndarray
    reward_names: tuple[str, ...]
    log_sampler: np.ndarray | None
    log_policy: np.ndarray
    log_reference: np.ndarray | None
    mine: slice
    inputs: list[dict]
    completions: list
    score: Callable[[Sequence[int]], np.ndarray]


def prompt_key(prompt: str | list) -> int:
    """A 64-bit name of a prompt, plain or conversational, the same in every process and run."""
    return _hashed(prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True))


def _keys(prompts: list) -> list[int]:
    """`prompt_key` of each; one that stands in consecutive rows is named once."""
    keys: list[int] = []
    for i, prompt in enumerate(prompts):
        keys.append(keys[-1] if i and prompt == prompts[i - 1] else prompt_key(prompt))
    return keys


@lru_cache(maxsize=65536)
def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


class RolloutEvents:
    """Collects what `Rollouts` holds and hands it to every callback with `on_rollouts(args, state, control, rollouts)`.

    One that also has `wants_rollouts(state)` is asked first, with the same answer on every process. What such a
    callback returns, a dict of numbers, is averaged into the trainer's metrics. Where the sampler gave no log-probs,
    the forward of the loss is watched for them; nothing is computed twice.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._pending: dict | None = None
        self._left = 0

    @property
    def listeners(self) -> list:
        state = self.trainer.state
        asked = [c for c in self.trainer.callback_handler.callbacks if hasattr(c, "on_rollouts")]
        return [c for c in asked if not hasattr(c, "wants_rollouts") or c.wants_rollouts(state)]

    def made(
        self, inputs: list[dict], batch: dict, rewards: Tensor, completions: list, log_policy: Tensor | None
    ) -> None:
        """After a generation: tell the callbacks, or wait for the loss's forward if `log_policy` (B, T) is unknown.

        `batch` holds TRL's tensors of this process; `_reference_log_probs` or TRL's `ref_per_token_logps` if there is
        a reference.
        """
        self._pending = None
        if not self.listeners:
            return
        mask = self.trainer._loss_mask(batch)
        reference = batch.get("_reference_log_probs", batch.get("ref_per_token_logps"))
        self._pending = {
            "step": self.trainer.state.global_step,
            "inputs": inputs,
            "rewards": rewards,
            "completions": completions,
            "batch": {key: batch[key] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")},
            "mask": mask,
            "log_reference": _total(reference, mask),
            "log_policy": _total(log_policy, mask),
        }
        sampled = batch.get("sampling_per_token_logps")
        self._pending["log_sampler"] = self._pending["log_policy"] if sampled is log_policy else _total(sampled, mask)
        if log_policy is None:
            batch["rollout_row"] = torch.arange(len(mask), device=mask.device)
            self._pending["log_policy"] = torch.zeros(len(mask), device=mask.device)
            self._left = len(mask)
        else:
            self._tell()

    def scored(self, batch: dict, log_policy: Tensor) -> None:
        """From the loss's forward: log-probs (b, T) of a micro-batch's rows under the policy."""
        if self._pending is None or "rollout_row" not in batch:
            return
        mask = self.trainer._loss_mask(batch)
        self._pending["log_policy"][batch["rollout_row"]] = _total(log_policy, mask)
        self._left -= len(mask)
        if self._left == 0:
            self._tell()

    def _tell(self) -> None:
        trainer, found, self._pending = self.trainer, self._pending, None
        keys = _keys([row["prompt"] for row in found["inputs"]])
        sums = {name: found[name] for name in ("log_policy", "log_sampler", "log_reference") if found[name] is not None}
        if trainer.accelerator.num_processes > 1:
            keys = trainer.accelerator.gather(torch.tensor(keys, device=trainer.accelerator.device)).cpu()
            sums = {name: trainer.accelerator.gather(values) for name, values in sums.items()}
        sums = {name: values.cpu().numpy() for name, values in sums.items()}
        rank, rows = trainer.accelerator.process_index, len(found["inputs"])
        event = Rollouts(
            step=found["step"],
            prompt=np.asarray(keys, dtype=np.int64),
            rewards=found["rewards"].cpu().numpy(),
            reward_names=tuple(trainer.reward_func_names),
            log_sampler=sums.get("log_sampler", sums["log_policy"] if self._draws_from_policy() else None),
            log_policy=sums["log_policy"],
            log_reference=sums.get("log_reference"),
            mine=slice(rank * rows, (rank + 1) * rows),
            inputs=found["inputs"],
            completions=found["completions"],
            score=lambda wanted: self._score(found, wanted),
        )
        for callback in self.listeners:
            metrics = callback.on_rollouts(trainer.args, trainer.state, trainer.control, rollouts=event)
            for key, value in (metrics or {}).items():
                trainer._metrics["train"][key].append(value)

    def _draws_from_policy(self) -> bool:
        args = self.trainer.args
        changed = args.repetition_penalty != 1.0 or args.generation_kwargs or self.trainer._decoding.truncates
        return not changed

    def _score(self, found: dict, wanted: Sequence[int]) -> np.ndarray:
        if len(wanted) == 0:
            return np.zeros(0)
        rows = torch.as_tensor(np.asarray(wanted), device=found["mask"].device)
        batch = {key: value[rows] for key, value in found["batch"].items()}
        scored = self.trainer._score(self.trainer.model, batch)
        return _total(scored, found["mask"][rows]).cpu().numpy()


def _total(log_probs: Tensor | None, mask: Tensor) -> Tensor | None:
    return None if log_probs is None else log_probs.detach().float().masked_fill(~mask, 0.0).sum(1)
