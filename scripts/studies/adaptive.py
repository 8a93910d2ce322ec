"""The ledger under training on the very rollouts that are fed, watched at every step, in an enumerable world."""

import numpy as np
from scipy.stats import binomtest

from fe_posttrain.support.ledger import Ledger, levels

ALPHA, STEPS, COMPLETIONS, RIGHT, GROUP = 0.05, 100, 24, 4, 16


def just_below(p: float) -> float:
    """A hair below the tested level nearest to p: that level passed is a bound above p_ref, with no slack between."""
    tested = levels(1024)
    return float(tested[np.argmin(np.abs(np.log(tested / p)))]) * (1 - 1e-6)


def adaptive(repeats: int = 200) -> dict:
    """REINFORCE with leave-one-out, one prompt a run; p_ref where it is hardest, just below a level."""
    found = {}
    for i, near in enumerate((0.17, 0.1, 0.046, 0.003)):
        p, rng = just_below(near), np.random.default_rng([17, i])
        runs = [watched(rng, p, STEPS) for _ in range(repeats)]
        broken = [watched(rng, p, STEPS, only_correct=True) for _ in range(repeats)]
        ever, only = sum(run[0] for run in runs), sum(run[0] for run in broken)
        found[f"{p:.4g}"] = {
            "bound_ever_above_p_ref": ever,
            "share": ever / repeats,
            "p_value_against_alpha": float(binomtest(ever, repeats, ALPHA, alternative="greater").pvalue),
            "median_bound_over_p_ref": float(np.median([run[1] for run in runs])),
            "first_p": float(np.median([run[3] for run in runs])),
            "final_p": float(np.median([run[2] for run in runs])),
            "only_correct_rows_fed": {
                "bound_ever_above_p_ref": only,
                "share": only / repeats,
                "p_value_against_alpha": float(binomtest(only, repeats, ALPHA, alternative="greater").pvalue),
            },
        }
    return {"runs": repeats, "steps": STEPS, "alpha": ALPHA, "bar": "p-value at least .01", "by_p_ref": found}


def watched(rng, p: float, steps: int, only_correct: bool = False) -> tuple[bool, float, float, float]:
    """Whether the bound ever exceeds p_ref, the final bound over p_ref, the policy's final and first p.

    The policy begins as the reference, or, where that would show too little to learn from, raised to p = .1.
    """
    correct = np.arange(COMPLETIONS) < RIGHT
    reference = np.exp(0.3 * rng.normal(size=COMPLETIONS))
    reference[correct] *= p / reference[correct].sum()
    reference[~correct] *= (1 - p) / reference[~correct].sum()
    raised = max(p, 0.1)
    logits = np.log(reference) + correct * np.log(raised / (1 - raised) * (1 - p) / p)
    ledger, ever, first = Ledger(1, 1024), False, raised
    for _ in range(steps):
        policy = np.exp(logits - logits.max())
        policy /= policy.sum()
        y = rng.choice(COMPLETIONS, GROUP, p=policy)
        kept = y[correct[y]] if only_correct else y
        if len(kept):
            ledger.update(np.zeros(len(kept), dtype=int), correct[kept], np.log(reference[kept] / policy[kept]))
        ever |= bool(ledger.lower_bound()[0] > p * (1 + 1e-9))
        shaped = correct[y] - 0.05 * np.log(policy[y] / reference[y])
        advantage = (shaped - shaped.mean()) * GROUP / (GROUP - 1)  # each reward less the mean of the others'
        gradient = np.bincount(y, advantage, COMPLETIONS) - advantage.sum() * policy
        logits = logits + 2.0 * gradient / GROUP
    return ever, float(ledger.lower_bound()[0] / p), float(policy[correct].sum()), first
