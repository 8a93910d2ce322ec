"""What rides on the rollouts that training makes anyway: the ledger, displacement, and metrics of a step."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fe_posttrain.support.budgets import threshold
from fe_posttrain.support.displacement import Window, rms, window
from fe_posttrain.support.gaps import cumulant_gap, excess_kl, jarzynski_gap, kl_efficiency, outside_mass
from fe_posttrain.support.ledger import Ledger
from fe_posttrain.tracking.weights import KeptWeights
from fe_posttrain.training.rollout_events import Rollouts

LEDGER_FILE = "support_ledger.npz"


class Riding:
    """The ledger of the training prompts and the metrics of each generation; NumPy on N numbers, on one process.

    Args:
        prompts: `prompt_key` of every training prompt.
        budget, delta, alpha: as in `support.budgets`.
    """

    def __init__(self, prompts: np.ndarray, budget: int, delta: float, alpha: float):
        self.keys = np.unique(np.asarray(prompts, dtype=np.int64))
        self.ledger = Ledger(len(self.keys), budget, delta, alpha)
        self._level = int(np.argmin(np.abs(self.ledger.levels - threshold(budget, delta))))

    def update(self, rollouts: Rollouts, correct: np.ndarray) -> dict[str, float]:
        """Enter rollouts, (N,) correct or not; returns the metrics of the step, of what can be computed."""
        metrics = {"support/correct": float(correct.mean())}
        prompt = np.searchsorted(self.keys, rollouts.prompt)
        if not np.array_equal(self.keys[np.minimum(prompt, len(self.keys) - 1)], rollouts.prompt):
            raise ValueError("a rollout's prompt is not in train_dataset; the ledger was made for that one")
        groups = np.unique(prompt, return_inverse=True)[1]
        hit = np.bincount(groups, weights=correct)
        metrics["support/zero_hit_prompts"] = float((hit == 0).mean())
        if rollouts.log_reference is None or rollouts.log_sampler is None:
            return metrics
        self.ledger.update(prompt, correct, rollouts.log_reference - rollouts.log_sampler)
        seen = self.ledger.drawn > 0
        metrics["support/ledger_in"] = float((self.ledger.certified[seen] > self._level).mean())
        return metrics | self._of_log_ratios(rollouts, correct)

    def _of_log_ratios(self, rollouts: Rollouts, correct: np.ndarray) -> dict[str, float]:
        log_ratio = rollouts.log_policy - rollouts.log_reference
        metrics, kl = {}, float(log_ratio.mean())
        if correct.any():
            metrics["support/outside_mass"] = float(outside_mass(log_ratio[correct], self.ledger.budget))
            metrics["support/excess_kl"] = float(excess_kl(log_ratio[correct]))
            p_reference = float((correct * np.exp(-log_ratio)).mean())
            if kl > 0 and 0 < p_reference < 1:
                metrics["support/kl_efficiency"] = float(kl_efficiency(correct.mean(), p_reference, kl))
        return metrics

    def certified_in(self) -> tuple[int, int]:
        """Training prompts that the ledger certifies IN at the primary budget, and those drawn at all."""
        return int((self.ledger.certified > self._level).sum()), int((self.ledger.drawn > 0).sum())

    def zero_hit_prompts(self) -> int:
        """Training prompts that were drawn and never answered correctly."""
        return int(((self.ledger.drawn > 0) & (self.ledger.correct == 0)).sum())

    def save(self, folder: Path) -> None:
        np.savez(folder / LEDGER_FILE, keys=self.keys, **self.ledger.state())

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote.

        Raises:
            ValueError: it is of other prompts.
        """
        with np.load(folder / LEDGER_FILE, allow_pickle=False) as kept:
            if not np.array_equal(kept["keys"], self.keys):
                raise ValueError("support: the training prompts are not those of the checkpoint; resume with the same")
            self.ledger.load_state({name: kept[name] for name in self.ledger.state()})


def gap_estimates(shaped: np.ndarray, beta: float) -> dict[str, float]:
    """Both estimates of F - F* from shaped rewards of a step, energy units; no more than a description."""
    return {
        "support/gap_jarzynski": float(jarzynski_gap(shaped, beta)),
        "support/gap_cumulant": float(cumulant_gap(shaped, beta)),
    }


class Displacements:
    """Windows of `every` updates: how far they moved what the policy reaches. All processes take part in a window.

    Args:
        rows: correct rollouts that are scored again at most.
    """

    def __init__(self, model, every: int, rows: int, seed: int):
        self.every, self.rows, self.seed = every, rows, seed
        self.windows: list[Window] = []
        self.kept: KeptWeights | None = None
        self.kept_at = 0
        self.model = model

    def due(self, step: int) -> bool:
        """Whether these rollouts end a window, or begin the first one."""
        return self.kept is None or step - self.kept_at >= self.every

    def end_window(
        self,
        step: int,
        correct: np.ndarray,
        prompt: np.ndarray,
        log_policy: np.ndarray,
        score: Callable[[np.ndarray], np.ndarray],
    ) -> dict[str, float]:
        """Score correct rows under the weights of the window's start; without any, the window goes on.

        Args:
            correct, prompt, log_policy: (N,) of all processes.
            score: indices of chosen rows -> their log-probs under the weights in place, from whoever holds them.
        """
        if self.kept is None:
            self._begin(step)
            return {}
        hits = np.flatnonzero(correct)
        if len(hits) == 0:
            return {}
        chosen = np.sort(np.random.default_rng([self.seed, step]).permutation(hits)[: self.rows])
        with self.kept.swapped_in(self.model):
            before = score(chosen)
        found = window(step, step - self.kept_at, before - log_policy[chosen], prompt[chosen])
        self.windows.append(found)
        self._begin(step)
        metrics = {"support/displacement": found.value}
        if (size := rms(self.windows)) is not None:
            metrics["support/displacement_rms"] = size
        return metrics

    def _begin(self, step: int) -> None:
        self.kept, self.kept_at = KeptWeights(self.model), step

    def state(self) -> dict:
        return {"kept_at": self.kept_at, "windows": [w.as_json() for w in self.windows]}

    def load_state(self, kept: dict) -> None:
        self.kept_at = kept["kept_at"]
        self.windows = [Window.from_json(w) for w in kept["windows"]]
