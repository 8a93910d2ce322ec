"""Displacement on real runs: windows and closure against exact values, and a change of known size that is injected."""

import tempfile

import numpy as np
import torch
from studies.support_runs import Run, exact, train

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.support.displacement import rms, window
from fe_posttrain.tasks.digits import correct, prompts
from fe_posttrain.tracking.drawing import Drawing
from fe_posttrain.tracking.reporting import LARGEST_CLOSURE
from fe_posttrain.tracking.weights import KeptWeights

RL = ("tail_10", "basin")
ARMS = {  # name: recipe, families, settings in the place of the recipe's
    "rl": ("rl", RL, {}),
    "mixture": ("mixture", (*RL, "barrier"), {}),
    "mixture, 32 prompts a step": (
        "mixture",
        (*RL, "barrier"),
        {"per_device_train_batch_size": 128, "num_generations": 4},
    ),
}
WATCHED = 2048  # training prompts whose exact mean p is the truth: all of them
SIZES = (0.01, 0.02, 0.05)  # nats that are injected
WINDOWS, GROUPS, EACH, ROWS = 300, 8, 16, 16  # of fresh draws: prompts, draws of each, correct rows scored again


def support_displacement(seeds: int = 3) -> dict:
    """Sum and RMS of a run's windows against exact ln(P_t/P_{t-k}) of its training prompts; injected changes."""
    runs, injected = [], []
    for arm, (recipe, families, settings) in ARMS.items():
        for seed in range(seeds):
            demonstrated = ("barrier",) if recipe == "mixture" else ()
            run = train(
                recipe, families, seed, tempfile.mkdtemp(), probes=families, demonstrated=demonstrated,
                watched=WATCHED, support={"reference_draws": 64}, **settings,
            )  # fmt: skip
            runs.append({"arm": arm, "seed": seed} | _against_exact(run))
            print(runs[-1], flush=True)
            if arm == "rl":
                injected += [{"seed": seed} | found for found in _injected(run, seed)]
                print(injected[-len(SIZES) :], flush=True)
    return {
        "what": "displacement of whole runs (16 correct rows a window) against exact ln(P_t/P_{t-k}) of "
        f"{WATCHED} training prompts, nats; the recipes have 8 (rl) and 4 (mixture) prompts a step; injected: the "
        "trained weights moved towards the reference's by a share that changes ln P as given, "
        f"{WINDOWS} windows of {GROUPS} x {EACH} fresh draws, {ROWS} correct rows each",
        "bars": {"closure": "at most max(.3 nats, 3 SE)", "injected_rms": "within 20 % of exact"},
        "closures": _closures(runs),
        "worst_injected_error_percent": max(abs(found["rms_error_percent"]) for found in injected),
        "runs": runs,
        "injected": injected,
    }


def _closures(runs: list[dict]) -> dict[str, dict[str, int]]:
    """Per arm, closures within the bar, within .3 nats alone (a large SE lets anything pass), and of unknown SE."""
    return {
        arm: {
            "runs": len(mine := [run for run in runs if run["arm"] == arm]),
            "within_bar": sum(run["closure_within"] for run in mine),
            "within_0.3_nats": sum(abs(run["closure"]) <= LARGEST_CLOSURE for run in mine),
            "se_infinite": sum(run["closure_se"] is None or not np.isfinite(run["closure_se"]) for run in mine),
        }
        for arm in ARMS
    }


def _against_exact(run: Run) -> dict:
    found, watch = run.support.displacements.windows, run.watch
    watch.measure(run.trainer.state.global_step)
    true = np.array([np.log(watch.mean_p[w.step] / watch.mean_p[w.step - w.updates]) for w in found])
    value, se = np.array([w.value for w in found]), np.array([w.se for w in found])
    halved = np.array([w.halves is not None for w in found])
    whole = float(np.log(watch.mean_p[found[-1].step] / watch.mean_p[0]))
    closure = watch.reports[-1]["checks"]["closure"]
    return {
        "exact_mean_p": [round(watch.mean_p[0], 4), round(watch.mean_p[found[-1].step], 4)],
        "sum_of_windows": round(float(value.sum()), 3),
        "exact": round(whole, 3),
        "closure": round(closure["value"], 3),
        "closure_se": round(closure["se"], 3),
        "closure_within": bool(abs(closure["value"]) <= max(LARGEST_CLOSURE, 3 * closure["se"])),
        "closure_against_exact": round(float(value.sum() - whole), 3),
        "windows": len(found),
        "windows_beyond_3_se": int((abs(value - true) > 3 * se).sum()),
        "windows_within_2_se": int((abs(value - true) <= 2 * se).sum()),
        "worst_window": round(float(abs(value - true).max()), 3),
        "rms_split_half": round(rms(found), 4),
        "rms_exact": round(float(np.sqrt((true[halved] ** 2).mean())), 4),
        "rms_naive": round(float(np.sqrt((value**2).mean())), 4),
        "first_windows": [[round(float(x), 3) for x in row] for row in zip(value[:4], se[:4], true[:4], strict=True)],
    }


