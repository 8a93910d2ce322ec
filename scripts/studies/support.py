"""Accessible support on real training runs of the testbed, where every p is known: what is claimed, and whether so."""

import statistics
import tempfile

import numpy as np
import torch
from studies.support_runs import PROBES, TERMS, Run, probe_rows, train

from fe_posttrain.support.budgets import threshold
from fe_posttrain.support.calls import IN, OUT, Evidence, membership
from fe_posttrain.support.evidence import e_bh
from fe_posttrain.support.sightings import null_floor, sightings
from fe_posttrain.support.verdict import exact_points
from fe_posttrain.tasks.digits import measured
from fe_posttrain.tracking.callback import SupportCallback
from fe_posttrain.training.rollout_events import prompt_key

FIXED = 1024  # draws of a prompt from either model that sequential ones are compared with


def support_null(seeds: int = 3) -> dict:
    """Learning rate 0, the whole pipeline: whatever is claimed is false."""
    families, runs = tuple(measured(())), []
    for seed in range(seeds):
        arms = {
            "rl": {"recipe": "rl", "prompts": families, "prompt_rows": 160, "seed": seed},
            "sft": {"recipe": "sft", "prompts": (), "demonstrated": ("barrier", "basin"), "seed": seeds + seed},
        }
        for arm, words in arms.items():
            run = train(
                **words, cache=tempfile.mkdtemp(), support={"steps": 20}, learning_rate=0.0, max_steps=60,
                lr_scheduler_type="constant",
            )  # fmt: skip
            runs.append({"seed": words["seed"], "arm": arm} | _null_run(run))
            print(runs[-1], flush=True)
    ledgers = [run["training_ledger"] for run in runs if run["arm"] == "rl"]
    claims = {name: sum(run[name] for run in runs) for name in ("verdicts", "entered", "left", *TERMS)}
    for name in ("expanded", "shrunk"):
        claims[f"seen_{name}"] = sum(run["seen"][name] for run in runs)
        claims[f"null_floor_{name}"] = round(sum(run["null_floor"][name] for run in runs), 1)
    drawn = sum(ledger["prompts"] for ledger in ledgers)
    return {
        "what": "learning rate 0, RL and SFT, all families, 3 probe rounds; verdicts: rounds x (all + each family); "
        "elicited, created, lost: how many of those verdicts certify more than 0",
        "all_runs": claims,
        "training_ledger": {
            "prompts": drawn,
            "bound_above_p_reference": sum(ledger["bound_above_p_reference"] for ledger in ledgers),
            "nominal_share": 0.05,
        },
        "runs": runs,
    }


def _null_run(run: Run) -> dict:
    before, after = (dict(model.named_parameters()) for model in (_reference_weights(run), run.policy))
    reports = run.watch.reports
    verdicts = [part["verdict"] for report in reports for part in (report, *report["families"].values())]
    moved = [moves for report in reports for moves in report["movements"].values()]
    p = run.p_reference([row["prompt"] for row in run.rows])
    found = {
        "weights_identical": all(torch.equal(after[name], weight) for name, weight in before.items()),
        "rounds": len(reports),
        "verdicts": len(verdicts),
        **{name: sum(verdict[name]["low"] > 0 for verdict in verdicts) for name in TERMS},
        **{name: sum(len(moves[name]) for moves in moved) for name in ("entered", "left")},
        "seen_in_fixed_draws": _seen(run),
        "seen": {name: reports[-1]["sightings"][name] for name in ("expanded", "shrunk")},
        "null_floor": {name: round(value, 2) for name, value in reports[-1]["null_floor"].items()},
        "bar": [round(report["checks"]["bar"]["df"], 4) for report in reports],
        "probe_ledger_above_p_reference": int((run.support.probes.ledger.lower_bound() > p).sum()),
    }
    if run.support.riding is not None:
        found["training_ledger"] = _training_ledger(run)
    return found


def _seen(run: Run) -> dict[str, list]:
    """Expanded and shrunk with their floors from the draws of a fixed number: the first ones of both sides."""
    probes = run.support.probes
    n, m = probes.bank.plan.screen, 2 * probes.rounds[-1].drawn
    sides = (probes.bank.screened.sum(1), n, probes.rounds[-1].totals[0], m)
    seen, floor = sightings(*sides), null_floor(*sides)
    return {
        "expanded": [seen.expanded, round(floor.expanded, 2)],
        "shrunk": [seen.shrunk, round(floor.shrunk, 2)],
    }


def _reference_weights(run: Run):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(run.trainer.model.config._name_or_path)


def _training_ledger(run: Run) -> dict[str, int]:
    """How many training prompts have a bound above their exact p_ref, of those that were drawn."""
    riding, prompts = run.support.riding, run.trainer.train_dataset["prompt"]
    by_key = {prompt_key(prompt): prompt for prompt in prompts}
    p = run.p_reference([by_key[int(key)] for key in riding.keys])
    drawn = riding.ledger.drawn > 0
    above = riding.ledger.lower_bound() > p
    return {"prompts": int(drawn.sum()), "bound_above_p_reference": int((above & drawn).sum())}


