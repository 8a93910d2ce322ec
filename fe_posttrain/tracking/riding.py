"""What rides on the rollouts that training makes anyway: the ledger, displacement, and metrics of a step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fe_posttrain.support.budgets import threshold
from fe_posttrain.support.displacement import Window, rms, window
from fe_posttrain.support.gaps import cumulant_gap, excess_kl, jarzynski_gap, kl_efficiency, outside_mass
from fe_posttrain.support.ledger import Ledger
from fe_posttrain.tracking.drawing import together
from fe_posttrain.tracking.signal import Signal
from fe_posttrain.tracking.weights import KeptWeights
from fe_posttrain.training.rollout_events import Rollouts

LEDGER_FILE = "support_ledger.npz"


class Riding:
    """The ledger of the training prompts and metrics of their rollouts; NumPy on one process.

    Rollouts wait until somebody looks (a log row, a summary) and are then entered together: the shares that the
    ledger bets depend on what was entered before, so the bound holds all the same, and a step pays for keeping a few
    numbers a row.

    Args:
        prompts: `prompt_key` of every training prompt.
        budget, delta, alpha: as in `support.budgets`.
        reward_weights: w_r times the weight of each reward function; None where F - F* is not to be estimated.
        group: rollouts of a prompt that adjoin.
    """

    def __init__(
        self,
        prompts: np.ndarray,
        budget: int,
        delta: float,
        alpha: float,
        reward_weights: np.ndarray | None = None,
        group: int = 1,
    ):
        self._reward_weights, self._group = reward_weights, group
        self.keys = np.unique(np.asarray(prompts, dtype=np.int64))
        self.ledger = Ledger(len(self.keys), budget, delta, alpha)
        self._level = int(np.argmin(np.abs(self.ledger.levels - threshold(budget, delta))))
        self._waiting: list[dict[str, np.ndarray]] = []

    def add(self, rollouts: Rollouts, correct: np.ndarray, beta: float) -> None:
        """Keep a generation, all of its rows.

        Args:
            correct: (N,) whether each shows the behaviour.
            beta: in force.

        Raises:
            ValueError: the log-prob of a correct row is not finite.
        """
        kept = {"prompt": rollouts.prompt, "correct": correct}
        if rollouts.log_reference is not None:
            log_ratio = rollouts.log_policy - rollouts.log_reference
            kept |= {"log_ratio": log_ratio, "rewards": rollouts.rewards, "beta": np.array([beta])}
            if rollouts.log_sampler is not None:
                kept["log_weight"] = rollouts.log_reference - rollouts.log_sampler
        for name in kept.keys() & {"log_ratio", "log_weight"}:
            if not np.isfinite(kept[name][correct]).all():
                row = int(np.flatnonzero(correct & ~np.isfinite(kept[name]))[0])
                raise ValueError(f"row {row} of step {rollouts.step} is correct and its log-probs are not finite")
        self._waiting.append(kept)

    def flush(self) -> dict[str, float]:
        """Enter what waits into the ledger; metrics of those rows, of what can be computed from them."""
        if not self._waiting:
            return {}
        names = set.intersection(*map(set, self._waiting))
        rows = {name: np.concatenate([kept[name] for kept in self._waiting]) for name in names}
        self._waiting = []
        prompt, correct = np.searchsorted(self.keys, rows["prompt"]), rows["correct"]
        if not np.array_equal(self.keys[np.minimum(prompt, len(self.keys) - 1)], rows["prompt"]):
            raise ValueError("a rollout's prompt is not in train_dataset; the ledger was made for that one")
        groups = np.unique(prompt, return_inverse=True)[1]
        metrics = {
            "support/correct": float(correct.mean()),
            "support/zero_hit_prompts": float((np.bincount(groups, weights=correct) == 0).mean()),
        }
        if "log_weight" in rows:
            self.ledger.update(prompt, correct, rows["log_weight"])
            seen = self.ledger.drawn > 0
            metrics["support/ledger_in"] = float((self.ledger.certified[seen] > self._level).mean())
        if "log_ratio" in rows:
            metrics |= self._of_log_ratios(rows["log_ratio"], correct)
            if self._reward_weights is not None and (rows["beta"] == rows["beta"][0]).all():
                reward = np.nansum(rows["rewards"] * self._reward_weights, axis=1)
                beta = float(rows["beta"][0])
                metrics |= _gaps((reward - beta * rows["log_ratio"]).reshape(-1, self._group), beta)
        return metrics

    def _of_log_ratios(self, log_ratio: np.ndarray, correct: np.ndarray) -> dict[str, float]:
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
        """The ledger and what waits, as they are."""
        waiting = {f"{i}/{name}": value for i, kept in enumerate(self._waiting) for name, value in kept.items()}
        np.savez(folder / LEDGER_FILE, keys=self.keys, **self.ledger.state(), **waiting)

    def load(self, folder: Path) -> None:
        """Take back what `save` wrote.

        Raises:
            ValueError: it is of other prompts.
        """
        with np.load(folder / LEDGER_FILE, allow_pickle=False) as file:
            kept = dict(file)
        if not np.array_equal(kept["keys"], self.keys):
            raise ValueError("support: the training prompts are not those of the checkpoint; resume with the same")
        self.ledger.load_state(kept)
        self._waiting = []
        for name in sorted((name for name in kept if "/" in name), key=lambda name: int(name.split("/")[0])):
            number, column = name.split("/")
            if int(number) == len(self._waiting):
                self._waiting.append({})
            self._waiting[-1][column] = kept[name]


def _gaps(shaped: np.ndarray, beta: float) -> dict[str, float]:
    """Both estimates of F - F*, each group's (its Z is its prompt's) averaged, energy units; a description."""
    if not (beta > 0 and shaped.shape[1] > 1):
        return {}
    return {
        "support/gap_jarzynski": float(jarzynski_gap(shaped, beta).mean()),
        "support/gap_cumulant": float(cumulant_gap(shaped, beta).mean()),
    }


def rescored(rollouts: Rollouts) -> Rollouts:
    """With the `log_reference` of the weights that the policy holds when this is called; all processes take part."""
    return replace(rollouts, log_reference=scoring(rollouts)(np.arange(len(rollouts.prompt))))


def gibbs_weight(trainer, signal: Signal) -> float | None:
    """w_r times the reward's weight where F* follows from p_ref alone: the 0/1 signal is the only reward of a run with
    beta > 0 and without demonstrations, and its reference the base; else None."""
    args = trainer.args
    if not args.has_gibbs_optimum or trainer._beta_in_force <= 0:
        return None
    functions = [getattr(function, "function", None) for function in trainer.reward_funcs]
    if functions != [signal.function] or signal.threshold is not None:
        return None
    weight = args.reward_energy_weight * float(trainer.reward_weights[0])
    return weight if weight > 0 else None


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
        """Score correct rows under the weights of the window's start; where no two prompts have any, it goes on.

        Args:
            correct, prompt, log_policy: (N,) of all processes.
            score: indices of chosen rows -> their log-probs under the weights in place, from whoever holds them.
        """
        if self.kept is None:
            self._begin(step)
            return {}
        hits = np.flatnonzero(correct)
        if len(np.unique(prompt[hits])) < min(2, len(np.unique(prompt))):
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


def scoring(rollouts: Rollouts) -> Callable[[np.ndarray], np.ndarray]:
    """Scores rows of all processes, each by the process that holds them."""

    def score(rows: np.ndarray) -> np.ndarray:
        mine = rows[(rows >= rollouts.mine.start) & (rows < rollouts.mine.stop)]
        found = together(lambda: list(zip(mine.tolist(), rollouts.score(mine - rollouts.mine.start), strict=True)))
        values = dict(found)
        return np.array([values[row] for row in rows.tolist()])

    return score