def _injected(run: Run, seed: int) -> list[dict]:
    """RMS of windows between the trained weights, as pi_t, and weights a little nearer to the reference's."""
    model, tokenizer = run.policy, run.trainer.processing_class
    families = RL
    asked = [x for family in families for x in prompts(family, WINDOWS * GROUPS // len(families), seed + 7)]
    rng = np.random.default_rng(seed)
    asked = [asked[i] for i in rng.permutation(len(asked))]
    drawing = Drawing(
        asked,
        Decoding(run.trainer.args.max_completion_length, 1.0),
        lambda texts: tokenizer(texts)["input_ids"],
        lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True),
        eos_token_ids=run.trainer.eos_token_ids,
        pad_token_id=tokenizer.pad_token_id,
    )
    with run.support._reference() as reference:
        goal = KeptWeights(reference.requires_grad_(True))
    p_now, drawn = (
        exact(model, tokenizer, asked).mean(),
        drawing.draw(model, np.repeat(np.arange(len(asked)), EACH), "windows", seed),
    )
    hit = np.array(correct([asked[i] for i in drawn.row], drawn.completions)) > 0
    per_window = GROUPS * EACH
    chosen = [
        np.sort(rng.permutation(np.flatnonzero(hit[i : i + per_window]))[:ROWS]) + i
        for i in range(0, WINDOWS * per_window, per_window)
    ]
    rows = np.concatenate(chosen)
    found = []
    for size in SIZES:
        share = _share_that_moves(model, goal, size, lambda: np.log(p_now / exact(model, tokenizer, asked).mean()))
        with _between(model, goal, share).swapped_in(model):
            true = float(np.log(p_now / exact(model, tokenizer, asked).mean()))
            before = drawing.log_probs(model, drawn.row[rows], [drawn.completion_ids[i] for i in rows])
        ratio = dict(zip(rows.tolist(), before - drawn.log_probs[rows], strict=True))
        windows = [window(i, 8, [ratio[j] for j in some.tolist()], drawn.row[some]) for i, some in enumerate(chosen)]
        halves = np.array([w.halves[0] * w.halves[1] for w in windows if w.halves])
        estimate = rms(windows)
        found.append(
            {
                "exact": round(true, 4),
                "rms_split_half": round(estimate, 4),
                "rms_error_percent": round(100 * (estimate / true - 1), 1),
                "rms_error_se_percent": round(
                    float(50 * halves.std(ddof=1) / np.sqrt(len(halves)) / max(halves.mean(), 1e-12)), 1
                ),
                "mean": round(float(np.mean([w.value for w in windows])), 4),
                "rms_naive": round(float(np.sqrt(np.mean([w.value**2 for w in windows]))), 4),
            }
        )
    return found


def _between(model: torch.nn.Module, goal: KeptWeights, share: float) -> KeptWeights:
    """The weights of `model` moved a share of the way to `goal`."""
    moved = KeptWeights(model)
    for name, weight in moved._weights.items():
        weight.lerp_(goal._weights[name], share)
    return moved


def _share_that_moves(model: torch.nn.Module, goal: KeptWeights, size: float, moved) -> float:
    """Bisection for the share of the way that changes ln P by `size`; `moved()`: what the weights in place change."""
    low, high = 0.0, 1.0
    for _ in range(16):
        middle = (low + high) / 2
        with _between(model, goal, middle).swapped_in(model):
            low, high = (middle, high) if moved() < size else (low, middle)
    return (low + high) / 2
