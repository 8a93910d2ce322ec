"""Exact testbed values during training, as a callback of any Hugging Face trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, TrainerCallback, TrainerState

from fe_posttrain.sequences.models import evaluating
from fe_posttrain.tasks.exact import exact_gap, exact_probabilities, exact_terms, family_means


class ExactCallback(TrainerCallback):
    """Logs exact p, KL and gap of held-out prompts while a trainer runs; rank 0 only.

    At the start, every `every` steps and at the end: mean p of each family. At the start, every `gap_every`
    steps and at the end, if a reference folder is given: mean KL(policy||reference), and the mean gap where
    beta is positive. Neither random state nor train/eval mode of the model changes.

    Keys: `testbed/p/<family>`, `testbed/kl/<family>` (nats per sequence), `testbed/gap/<family>` (energy units).
    `history` holds one dict per measured step, those keys and `step`.

    Args:
        prompts: by family.
        reference_folder: of the frozen reference; None for p alone.
        weights_at: step -> what is in force, with attributes `reward` (w_r) and `beta`; None for no gap.
        gap_every: 0 for start and end only.
        max_length: completion tokens of the run, end token included; the default fits two operations' worked
            answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: dict[str, list[str]],
        reference_folder: str | Path | None = None,
        *,
        every: int = 10,
        weights_at: Callable[[int], Any] | None = None,
        gap_every: int = 0,
        max_length: int = 12,
    ) -> None:
        self.tokenizer, self.prompts, self.reference_folder = tokenizer, prompts, reference_folder
        self.every, self.gap_every, self.max_length = every, gap_every, max_length
        self.weights_at = weights_at
        self.history: list[dict[str, float]] = []
        self._unlogged: dict[str, float] = {}
        self._reference: torch.nn.Module | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        """Measure the starting point; a resumed run has it already."""
        if state.global_step == 0:
            self._measure(state, model, terms=True)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        """Measure at the declared steps."""
        terms = self.gap_every > 0 and state.global_step % self.gap_every == 0
        if terms or state.global_step % self.every == 0:
            self._measure(state, model, terms)

    def on_train_end(self, args, state, control, model=None, **kwargs) -> None:
        """Measure the end point; a run that was asked to stop has none yet and is in a hurry."""
        if state.global_step >= state.max_steps:
            self._measure(state, model, terms=True)

    def metrics_to_log(self) -> dict[str, float]:
        """What was computed since the last call, and forget it."""
        unlogged, self._unlogged = self._unlogged, {}
        return unlogged

    def checkpoint_state(self) -> dict:
        """What a resumed run needs: every measurement, and those not logged yet."""
        return {"history": self.history, "unlogged": self._unlogged}

    def load_checkpoint_state(self, kept: dict) -> None:
        """Take back what `checkpoint_state` gave."""
        self.history, self._unlogged = kept["history"], kept["unlogged"]

    def summary(self) -> dict[str, dict[str, float]]:
        """{family: {"start": p, "end": p}}, the first and the last measurement."""
        keys = {family: f"testbed/p/{family}" for family in self.prompts}
        ends = {"start": self.history[0], "end": self.history[-1]}
        return {family: {end: record[key] for end, record in ends.items()} for family, key in keys.items()}

    def _measure(self, state: TrainerState, model: torch.nn.Module, terms: bool) -> None:
        if not state.is_world_process_zero:
            return
        while hasattr(model, "module"):  # DistributedDataParallel and its kin
            model = model.module
        record = {}
        with evaluating(model):
            means = family_means(model, self.tokenizer, self.prompts)
            record |= {f"testbed/p/{family}": p for family, p in means.items()}
            if terms and self.reference_folder is not None:
                record |= self._terms(model, state.global_step)
        if self.history and self.history[-1]["step"] == state.global_step:
            self.history[-1] |= record
        else:
            self.history.append({"step": state.global_step, **record})
        self._unlogged |= record

    def _terms(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        if self._reference is None:
            with torch.random.fork_rng(devices=[]):
                self._reference = AutoModelForCausalLM.from_pretrained(self.reference_folder).eval()
        reference = self._reference.to(next(model.parameters()).device)
        weights, record = self.weights_at(step) if self.weights_at else None, {}
        for family, asked in self.prompts.items():
            terms = exact_terms(model, reference, self.tokenizer, asked, max_length=self.max_length)
            record[f"testbed/kl/{family}"] = terms.kl.mean().item()
            if weights is not None and weights.beta > 0:
                p_reference = exact_probabilities(reference, self.tokenizer, asked)
                gap = exact_gap(terms, p_reference, beta=weights.beta, reward_energy_weight=weights.reward)
                record[f"testbed/gap/{family}"] = gap.mean().item()
        return record