def support_tail(seeds: int = 3) -> dict:
    """RL on both tails and the basin: the reference's tails are certified from the trained policy's draws alone."""
    families, runs = ("tail_10", "tail_03", "basin"), []
    for seed in range(seeds):
        run = train("rl", families, seed, tempfile.mkdtemp(), probes=families, support={"budget": 1024})
        runs.append({"seed": seed} | _tail_run(run))
        print(runs[-1], flush=True)
    shares = [part["certified_in_share"] for run in runs for part in run["families"].values()]
    return {
        "what": "recipes/rl.yaml without the barrier, B = 1024, 64 draws of the trained policy a probe prompt; "
        "certified IN by the ledger of those draws, no draw of the reference; points of 100",
        "bar": {"certified_in_share": 0.9},
        "least_share_of_a_family": min(shares),
        "mean_share": statistics.mean(shares),
        "runs": runs,
    }


def _tail_run(run: Run) -> dict:
    report, ledger = run.watch.reports[-1], run.support.probes.ledger
    budget = report["key"]["budget"]
    p0 = float(threshold(budget))
    prompts = [row["prompt"] for row in run.rows]
    before, after = run.p_reference(prompts), run.p(prompts)
    by_bound = ledger.lower_bound() >= p0 * (1 - 1e-9)
    together = e_bh(np.exp(np.minimum(ledger.log_e_at(p0), 700)), report["key"]["alpha"])
    families = {}
    for i, family in enumerate(("tail_10", "tail_03")):
        part = slice(i * PROBES, (i + 1) * PROBES)
        points, verdict = exact_points(before[part], after[part], budget), report["families"][family]["verdict"]
        families[family] = {
            "trained_draws": int(ledger.drawn[part].min()),
            "certified_in_share": float(by_bound[part].mean()),
            "certified_in_share_e_bh": float(together[part].mean()),
            "truly_in_share": float((before[part] >= p0).mean()),
            "exact_p": [round(float(x[part].mean()), 4) for x in (before, after)],
            **_points(verdict, points),
        }
    certified_falsely = int((by_bound & (before < p0)).sum())
    whole = _points(report["verdict"], exact_points(before, after, budget))
    return {
        "families": families,
        "certified_falsely": certified_falsely,
        "all": whole,
        "closure": _rounded(report["checks"]["closure"]),
        "bar": _rounded(report["checks"]["bar"]),
        "sentence": report["sentence"],
    }


def _points(verdict: dict, exact: dict[str, float]) -> dict[str, dict]:
    """Each term's [low, high] and exact points."""
    return {
        name: {
            "low": round(verdict[name]["low"], 1),
            "high": round(verdict[name]["high"], 1),
            "exact": round(exact[name], 1),
        }
        for name in TERMS
    }


def _rounded(check: dict) -> dict:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in check.items()}


