"""Worlds of counts in which training did nothing: nothing may be called a change beyond its nominal rate."""

import numpy as np
from scipy.stats import binom
from studies.worlds import ALPHA, TERMS, mean_and_error, world

from fe_posttrain.support.budgets import threshold
from fe_posttrain.support.calls import IN, OUT, Evidence, membership, transitions
from fe_posttrain.support.evidence import e_bh, log_e_above, log_e_below
from fe_posttrain.support.sightings import null_floor, sightings
from fe_posttrain.support.verdict import verdict_of_counts


def null_worlds(repeats: int = 1000) -> dict:
    """p_t = p_ref exactly: how often anything is called a change, and naive counts beside their floor."""
    rng, counts = np.random.default_rng(5), {name: 0 for name in ("entries", "exits", *TERMS, "any term")}
    calls = {"states": 0, "wrong": 0, "worlds_with_entry_or_exit": 0}
    differences = []
    for seed in range(repeats):
        budget = int(rng.choice([16, 256]))
        m, n_r, n_t = 64, 256, 4 * budget if budget == 16 else 64
        p, _ = world(rng, m, budget)
        hits, later = rng.binomial(n_r, p), rng.binomial(n_t, p)
        state = membership(Evidence.of_counts(hits, np.full(m, n_r), budget))
        inside = p >= threshold(budget)
        calls["states"] += int((state != 0).sum())
        calls["wrong"] += int(((state == 1) & ~inside).sum() + ((state == -1) & inside).sum())
        moved = transitions(state, later, n_t, budget)
        counts["entries"] += len(moved.entered)
        counts["exits"] += len(moved.left)
        calls["worlds_with_entry_or_exit"] += bool(len(moved.entered) + len(moved.left))
        found = verdict_of_counts((hits, np.full(m, n_r)), (later, np.full(m, n_t)), budget=budget, seed=seed)
        certified = [getattr(found, name).low > 0 for name in TERMS]
        for name, positive in zip(TERMS, certified, strict=True):
            counts[name] += positive
        counts["any term"] += any(certified)
        seen, floor = sightings(hits, n_r, later, n_t), null_floor(hits, n_r, later, n_t)
        differences.append((seen.expanded - floor.expanded, seen.shrunk - floor.shrunk))
    limit = int(binom.ppf(0.99, repeats, ALPHA))
    return {
        "worlds": repeats,
        "prompts_a_world": 64,
        "counts": counts,
        "most_at_nominal_rate": {"any term": limit, "each term, at alpha/3": int(binom.ppf(0.99, repeats, ALPHA / 3))},
        "calls": calls,
        "on_the_edge": _on_the_edge(repeats // 2),
        "naive_less_null_floor": {
            name: mean_and_error([pair[i] for pair in differences]) for i, name in enumerate(("expanded", "shrunk"))
        },
    }


def _on_the_edge(repeats: int) -> dict:
    """Where false entries and exits are likeliest: p a hair on the still side, beside 2,000 prompts called surely.

    `over_all_prompts`: the same draws with one e-BH for all, whose rate holds over all calls and not over movements;
    it shows that these worlds can tell.
    """
    rng, sure, edge, drawn = np.random.default_rng(6), 2000, 200, 64
    found = {"worlds": repeats, "most_at_nominal_rate": int(binom.ppf(0.99, repeats, ALPHA))}
    for budget in (4, 16):
        p = float(threshold(budget))
        for name, state, others, mine in (("entry", OUT, 0.99, 0.999 * p), ("exit", IN, 1e-9, 1.001 * p / 4)):
            states = np.repeat([-state, state], [sure, edge])
            hits = rng.binomial(drawn, np.repeat([others, mine], [sure, edge]), (repeats, sure + edge))
            moved = [transitions(states, row, drawn, budget) for row in hits]
            log_e = log_e_above(hits, drawn, p) if name == "entry" else log_e_below(hits, drawn, p / 4)
            together = [e_bh(np.exp(np.minimum(row, 700)), ALPHA)[sure:].any() for row in log_e]
            found[f"{name} at B = {budget}"] = {
                "worlds_with_one": sum(bool(len(m.entered) + len(m.left)) for m in moved),
                "over_all_prompts": int(sum(together)),
            }
    return found
