"""The free-energy gap F - F* without enumeration, and what the nats that a policy moved were spent on.

F(pi) = -E_pi[s] with the shaped reward s = w_r reward - beta ln(pi/ref), F* = -beta ln Z, and the gap is
beta KL(pi || pi*) >= 0 in energy units; divided by beta it is in nats. Of a 0/1 verifier Z depends on p_ref alone: use
`gap_interval`. ln mean e^{r/beta} over a few reference completions is no substitute: at p_ref .01, beta .05 and 8 of
them it is 14 nats too low on average, because what carries Z is not among them.

Samples lie on the last axis, prompts before it; Z, and hence the gap, belongs to one prompt.
Source: Li & Liu 2026, arXiv 2605.08368; Jarzynski 1997, Phys. Rev. Lett. 78, 2690.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr, xlog1py

_ROUNDING = 1e-9
_LARGE = 50.0  # e^50 is far from overflow, and 1 is far below its rounding


def log_partition(p_ref: ArrayLike, reward_energy_weight: ArrayLike, beta: ArrayLike) -> NDArray:
    """ln Z = ln(1 + p_ref (e^{w_r/beta} - 1)) in nats, for a reward that is 1 with probability p_ref and else 0.

    Arguments broadcast; accurate for w_r/beta from 0 to 1e4 and any p_ref, 0 and 1 among them.

    Raises:
        ValueError: p_ref outside [0, 1] (it says which), beta <= 0 or w_r < 0.
    """
    p, tilt = _probability("p_ref", p_ref), _tilt(reward_energy_weight, beta)
    with np.errstate(divide="ignore"):
        large = np.logaddexp(np.log1p(-p), np.log(p) + tilt)
    return np.where(tilt < _LARGE, np.log1p(p * np.expm1(np.minimum(tilt, _LARGE))), large)


def gap_interval(
    free_energy: ArrayLike, p_low: ArrayLike, p_high: ArrayLike, reward_energy_weight: ArrayLike, beta: ArrayLike
) -> tuple[NDArray, NDArray]:
    """(low, high) of F - F* = F + beta ln Z in energy units, for p_ref in [p_low, p_high]; it grows with p_ref.

    A sampled `free_energy` brings its own scatter, which can put `low` below 0.

    Raises:
        ValueError: as `log_partition`; p_low > p_high.
    """
    if (np.asarray(p_low) > np.asarray(p_high)).any():
        raise ValueError("p_low: above p_high; an interval of p_ref is (low, high); swap them")
    low, high = (beta * log_partition(p, reward_energy_weight, beta) for p in (p_low, p_high))
    return free_energy + low, free_energy + high


def jarzynski_gap(shaped: ArrayLike, beta: float) -> NDArray:
    """beta ln mean e^{s/beta} - mean s, an estimate of F - F* in energy units from completions of the policy.

    Exact in the limit where the policy reaches whatever the reference does, since E_pi[e^{s/beta}] = Z. From n samples
    it is a lower bound *in expectation* (Jensen; the more so what of Z the policy misses), and never negative.

    Args:
        shaped: s = w_r reward - beta (ln pi - ln ref) of completions drawn from pi, shape (..., n) -> (...).
        beta: energy units per nat.

    Raises:
        ValueError: an s that is NaN or infinite (it says which), no samples, or beta <= 0.
    """
    s = _samples("shaped", shaped, least=1) / _positive(beta)
    return beta * (_log_mean_exp(s) - s.mean(-1))


def cumulant_gap(shaped: ArrayLike, beta: float) -> NDArray:
    """Var(s) / (2 beta), the gap's second-order expansion in energy units (/ 2 beta^2 in nats); (..., n) -> (...).

    Arguments and errors as `jarzynski_gap`, and two samples at least. Right where s is nearly normal: near the optimum.
    """
    return _samples("shaped", shaped, least=2).var(-1, ddof=1) / (2 * _positive(beta))


def distrust(jarzynski: ArrayLike, cumulant: ArrayLike, beta: float) -> NDArray:
    """True where the two gaps, in energy units, differ by more than 1 nat or are not numbers: believe neither."""
    return ~(np.abs(np.asarray(jarzynski) - cumulant) <= _positive(beta))


def kl_bernoulli(p: ArrayLike, q: ArrayLike) -> NDArray:
    """p ln(p/q) + (1-p) ln((1-p)/(1-q)) in nats; arguments broadcast.

    Raises:
        ValueError: p or q outside [0, 1]; it says which.
    """
    p, q = _probability("p", p), _probability("q", q)
    with np.errstate(divide="ignore"):
        return rel_entr(p, q) + (xlog1py(1 - p, -p) - xlog1py(1 - p, -q))


def kl_efficiency(p_t: ArrayLike, p_ref: ArrayLike, kl: ArrayLike) -> NDArray:
    """kl_bernoulli(p_t || p_ref) / KL(pi || ref), nats over nats: the share of moved nats that was spent on success.

    In [0, 1] for exact arguments (data processing), and cleared of rounding there; 1 for the Gibbs optimum. NaN where
    `kl`, in nats per sequence, is not above 0. Above 1 it says that `kl` was estimated too low.

    Raises:
        ValueError: a probability outside [0, 1]; it says which.
    """
    spent, kl = kl_bernoulli(p_t, p_ref), np.asarray(kl, dtype=float)
    share = np.divide(spent, kl, out=np.full(np.broadcast(spent, kl).shape, np.nan), where=kl > 0)
    return np.where(np.abs(share - 0.5) <= 0.5 + _ROUNDING, np.clip(share, 0, 1), share)


def excess_kl(log_ratio_of_correct: ArrayLike) -> NDArray:
    """KL(pi(.|correct) || ref(.|correct)) in nats: how far what is correct was reshaped, beyond being more frequent.

    = E[l] + ln E[e^-l] over correct completions y of the policy, l = ln pi(y) - ln ref(y): given correct, the two laws
    are pi/p_t and ref/p_ref, so the divergence is E[l] - ln(p_t/p_ref), and E[e^-l] = sum over correct y of
    (pi/p_t)(ref/pi) = p_ref/p_t. From samples a lower bound in expectation (Jensen), never negative; over rows of
    several prompts it is that of the pair (prompt, completion). (..., n) -> (...); NaN for no rows, infinite where
    the reference has no mass.

    Raises:
        ValueError: a log-ratio that is NaN or -inf; it says which.
    """
    ratio = _ratios(log_ratio_of_correct)
    if ratio.shape[-1] == 0:
        return np.full(ratio.shape[:-1], np.nan)[()]
    outside = np.isinf(ratio).any(-1)
    finite = np.where(outside[..., None], 0.0, ratio)
    return np.where(outside, np.inf, finite.mean(-1) + _log_mean_exp(-finite))[()]


def outside_mass(log_ratio_of_correct: ArrayLike, budget: float) -> NDArray:
    """Share of correct completions of the policy with ln(pi/ref) > ln B: shown over B times as often as before.

    (..., n) -> (...); NaN for no rows. Raises ValueError as `excess_kl`.
    """
    ratio = _ratios(log_ratio_of_correct)
    return (ratio > np.log(budget)).mean(-1) if ratio.shape[-1] else np.full(ratio.shape[:-1], np.nan)[()]


def _log_mean_exp(values: NDArray) -> NDArray:
    return np.logaddexp.reduce(values, axis=-1) - np.log(values.shape[-1])  # SciPy's is slow on few values


def _positive(beta: ArrayLike) -> ArrayLike:
    if not (np.asarray(beta) > 0).all():
        raise ValueError(f"beta: {beta}; without a temperature there is no optimum to be above; write a number above 0")
    return beta


def _tilt(reward_energy_weight: ArrayLike, beta: ArrayLike) -> NDArray:
    weight = np.asarray(reward_energy_weight, dtype=float)
    if not (weight >= 0).all():
        raise ValueError(f"reward_energy_weight: {weight}; it weighs a reward; write a number of 0 or more")
    return weight / _positive(beta)


def _samples(name: str, values: ArrayLike, least: int) -> NDArray:
    array = np.asarray(values, dtype=float)
    if array.ndim == 0 or array.shape[-1] < least:
        raise ValueError(f"{name}: shape {array.shape}; needs {least} samples or more on its last axis; draw more")
    return _sound(name, array, np.isfinite(array), "an energy is a finite number")


def _ratios(values: ArrayLike) -> NDArray:
    array = np.asarray(values, dtype=float)
    return _sound("log_ratio_of_correct", array, array > -np.inf, "the policy has mass on whatever it drew")


def _probability(name: str, values: ArrayLike) -> NDArray:
    array = np.asarray(values, dtype=float)
    return _sound(name, array, (array >= 0) & (array <= 1), "a probability lies in [0, 1]")


def _sound(name: str, array: NDArray, sound: NDArray, why: str) -> NDArray:
    if not sound.all():
        row = int(np.argmin(sound.ravel()))
        raise ValueError(f"{name}: row {row} is {array.ravel()[row]}; {why}; mend or leave out that row")
    return array