def support_barrier(repeats: int = 20) -> dict:
    """Mixture runs that open the barrier: certified against exact points, every repeat with a bank of its own."""
    found, each = [], 5
    for seed in range(-(-repeats // each)):
        run = train(
            "mixture", ("tail_10", "basin", "barrier"), seed, tempfile.mkdtemp(), demonstrated=("barrier",),
            support={"budget": 256, "displacement_steps": 0},
        )  # fmt: skip
        for number in range(min(each, repeats - each * seed)):
            support = run.support
            if number:
                rows = probe_rows(tuple(measured(())), 100 + each * seed + number)
                support = run.probed_again(rows, tempfile.mkdtemp())
            found.append({"training_seed": seed, "probes": number} | _barrier_repeat(run, support))
            print(found[-1], flush=True)
    shares = [repeat["certified_share_of_created"] for repeat in found]
    return {
        "what": "recipes/mixture.yaml, B = 256, 1024 reference draws, 64 trained draws, 32 probe prompts of each of 5 "
        f"families; {each} sets of probe prompts a training seed, each with its own bank; scopes: all, each family",
        "bars": {"certified_share_of_created": 0.8, "created_above_exact": 0, "repeats_covered": 0.95},
        "repeats": len(found),
        "least_certified_share_of_created": min(shares),
        "mean_certified_share_of_created": round(statistics.mean(shares), 3),
        "created_above_exact": sum(repeat["created_above_exact"] for repeat in found),
        "repeats_covered": sum(not repeat["outside"] for repeat in found),
        "runs": found,
    }


def _barrier_repeat(run: Run, support: SupportCallback) -> dict:
    report, prompts = support.summary(), [row["prompt"] for row in support.rows]
    before, after, budget = run.p_reference(prompts), run.p(prompts), report["key"]["budget"]
    scopes = {"all": (report["verdict"], slice(None))} | {
        family: (report["families"][family]["verdict"], slice(i * PROBES, (i + 1) * PROBES))
        for i, family in enumerate(measured(()))
    }
    outside, above = [], 0
    for scope, (verdict, part) in scopes.items():
        points = exact_points(before[part], after[part], budget)
        above += verdict["created"]["low"] > points["created"]
        for name in TERMS:
            low, high = verdict[name]["low"], verdict[name]["high"]
            if not low <= points[name] <= high:
                outside.append([scope, name, round(low, 4), round(points[name], 4), round(high, 4)])
    verdict, part = scopes["barrier"]
    barrier = _points(verdict, exact_points(before[part], after[part], budget))
    return {
        "barrier_created": barrier["created"],
        "certified_share_of_created": round(barrier["created"]["low"] / barrier["created"]["exact"], 3),
        "created_above_exact": int(above),
        "outside": outside,
        "bar": report["checks"]["bar"]["verdict"],
    }


def support_draws() -> dict:
    """Draws until the calls are made, against a fixed 1024 of every prompt from both models."""
    families = ("basin", "tail_10", "tail_03", "barrier")
    run = train(
        "mixture", families, 0, tempfile.mkdtemp(), probes=families, demonstrated=("barrier",),
        support={"budget": 1024, "displacement_steps": 0},
    )  # fmt: skip
    with run.support._reference() as reference:
        fixed = {"reference": _fixed_hits(run, reference), "trained": _fixed_hits(run, run.policy)}
    budgets = {}
    for budget in (1024, 256):
        support = run.support
        if budget != 1024:
            support.settings.support_budget = budget
            support = run.probed_again(run.rows, tempfile.mkdtemp())
        budgets[str(budget)] = _draws_at(budget, support, fixed, families)
        print(budget, budgets[str(budget)], flush=True)
    return {
        "what": f"mean draws of a prompt until it is called, reference (stopped one by one) and trained (64 fixed), "
        f"against {FIXED} of each; share_in: (reference + trained) / {2 * FIXED} over the prompts called IN; "
        f"share_out: reference / {FIXED} over those called OUT; agreement with the calls of the fixed draws",
        "bars": {"share_in": 0.1, "share_out at B = 256": 0.4},
        "prompts_of_a_family": PROBES,
        "budgets": budgets,
    }


def _fixed_hits(run: Run, model) -> np.ndarray:
    """Hits (M,) of FIXED fresh draws of every probe prompt."""
    rows = np.repeat(np.arange(len(run.rows)), FIXED)
    return run.support.probes.judged(model, rows, "fixed", FIXED).correct.reshape(-1, FIXED).sum(1)


def _draws_at(budget: int, support: SupportCallback, fixed: dict[str, np.ndarray], families: tuple) -> dict:
    probes = support.probes
    hits, drawn = probes.bank.call_counts
    trained_hits, trained_drawn = probes.rounds[-1].totals
    called = {
        "reference": membership(Evidence.of_counts(hits, drawn, budget)),
        "trained": membership(Evidence.of_counts(trained_hits, trained_drawn, budget)),
    }
    wanted = {side: membership(Evidence.of_counts(found, FIXED, budget)) for side, found in fixed.items()}
    found = {}
    for i, family in enumerate(families):
        part = slice(i * PROBES, (i + 1) * PROBES)
        found[family] = {
            side: {
                name: [int((calls[side][part] == state).sum()) for calls in (called, wanted)]
                for name, state in (("in", IN), ("out", OUT))
            }
            | {"same_calls": int((called[side][part] == wanted[side][part]).sum())}
            for side in called
        }
        for name, state in (("in", IN), ("out", OUT)):
            these = np.flatnonzero(called["reference"][part] == state) + part.start
            if len(these):
                mean = float(drawn[these].mean())
                found[family][f"draws_{name}"] = {
                    "reference": round(mean, 1),
                    "trained": int(trained_drawn[these].mean()),
                    f"share_{name}": round(
                        (mean + trained_drawn[these].mean()) / (2 * FIXED) if state == IN else mean / FIXED, 4
                    ),
                }
        found[family]["reference_draws_all_prompts"] = round(float(drawn[part].mean()), 1)
        certified = probes.ledger.lower_bound()[part] >= float(threshold(budget)) * (1 - 1e-9)
        found[family]["in_by_the_ledger_of_trained_draws"] = int(certified.sum())
    found["basin, tail_10, tail_03 together"] = _together(called, wanted, drawn, trained_drawn)
    return found


def _together(called: dict, wanted: dict, drawn: np.ndarray, trained_drawn: np.ndarray) -> dict:
    """IN calls of the first three families, and what they took: called prompts alone, and with the ones left open."""
    three = slice(0, 3 * PROBES)
    these = called["reference"][three] == IN
    total = drawn[three] + trained_drawn[three]
    return {
        "in": [int(these.sum()), int((wanted["reference"][three] == IN).sum())],
        "in_both": int((these & (wanted["reference"][three] == IN)).sum()),
        "share_in": round(float(total[these].mean()) / (2 * FIXED), 4),
        "share_with_open_ones": round(float(total.mean()) / (2 * FIXED), 4),
    }
