"""Simulated worlds whose p_ref, p_t, Z and A(B) are known: do nominal bounds cover, and which estimates are biased?"""

import math

import numpy as np
from studies.adaptive import just_below, watched

from fe_posttrain.support.attribution import attributed_share, half_gain_budget
from fe_posttrain.support.bridges import bar
from fe_posttrain.support.budgets import reach, threshold
from fe_posttrain.support.displacement import window
from fe_posttrain.support.evidence import anytime_lower_bound, anytime_upper_bound
from fe_posttrain.support.gaps import cumulant_gap, jarzynski_gap, log_partition
from fe_posttrain.support.intervals import lower_bound, pass_at_k, upper_bound
from fe_posttrain.support.population import npmle
from fe_posttrain.support.verdict import exact_points, verdict_of_counts

TERMS = ("elicited", "created", "lost")
ALPHA, BAR = 0.05, 0.926  # the least coverage of 500 worlds that .95 is not rejected by, at 1 %
BETA = 0.3


def worlds(repeats: int = 500) -> dict:
    """Coverage of every nominal .95 bound, and bias of every point estimate, over random worlds."""
    rng = np.random.default_rng(0)
    covered: dict[str, list[bool]] = {}
    errors: dict[str, list[float]] = {}
    tight: dict[str, list[float]] = {name: [] for name in TERMS}
    for seed in range(repeats):
        m = int(2 ** rng.uniform(0, 7))
        budget = int(rng.choice([16, 256, 1024]))
        before, after = world(rng, m, budget)
        for name, value in _bounds(rng, before, after, budget, seed, tight).items():
            covered.setdefault(name, []).append(value)
        for name, value in _errors(rng, before, after, budget).items():
            errors.setdefault(name, []).append(value)
        for _ in range(8):
            for name, value in _of_log_weights(rng).items():
                (covered if isinstance(value, bool) else errors).setdefault(name, []).append(value)
    shares = {name: float(np.mean(values)) for name, values in covered.items()}
    return {
        "worlds": repeats,
        "nominal": 1 - ALPHA,
        "bar": BAR,
        "coverage": shares,
        "least_coverage": min(shares.values()),
        "power": {name: _power(values) for name, values in tight.items()},
        "bias": {name: mean_and_error(values) for name, values in errors.items()},
    }


