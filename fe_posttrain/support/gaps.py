"""The free-energy gap F - F* and what KL buys, without enumerating completions.

Natural logs; beta in energy units per nat; gaps in energy units (divide by beta for nats).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, rel_entr


def log_partition(p_reference: ArrayLike, beta: float, reward_energy_weight: float = 1.0) -> NDArray:
    """ln Z = ln(1 + p_ref (e^{w/beta} - 1)) of a 0/1 reward; stable for any w/beta."""
    p, w = np.asarray(p_reference, dtype=float), reward_energy_weight / beta
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-p), np.log(p) + w)


def gap_interval(
    free_energy: ArrayLike, p_low: ArrayLike, p_high: ArrayLike, beta: float, reward_energy_weight: float = 1.0
) -> tuple[NDArray, NDArray]:
    """F - F* with F* = -beta ln Z(p_ref), for p_ref anywhere in [p_low, p_high]."""
    ends = [beta * log_partition(p, beta, reward_energy_weight) for p in (p_low, p_high)]
    return np.asarray(free_energy) + ends[0], np.asarray(free_energy) + ends[1]


def jarzynski_gap(shaped: ArrayLike, beta: float) -> float:
    """beta ln mean e^{s/beta} - mean s, for shaped rewards s = w_r r - beta ln(pi/ref) of policy draws.

    E e^{s/beta} = Z, so this is a lower bound of F - F* in expectation; with few draws far below.
    """
    s = np.asarray(shaped, dtype=float)
    return float(beta * (logsumexp(s / beta) - np.log(len(s))) - s.mean())


def cumulant_gap(shaped: ArrayLike, beta: float) -> float:
    """Var(s) / (2 beta): the gap to second order, exact where s is normal."""
    return float(np.var(np.asarray(shaped, dtype=float), ddof=1) / (2 * beta))


def distrust(jarzynski: float, cumulant: float, beta: float) -> bool:
    """Whether the two estimates differ by more than a nat, so that neither is to be believed."""
    return abs(jarzynski - cumulant) / beta > 1


def kl_bernoulli(p: ArrayLike, q: ArrayLike) -> NDArray:
    """p ln(p/q) + (1-p) ln((1-p)/(1-q)), nats."""
    p, q = np.asarray(p, dtype=float), np.asarray(q, dtype=float)
    return rel_entr(p, q) + rel_entr(1 - p, 1 - q)


def kl_efficiency(p_trained: ArrayLike, p_reference: ArrayLike, kl: ArrayLike) -> NDArray:
    """kl_bernoulli(p_t || p_ref) / KL(pi || ref), at most 1: the share of moved nats spent on success; NaN at KL 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return kl_bernoulli(p_trained, p_reference) / np.asarray(kl, dtype=float)


def excess_kl(log_ratio: ArrayLike) -> float:
    """KL(pi(.|correct) || ref(.|correct)) from ln(pi/ref) of correct policy draws, nats.

    E[ln(pi/ref) | correct] - ln(p_t/p_ref), with p_ref/p_t = E[ref/pi | correct].
    """
    ratio = np.asarray(log_ratio, dtype=float)
    return float(ratio.mean() + logsumexp(-ratio) - np.log(len(ratio)))


def outside_mass(log_ratio: ArrayLike, budget: float) -> float:
    """P(ln(pi/ref) > ln B | correct): the share of successes that the reference would not write once in B draws."""
    return float((np.asarray(log_ratio) > np.log(budget)).mean())
