"""The support ledger: a lower bound on p_ref(x) from the rollouts that training makes anyway.

A rollout y drawn from a sampler q is worth X = 1[correct] ref(y)/q(y), whose mean is p_ref at most, whatever q is and
however it was trained. Against "p_ref <= p0" one bets a share lam of one's wealth on X > p0 before each group:

    W <- W prod_group (1 - lam + lam X / p0),    lam = kappa (c + 1/2) / (n + 1),

c correct of n rollouts of *earlier* groups, kappa in {.25, .5, .9}, W the mean of the three. Under the hypothesis W is
a nonnegative supermartingale from 1, so it ever reaches 1/alpha with probability alpha at most (Ville). It certifies
presence, never absence. Every rollout must enter, wrong ones with X = 0; weights are neither normalised nor clipped.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from fe_posttrain.support.budgets import ALPHA, DELTA, ladder_with, threshold

KAPPAS = np.array([0.25, 0.5, 0.9], dtype=np.float32)
_BELOW_LADDER = [digit * 10.0**exponent for exponent in range(-9, -3) for digit in (1, 3)]


def levels(budget: int, delta: float = DELTA) -> NDArray:
    """The p0 that are tested, ascending: p*_B of the ladder and of `budget`, .1, and {1, 3} x 1e-9 .. 1e-4."""
    return np.unique([*_BELOW_LADDER, 0.1, *threshold(ladder_with(budget), delta)])


@dataclass
class Ledger:
    """Wealth of `prompts` prompts at every level; about 250 bytes a prompt.

    Args:
        prompts: how many there are; rows are addressed by index.
        budget: the primary one, draws.
        delta, alpha: as in `budgets`.
    """

    prompts: int
    budget: int
    delta: float = DELTA
    alpha: float = ALPHA
    levels: NDArray = field(init=False)
    log_wealth: NDArray = field(init=False)  # (prompts, levels, kappas), fp32
    correct: NDArray = field(init=False)  # (prompts,) so far
    drawn: NDArray = field(init=False)
    certified: NDArray = field(init=False)  # (prompts,) how many levels have ever been passed, from below

    def __post_init__(self) -> None:
        self.levels = levels(self.budget, self.delta)
        self._log_levels = np.log(self.levels).astype(np.float32)
        self.log_wealth = np.zeros((self.prompts, len(self.levels), len(KAPPAS)), dtype=np.float32)
        self.correct = np.zeros(self.prompts, dtype=np.uint32)
        self.drawn = np.zeros(self.prompts, dtype=np.uint32)
        self.certified = np.zeros(self.prompts, dtype=np.uint8)

    def update(self, prompt: ArrayLike, correct: ArrayLike, log_weight: ArrayLike) -> None:
        """Enter the rollouts of one step, all of them.

        Args:
            prompt: (n,) index of each rollout's prompt.
            correct: (n,) whether it shows the behaviour; NaN (its reward failed) counts as wrong.
            log_weight: (n,) ln ref(y) - ln q(y), q what y was really drawn from; read for correct rollouts only.

        Raises:
            ValueError: a correct rollout whose weight is NaN or +inf, columns of unlike length, a prompt that the
                ledger does not have; nothing has been entered then.
        """
        prompt = self._checked(np.asarray(prompt), np.shape(correct), np.shape(log_weight))
        if len(prompt) == 0:
            return
        hit = np.nan_to_num(np.asarray(correct, dtype=np.float32)) > 0
        hits = np.flatnonzero(hit)
        weight = np.asarray(log_weight, dtype=np.float32)[hits]
        if len(weight) and not (weight < np.inf).all():  # NaN compares false
            row = int(hits[np.flatnonzero(~(weight < np.inf))[0]])
            raise ValueError(
                f"row {row}: ln ref - ln q of a correct rollout is {float(np.asarray(log_weight)[row])}; the ledger "
                "needs the log-probs that it was drawn with and the reference's; check both for NaN"
            )
        touched, owner, drawn = np.unique(prompt, return_inverse=True, return_counts=True)
        right = np.bincount(owner, weights=hit, minlength=len(touched)).astype(np.uint32)
        lam = KAPPAS * ((self.correct[touched] + np.float32(0.5)) / (self.drawn[touched] + np.float32(1)))[:, None]
        stay = np.log1p(-lam)
        growth = np.repeat(((drawn - right)[:, None] * stay)[:, None, :], len(self.levels), axis=1)
        if len(hits):
            order = np.argsort(owner[hits], kind="stable")
            group, weight = owner[hits][order], weight[order]
            bet = np.log(lam)[group][:, None, :] + (weight[:, None] - self._log_levels)[:, :, None]
            gains = np.logaddexp(stay[group][:, None, :], bet)
            starts = np.flatnonzero(np.diff(group, prepend=-1))
            growth[group[starts]] += np.add.reduceat(gains, starts, axis=0)
        self.log_wealth[touched] += growth
        self.correct[touched] += right
        self.drawn[touched] += drawn.astype(np.uint32)
        passed = self.log_e(touched) >= -np.log(self.alpha)
        highest = np.where(passed.any(1), len(self.levels) - np.argmax(passed[:, ::-1], axis=1), 0)
        self.certified[touched] = np.maximum(self.certified[touched], highest)

    def _checked(self, prompt: NDArray, *others: tuple[int, ...]) -> NDArray:
        """`prompt` if the rows of a step fit together; a negative index would silently be another prompt's row."""
        if prompt.ndim != 1 or any(other != prompt.shape for other in others):
            raise ValueError(
                f"ledger: prompt, correct, log_weight have shapes {prompt.shape}, {others[0]}, {others[1]}; each "
                "rollout is one row of all three; give (n,) each"
            )
        outside = np.flatnonzero(~((prompt >= 0) & (prompt < self.prompts)))
        if len(outside):
            row = int(outside[0])
            raise ValueError(f"row {row}: prompt {prompt[row]}; the ledger has 0 ... {self.prompts - 1}; mend that row")
        return prompt

    def log_e(self, prompt: ArrayLike | slice = slice(None)) -> NDArray:
        """ln of the current e-value against "p_ref <= level", (prompts, levels): the ln of the three wealths' mean."""
        wealth = self.log_wealth[prompt]
        top = wealth.max(-1)
        return top + np.log(np.exp(wealth - top[..., None]).mean(-1))

    def log_e_at(self, p0: float) -> NDArray:
        """ln e-value of each prompt against "p_ref <= p0", for one of the levels.

        Raises:
            ValueError: p0 is none of them; the e-value of a lower level says nothing about p0.
        """
        nearest = int(np.argmin(np.abs(np.log(self.levels / p0))))
        if not np.isclose(self.levels[nearest], p0, rtol=1e-6, atol=0):
            raise ValueError(f"ledger: {p0:g} is no level; nearest {self.levels[nearest]:g}; ask for one of `levels`")
        return self.log_e()[:, nearest]

    def lower_bound(self, level: float | None = None) -> NDArray:
        """Per prompt, the largest p0 whose wealth reached 1/alpha; 0 where none did. Valid whenever one looks.

        Args:
            level: another error probability than alpha; then wealth as it is now decides.
        """
        if level is None:
            return np.concatenate([[0.0], self.levels])[self.certified]
        passed = self.log_e() >= -np.log(level)
        return np.where(passed, self.levels, 0.0).max(1)

    def log_combined(self, log_e: ArrayLike, p0: float) -> NDArray:
        """ln of the mean of the ledger's e-value at p0 and another one of the same hypothesis: an e-value again."""
        return logsumexp(np.stack([self.log_e_at(p0), np.asarray(log_e)]), axis=0) - np.log(2)

    @property
    def bytes_per_prompt(self) -> float:
        """Memory of one prompt."""
        arrays = (self.log_wealth, self.correct, self.drawn, self.certified)
        return sum(array.nbytes for array in arrays) / max(1, self.prompts)

    def state(self) -> dict[str, NDArray]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("levels", "log_wealth", "correct", "drawn", "certified")}

    def load_state(self, kept: dict[str, NDArray]) -> None:
        """Take back what `state` gave.

        Raises:
            ValueError: it is of another number of prompts or other levels; nothing has been taken back then.
        """
        for name, mine in self.state().items():
            if kept[name].shape != mine.shape:
                raise ValueError(
                    f"ledger: the checkpoint's {name} is {kept[name].shape}, the run's {mine.shape}; prompts or "
                    "budget have changed; resume with those of the checkpoint"
                )
        if not np.allclose(kept["levels"], self.levels, rtol=1e-9, atol=0):
            raise ValueError(
                "ledger: the checkpoint's levels are not the run's; budget or delta have changed, and wealth against "
                "one level says nothing about another; resume with those of the checkpoint"
            )
        for name, mine in self.state().items():
            setattr(self, name, kept[name].astype(mine.dtype))