def world(rng, m: int, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """p before and after: basins, tails, prompts near p*_B and barriers; moved up, down or not at all."""
    edge = float(threshold(budget))
    kind = rng.integers(0, 4, size=m)
    before = np.choose(
        kind,
        [
            rng.uniform(0.5, 1, m),
            10 ** rng.uniform(-3, -0.5, m),
            np.minimum(edge * 10 ** rng.uniform(-0.5, 0.5, m), 0.99),
            10 ** rng.uniform(-9, -5, m),
        ],
    )
    after = np.choose(
        rng.integers(0, 3, size=m), [before, rng.uniform(0, 1, m), np.maximum(before, rng.uniform(0.7, 1, m))]
    )
    return before, after


def _bounds(rng, before: np.ndarray, after: np.ndarray, budget: int, seed: int, tight: dict) -> dict[str, bool]:
    n_r, n_t, m = int(rng.choice([64, 1024, 16384])), int(rng.choice([16, 64, 1024])), len(before)
    hits, later = rng.binomial(n_r, before), rng.binomial(n_t, after)
    found = verdict_of_counts((hits, np.full(m, n_r)), (later, np.full(m, n_t)), budget=budget, seed=seed)
    points = exact_points(before, after, budget)
    result = {f"verdict: {t}.low": getattr(found, t).low <= points[t] + 1e-9 for t in TERMS}
    result |= {f"verdict: {t} in [low, high]": _inside(getattr(found, t), points[t]) for t in TERMS}
    for t in TERMS:
        if points[t] > 1:  # points; less can hardly be certified
            tight[t].append(getattr(found, t).low / points[t])
    result["verdict: all at once"] = all(_inside(getattr(found, t), points[t]) for t in TERMS)
    result["verdict: gain in [low, high]"] = _inside(found.gain, points["gain"])
    pooled, draws = int(hits.sum()), n_r * m
    result["pooled Clopper-Pearson, low"] = bool(lower_bound(pooled, draws, ALPHA) <= before.mean())
    result["pooled Clopper-Pearson, high"] = bool(upper_bound(pooled, draws, ALPHA) >= before.mean())
    one = int(rng.integers(m))
    result["Clopper-Pearson of a prompt, low"] = bool(lower_bound(hits[one], n_r, ALPHA) <= before[one])
    result["Clopper-Pearson of a prompt, high"] = bool(upper_bound(hits[one], n_r, ALPHA) >= before[one])
    stopped, drawn = _stopped(rng, before[one])
    result["e-process at a chosen moment, low"] = bool(anytime_lower_bound(stopped, drawn, ALPHA) <= before[one])
    result["e-process at a chosen moment, high"] = bool(anytime_upper_bound(stopped, drawn, ALPHA) >= before[one])
    result["ledger under training"] = watched(rng, just_below(max(before[one], 1e-3)), steps=20)[0] is False
    return result


def _power(shares: list[float]) -> dict[str, float]:
    """Of worlds with more than a point of a term: in how many some is certified, and how much of it there.

    Where nothing is certified a lower bound of 0 covers trivially; coverage means something in the others.
    """
    some = [share for share in shares if share > 0]
    return {"worlds": len(shares), "certified": len(some), "median_share_there": float(np.median(some))}


def _inside(term, exactly: float) -> bool:
    return bool(term.low - 1e-9 <= exactly <= term.high + 1e-9)


def _stopped(rng, p: float) -> tuple[int, int]:
    """Draws until the estimate looks best to somebody: the moment of its largest distance from p, after 8."""
    hits = (rng.random(400) < p).cumsum()
    drawn = np.arange(1, 401)
    worst = 8 + int(np.argmax(np.abs(hits[8:] / drawn[8:] - p) * np.sqrt(drawn[8:])))
    return int(hits[worst]), int(drawn[worst])


def _errors(rng, before: np.ndarray, after: np.ndarray, budget: int) -> dict[str, float]:
    """Estimate less truth, of the estimates that are made from counts of 64 draws."""
    n, m = 64, len(before)
    hits, later = rng.binomial(n, before), rng.binomial(n, after)
    k = 16
    found = {
        "pass@16 (unbiased)": float(pass_at_k(hits, n, k).mean() - reach(before, k).mean()),
        "gain (unbiased)": float((later - hits).mean() / n - (after - before).mean()),
    }
    plugged, exactly = (exact_points(*pair, budget) for pair in ((hits / n, later / n), (before, after)))
    found |= {f"plug-in {t}, points (biased)": plugged[t] - exactly[t] for t in TERMS}
    share, truth = attributed_share(hits / n, later / n, budget), attributed_share(before, after, budget)
    if share is not None and truth is not None:
        found["plug-in A(B) (biased)"] = share - truth
    # B_50 is lost where plug-in creation is half the gain, so those found are no fair sample of worlds.
    halves = half_gain_budget(hits / n, later / n), half_gain_budget(before, after)
    if halves[1] is not None:
        found["plug-in B_50 is missing, share"] = float(halves[0] is None)
    if None not in halves:
        found["plug-in ln B_50 (where both are found)"] = math.log(halves[0] / halves[1])
    population = npmle(hits, np.full(m, n))
    found["NPMLE cover at p*_16 (near the edge)"] = float(population.cover(threshold(16))) - float(
        (before >= threshold(16)).mean()
    )
    return found


def _of_log_weights(rng) -> dict[str, float | bool]:
    """A world of 30 completions, enumerated: displacement, BAR, gaps."""
    k, correct = 30, np.arange(30) < 10
    logits = rng.normal(size=k)
    reference = np.exp(logits) / np.exp(logits).sum()
    moved = logits + 0.4 * rng.normal(size=k) + 0.5 * correct
    policy = np.exp(moved) / np.exp(moved).sum()
    ratio = np.log(policy / reference)
    y, z = rng.choice(k, 1024, p=policy), rng.choice(k, 1024, p=reference)
    check = bar(ratio[z] + 0.1, ratio[y] + 0.1)
    right = y[correct[y]][:256]
    moved_by = window(1, 1, -ratio[right], np.arange(len(right)))
    exactly = float(np.log(policy[correct].sum() / reference[correct].sum()))
    shaped = correct - BETA * ratio
    gap = BETA * float(np.log(reference @ np.exp(correct / BETA))) - float(policy @ shaped)
    hits = rng.binomial(1024, reference[correct].sum())
    return {
        "BAR of an injected .1 nat (consistent)": check.df - 0.1,
        "BAR in 1.96 se": bool(abs(check.df - 0.1) <= 1.96 * check.se),
        "displacement (bias taken off to first order)": moved_by.value - exactly,
        "displacement in 1.96 se": bool(abs(moved_by.value - exactly) <= 1.96 * moved_by.se),
        "Jarzynski gap of 64 rollouts (low)": float(jarzynski_gap(shaped[y[:64]], BETA)) - gap,
        "cumulant gap of 64 rollouts (second order)": float(cumulant_gap(shaped[y[:64]], BETA)) - gap,
        "ln Z of 1024 draws in closed form (consistent)": float(log_partition(hits / 1024, 1.0, BETA))
        - float(log_partition(reference[correct].sum(), 1.0, BETA)),
    }


def mean_and_error(values: list[float]) -> dict[str, float]:
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": mean, "se": error, "in_se": mean / error if error else 0.0}
