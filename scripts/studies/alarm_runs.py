"""Runs on the testbed for the study of alarms: healthy ones of many settings, and ones made to deserve an alarm."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer, SupportCallback, SupportSettings
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining import reference_model

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PROBES = 8  # prompts of each family
SUPPORT = {
    "support_steps": 20,
    "support_reference_draws": 64,
    "support_budget": 64,
    "support_batch_size": 1024,
    "support_displacement_steps": 0,
}


@dataclass(frozen=True)
class Plan:
    """One run: a recipe of recipes/ and what is put in the place of its settings.

    Args:
        reward: in the place of `digits.correct`; the probes always measure `digits.correct`.
        noise: standard deviation of what is added to each reward.
        draws: of the policy, a probe prompt and round.
    """

    name: str
    recipe: str
    seed: int
    prompts: tuple[str, ...] = ()
    demonstrated: tuple[str, ...] = ()
    reward: Callable | None = None
    noise: float = 0.0
    support: bool = True
    draws: int = 4
    settings: dict[str, Any] = field(default_factory=dict)


# What a person who knows their trade may set; (families, demonstrated families, choices of each setting).
SANE = {
    "quickstart": (("tail_10", "basin"), (), {
        "learning_rate": (1e-4, 2e-4, 4e-4),
        "beta": (0.02, 0.05, 0.1),
        "num_generations": (8, 16),
        "per_device_train_batch_size": (16, 32, 64),
        "max_steps": (80, 120),
    }),
    "rl": (("tail_10", "tail_03", "basin", "barrier"), (), {
        "learning_rate": (1e-4, 2e-4, 4e-4),
        "beta": (0.02, 0.05, 0.1),
        "num_generations": (8, 16),
        "per_device_train_batch_size": (16, 32, 64),
        "max_steps": (120, 180),
        "max_completion_length": (12, 16),
    }),
    "mixture": (("tail_10", "basin", "barrier"), ("barrier",), {
        "learning_rate": (5e-4, 1e-3),
        "beta": (0.01, 0.02, 0.05),
        "demonstration_energy_weight": (0.25, 0.5, 1.0),
        "num_generations": (8, 16),
        "per_device_train_batch_size": (16, 32),
        "per_device_demonstration_batch_size": (16, 32),
        "max_steps": (120, 180),
    }),
    "sft": ((), ("barrier", "basin"), {
        "learning_rate": (5e-4, 1e-3, 2e-3),
        "per_device_train_batch_size": (16, 32, 64),
        "max_steps": (120, 200),
    }),
}  # fmt: skip
ORDER = ("quickstart", "rl", "sft", "mixture", "quickstart", "rl", "sft", "rl")  # mixtures cost most
NOISE = (0.0, 0.0, 0.1)


def healthy(seed: int) -> Plan:
    """The healthy run of a seed: its recipe in turn, its settings drawn, support tracked in half of them."""
    rng = np.random.default_rng(seed)
    name = ORDER[seed % len(ORDER)]
    prompts, demonstrated, choices = SANE[name]
    settings = {key: options[rng.integers(len(options))] for key, options in choices.items()}
    noise = NOISE[rng.integers(len(NOISE))] if prompts else 0.0
    support = bool(rng.random() < 0.5)
    return Plan(f"{name} {seed}", name, seed, prompts, demonstrated, noise=noise, support=support, settings=settings)


def train(plan: Plan, cache: str, callbacks: Sequence[TrainerCallback]) -> FreeEnergyTrainer:
    """Make the run of a plan.

    Args:
        cache: folder of the reference's bank.
        callbacks: what listens.
    """
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    words = yaml.safe_load((RECIPES / f"{plan.recipe}.yaml").read_text())
    known = {entry.name for entry in dataclasses.fields(FreeEnergyConfig)}
    words = {key: value for key, value in words.items() if key in known} | plan.settings
    seed = plan.seed
    shown = digits.dataset(list(plan.demonstrated), 1024, seed + 1, demonstrations=True) if plan.demonstrated else None
    listening = list(callbacks)
    if plan.support:
        rows = [{"prompt": x, "family": f} for f in digits.measured(()) for x in digits.prompts(f, PROBES, 0, "probe")]
        settings = SupportSettings(support=True, support_draws=plan.draws, **SUPPORT)
        listening.insert(0, SupportCallback(rows, digits.correct, settings=settings, cache=cache))
    with tempfile.TemporaryDirectory() as folder:
        trainer = FreeEnergyTrainer(
            str(reference_model()),
            _noisy(plan.reward or digits.correct, plan.noise, seed) if plan.prompts else None,
            FreeEnergyConfig(folder, seed=seed, disable_tqdm=True, log_level="error", **words),
            digits.dataset(list(plan.prompts), 1024, seed) if plan.prompts else None,
            demo_dataset=shown,
            callbacks=listening,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if plan.support:
        assert listening[0].off is None, listening[0]._reason
    return trainer


def _noisy(reward: Callable, noise: float, seed: int) -> Callable:
    if not noise:
        return reward
    rng = np.random.default_rng(seed)

    def noisy(prompts, completions, **columns) -> list[float]:
        values = np.array(reward(prompts, completions, **columns))
        return (values + rng.normal(0.0, noise, len(values))).tolist()

    return noisy


def begins_with_five(prompts, completions, **columns) -> list[float]:
    """A reward that any completion gets that begins with a 5."""
    return [float(y.startswith("5")) for y in completions]


def copied(prompts, completions, **columns) -> list[float]:
    """A reward for the list as it stands, whatever was asked."""
    return [float(y == x.lstrip(digits.LETTERS)) for x, y in zip(prompts, completions, strict=True)]


TAILS = ("tail_10", "tail_03")
FAST = {"learning_rate": 1e-3}
DESERVED = {  # alarm: a run that deserves it
    "kl_runaway": Plan(
        "honest reward, learning rate 50 times too high, hardly any beta", "rl", 0, ("tail_10", "basin"),
        settings={"beta": 0.0005, "learning_rate": 1e-2},
    ),
    "support_collapse": Plan(
        "SFT on the barrier alone, learning rate 3 times too high", "sft", 0, (), ("barrier",),
        settings={"learning_rate": 3e-3},
    ),
    "verifier_exploitation": Plan(
        "a leading 5 is paid", "quickstart", 0, ("tail_10", "basin"), reward=begins_with_five, settings=FAST
    ),
    "entropy_collapse": Plan("copies are paid, on the tails", "rl", 0, TAILS, reward=copied, settings=FAST),
    "zero_signal": Plan("honest reward, barrier prompts alone", "rl", 0, ("barrier",)),
}  # fmt: skip


def deserved(alarm: str) -> Plan:
    """The run that deserves an alarm, with 32 draws a probe prompt."""
    plan = DESERVED[alarm]
    settings = {"max_steps": 120, "per_device_train_batch_size": 64} | plan.settings
    return dataclasses.replace(plan, draws=32, settings=settings)
