"""From probe rounds to the report of a run: counts, verdicts by family, checks, movements, and numbers for the log."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fe_posttrain.support.calls import IN, OUT, UNKNOWN
from fe_posttrain.support.counts import Counts
from fe_posttrain.support.displacement import Closure
from fe_posttrain.support.report import report
from fe_posttrain.support.words import down
from fe_posttrain.tracking.probes import Probes, Round
from fe_posttrain.training.recording import as_text

_MEMBERSHIP = {IN: "in", OUT: "out", UNKNOWN: "unknown"}
LARGEST_FLOOR = 0.05  # guesses beyond this make "correct" say little
LARGEST_CLOSURE = 0.3  # nats: more fails if it is beyond 3 se too, and a larger se is no check


def reported(
    probes: Probes, found: Round, reference: str, tag: str, ended: Closure | None, *, pooled_labels: bool
) -> dict[str, Any]:
    """The report of a round, JSON values; see `support.report`. Moves the states that entries and exits are told by.

    Args:
        reference: its name in the key.
        tag: column of the probe prompts by which the verdict is also given.
        ended: closure of the displacements, at the end of a run.
    """
    names = tuple(map(str, range(len(probes.rows))))
    tags = tuple(str(row[tag]) for row in probes.rows) if all(tag in row for row in probes.rows) else None
    before = Counts(names, *probes.bank.counts, tags, "reference")
    trained = Counts(names, *found.totals, tags, "trained")
    first = probes.bank.screened  # their number is fixed; how many more there are depends on what they showed
    screened = Counts(names, first.sum(1), np.full(len(names), first.shape[1]), tags, "reference")
    checks = {"bar": _bar_check(found.bar), "guess_floor": _floor_check(found.guess_floor)}
    if ended is not None:
        checks["closure"] = _closure_check(ended)
    body = report(
        replace(probes.key, reference=reference),
        before,
        trained,
        probes.verdict(found),
        probes.regimes(found),
        checks=checks,
        families={name: probes.verdict(found, rows) for name, rows in trained.families().items()},
        screened=screened,
    )
    body |= {"step": found.step, "kl": found.kl, "weights": found.weights, "movements": probes.movements(found)}
    body["points"]["prompt"] = [shortened(as_text(row["prompt"])) for row in probes.rows]
    body["points"]["screened"] = {"correct": screened.correct.tolist(), "drawn": screened.drawn.tolist()}
    body["points"]["support"] = {
        "start": [_MEMBERSHIP[state] for state in probes.at_start.tolist()],
        "now": [_MEMBERSHIP[state] for state in probes.states[probes.key.budget].tolist()],
    }
    if probes.labels is not None:
        body["labels"] = probes.label_movements(found, pooled_labels)
    if probes.channels or probes.demonstrated.any():
        body["channels"] = probes.opened()
    return body


def metrics_of(body: dict[str, Any]) -> dict[str, float]:
    """Numbers of a report under the keys that they are logged by; verdict terms in percentage points."""
    terms, checks = body["verdict"], body["checks"]
    found = {
        "support/gain": terms["gain"]["value"],
        "support/elicited_low": terms["elicited"]["low"],
        "support/created_low": terms["created"]["low"],
        "support/lost_low": terms["lost"]["low"],
        "support/undetermined": terms["undetermined"]["value"],
        "support/bar_df": checks["bar"]["df"],
        "support/guess_floor": checks["guess_floor"]["rate"],
        "support/probe_kl": body["kl"],
    }
    found |= {f"support/{name}": value for name, value in body.get("objective", {}).items()}
    if "closure" in checks:
        found["support/closure"] = checks["closure"]["value"]
    for side in ("reference", "trained"):
        found |= {f"support/calls/{side}/{regime}": count for regime, count in body["calls"][side].items()}
    at_primary = body["movements"][str(body["key"]["budget"])]
    found |= {f"support/{name}": len(at_primary[name]) for name in ("entered", "left")}
    if at_primary["jaccard"] is not None:
        found |= dict(zip(("support/jaccard_low", "support/jaccard_high"), at_primary["jaccard"], strict=True))
    found |= {f"support/labels/{label}": shown["trained"] for label, shown in body.get("labels", {}).items()}
    return {key: value for key, value in found.items() if value is not None}


def samples_of(body: dict[str, Any], rows: Sequence[dict], shown: Sequence[dict]) -> list[dict[str, Any]]:
    """What `Probes.round` shows, as rows of a samples file; the energy is -1 for a correct completion and else 0."""
    side = {"reference": "reference", "policy": "trained"}
    points = body["points"]
    return [
        {
            "model": sample["model"],
            "prompt": as_text(rows[sample["row"]]["prompt"]),
            "family": points["family"][sample["row"]],
            "completion": as_text(sample["completion"]),
            "correct": sample["correct"],
            "energy": -1.0 if sample["correct"] else 0.0,
            "log_ratio": sample["log_ratio"],
            "regime": points["regime"][side[sample["model"]]][sample["row"]],
        }
        for sample in shown
    ]


def shortened(text: str, most: int = 160) -> str:
    """On one line, with an ellipsis where it was cut."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def in_brief(body: dict[str, Any]) -> str:
    """The terms of the verdict on one line, percentage points; lower ends, rounded down, where they are certified."""
    terms = body["verdict"]
    certified = ", ".join(f"{name} >= {down(terms[name]['low'])}" for name in ("elicited", "created", "lost"))
    return f"gain {terms['gain']['value']:+.1f} points, {certified} at B = {body['key']['budget']}"


def training_shares(rows: Sequence[dict], train_dataset, tag: str) -> np.ndarray:
    """Weight of each probe prompt (M,), mean 1: families count as they do among the training prompts."""
    if not (all(tag in row for row in rows) and tag in train_dataset.column_names):
        return np.ones(len(rows))
    names, counts = np.unique(np.array(train_dataset[tag], dtype=str), return_counts=True)
    trained = dict(zip(names.tolist(), counts / counts.sum(), strict=True))
    mine = [str(row[tag]) for row in rows]
    weight = np.array([trained.get(name, 0.0) / mine.count(name) for name in mine])
    return weight / weight.mean() if weight.any() else np.ones(len(mine))


def mean_over_prompts(p: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Weighted mean over prompts and its standard error; weights have mean 1."""
    mean = float((weight * p).mean())
    spread = ((weight * (p - mean)) ** 2).sum() / len(p)
    return mean, float(np.sqrt(spread / max(1, len(p) - 1)))


def _bar_check(bar: dict) -> dict[str, Any]:
    if bar["se"] is None:
        return bar | {"why": "the draws of the two do not meet"}
    return bar | {"why": f"{bar['df']:+.2f} nats, SE {bar['se']:.2f}"}


def _floor_check(rate: float) -> dict[str, Any]:
    if np.isnan(rate):
        return {"verdict": "not checked", "rate": None}
    why = f"{rate:.3f} of the completions pass for another prompt"
    return {"verdict": "passed" if rate <= LARGEST_FLOOR else "failed", "rate": rate, "why": why}


def _closure_check(ended: Closure) -> dict[str, Any]:
    if not np.isfinite(ended.se):
        why = "a window had one prompt only: its error is not known"
        return {"verdict": "not checked", "value": ended.value, "se": None, "why": why}
    why = f"{ended.value:+.2f} nats, SE {ended.se:.2f}"
    found = {"value": ended.value, "se": ended.se, "why": why}
    if abs(ended.value) > max(LARGEST_CLOSURE, 3 * ended.se):
        return {"verdict": "failed", **found}
    return {"verdict": "not checked" if ended.se > LARGEST_CLOSURE else "passed", **found}
