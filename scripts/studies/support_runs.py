"""What the studies of accessible support share: testbed runs with a SupportCallback, and the exact truth beside them.

Runs have the settings of a recipe of recipes/, a reference bank of their own (a temporary folder, so that nothing is
left from an earlier study), and probe prompts drawn by their seed.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.exact import exact_probabilities
from fe_posttrain.tasks.pretraining import reference_model
from fe_posttrain.tracking.callback import SupportCallback
from fe_posttrain.tracking.settings import SupportSettings

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PROBES = 32  # prompts of each family
TERMS = ("elicited", "created", "lost")


class Watch(TrainerCallback):
    """Keeps the report of every probe round, and the exact mean p of some training prompts where windows begin.

    `mean_p`: step -> mean p, at the first generation and wherever a window of displacement ended.
    """

    def __init__(self, support: SupportCallback, prompts: Sequence[str]):
        self.support, self.prompts = support, prompts
        self.reports: list[dict] = []
        self.mean_p: dict[int, float] = {}

    def bind(self, trainer) -> None:
        self.trainer = trainer

    def on_rollouts(self, args, state, control, rollouts) -> dict[str, float]:
        windows = self.support.displacements
        if self.prompts and windows is not None and windows.kept_at not in self.mean_p:
            self.measure(windows.kept_at)
        return {}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if len(self.support.probes.rounds) > len(self.reports):
            self.reports.append(self.support.summary())

    def measure(self, step: int) -> None:
        """Note the mean p of the policy as it is."""
        self.mean_p[step] = float(exact(self.trainer.model, self.trainer.processing_class, self.prompts).mean())


@dataclass
class Run:
    """A finished run; `rows` are its probe prompts, `watch` what was seen on the way."""

    trainer: FreeEnergyTrainer
    support: SupportCallback
    watch: Watch
    rows: list[dict]

    @property
    def policy(self):
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    def p(self, prompts: Sequence[str]) -> np.ndarray:
        """Exact p of the trained policy."""
        return exact(self.policy, self.trainer.processing_class, prompts)

    def p_reference(self, prompts: Sequence[str]) -> np.ndarray:
        """Exact p of the reference."""
        with self.support._reference() as model:
            return exact(model, self.trainer.processing_class, prompts)

    def probed_again(self, rows: list[dict], cache: str) -> SupportCallback:
        """Another tracker that looks at the trained policy on other probe prompts."""
        support = SupportCallback(rows, digits.correct, settings=self.support.settings, cache=cache)
        support.bind(self.trainer)
        words = (self.trainer.args, self.trainer.state, self.trainer.control)
        support.on_train_begin(*words)
        support.on_step_end(*words)
        assert support.off is None, support._reason
        return support


@torch.no_grad()
def exact(model, tokenizer, prompts: Sequence[str]) -> np.ndarray:
    """Exact p (n,) of prompts, float64."""
    return exact_probabilities(model, tokenizer, list(prompts)).numpy()


def probe_rows(families: Sequence[str], seed: int) -> list[dict]:
    """PROBES held-out prompts of each family."""
    return [{"prompt": x, "family": f} for f in families for x in digits.prompts(f, PROBES, seed, "probe")]


def train(
    recipe: str,
    prompts: Sequence[str],
    seed: int,
    cache: str,
    *,
    probes: Sequence[str] = tuple(digits.measured(())),
    demonstrated: Sequence[str] = (),
    prompt_rows: int = 2048,
    watched: int = 0,
    support: dict[str, Any] | None = None,
    **settings: Any,
) -> Run:
    """A run with the settings of recipes/`recipe`.yaml.

    Args:
        prompts: families of the rollouts; none for SFT.
        cache: folder of the reference bank.
        demonstrated: families that are demonstrated, worked.
        watched: so many training prompts are priced exactly at the windows' ends.
        support: settings of the tracker without their prefix.
        settings: of the trainer, in the place of the recipe's.
    """
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    words = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    known = {field.name for field in dataclasses.fields(FreeEnergyConfig)}
    words = {key: value for key, value in words.items() if key in known} | settings
    rollouts = digits.dataset(list(prompts), prompt_rows, seed) if prompts else None
    demos = digits.dataset(list(demonstrated), 2048, seed + 1, demonstrations=True) if demonstrated else None
    rows = probe_rows(probes, seed)
    support_settings = SupportSettings(
        support_batch_size=1024, **{f"support_{key}": value for key, value in (support or {}).items()}
    )
    tracker = SupportCallback(rows, digits.correct, settings=support_settings, cache=cache)
    watch = Watch(tracker, rollouts["prompt"][:watched] if watched else ())
    trainer = FreeEnergyTrainer(
        str(reference_model()),
        digits.correct,
        FreeEnergyConfig(tempfile.mkdtemp(), seed=seed, disable_tqdm=True, log_level="error", **words),
        rollouts,
        demo_dataset=demos,
        callbacks=[tracker, watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert tracker.off is None, tracker._reason
    return Run(trainer, tracker, watch, rows)
