"""Support claims on the testbed, where p is exact: real training runs, real draws, real verdicts."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.utils import logging

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer, SupportCallback, SupportSettings
from fe_posttrain.sequences import evaluating
from fe_posttrain.support.budgets import threshold
from fe_posttrain.support.displacement import rms, window
from fe_posttrain.support.evidence import e_bh
from fe_posttrain.support.verdict import exact_points
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.exact import exact_probabilities
from fe_posttrain.tasks.pretraining import reference_model
from fe_posttrain.tracking.comparing import Comparison, probed
from fe_posttrain.tracking.reporting import in_brief, reported

FAMILIES = tuple(digits.FAMILIES)
PER_FAMILY = 32
MIXTURE = {"beta": 0.02, "demonstration_energy_weight": 0.5, "per_device_demonstration_batch_size": 64}
TERMS = ("elicited", "created", "lost")

logging.disable_progress_bar()
logging.set_verbosity_error()
disable_progress_bars()
torch.set_num_threads(1)


def probe_rows(families: Sequence[str], seed: int) -> list[dict]:
    return [
        {"prompt": prompt, "family": name}
        for name in families
        for prompt in digits.prompts(name, PER_FAMILY, seed, "probe")
    ]


def reference():
    return AutoModelForCausalLM.from_pretrained(reference_model()).eval()


def exact(model, prompts: Sequence[str]) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(reference_model())
    with evaluating(model):
        return exact_probabilities(model, tokenizer, prompts).numpy()


def trained(families: Sequence[str], seed: int, *callbacks, demonstrated: Sequence[str] = (), **settings):
    """A run of `families` and its trainer, finished; RL unless `settings` say otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        args = FreeEnergyConfig(
            folder,
            **{
                "beta": 0.05,
                "max_steps": 200,
                "per_device_train_batch_size": 64,
                "num_generations": 16,
                "max_completion_length": 12,
                "learning_rate": 2e-4,
                "lr_scheduler_type": "linear",
                "seed": seed,
                "use_cpu": True,
                "report_to": "none",
                "save_strategy": "no",
                "disable_tqdm": True,
                "gradient_checkpointing": False,
            }
            | settings,
        )
        shown = digits.dataset(list(demonstrated), 2048, seed + 100, demonstrations=True) if demonstrated else None
        prompts = None if args.is_sft else digits.dataset(list(families), 2048, seed)
        run = FreeEnergyTrainer(str(reference_model()), digits.correct, args, prompts, shown)
        run.remove_callback(PrinterCallback)
        for callback in callbacks:
            run.add_callback(callback)
        run.train()
    return run


def support_null() -> dict:
    """Learning rate 0: nothing may be found. Whole pipeline, RL and SFT, all families, 3 rounds, B = 256."""
    found = []
    with tempfile.TemporaryDirectory() as cache:
        for seed in range(3):
            rows = probe_rows(FAMILIES, seed)
            p = exact(reference(), [row["prompt"] for row in rows])
            for kind in ("rl", "sft"):
                settings = SupportSettings(support=True, support_steps=8, support_budget=256)
                support = SupportCallback(rows, digits.correct, settings=settings, cache=cache)
                seen = _Rounds(support)
                keys = {"max_steps": 24, "learning_rate": 0.0}
                if kind == "sft":
                    keys |= {"beta": 0.0, "reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0}
                demonstrated = ("barrier", "basin") if kind == "sft" else ()
                run = trained(FAMILIES, seed, support, seen, demonstrated=demonstrated, **keys)
                unchanged = np.array_equal(
                    exact(run.accelerator.unwrap_model(run.model), [r["prompt"] for r in rows]), p
                )
                found.append({"seed": seed, "kind": kind, "weights_unchanged": bool(unchanged)} | seen.summary())
                if kind == "rl":
                    ledger, keys = support.riding.ledger, support.riding.keys
                    found[-1]["ledger"] = _ledger_errors(run, ledger, keys)
    return {"prompts": len(FAMILIES) * PER_FAMILY, "budget": 256, "runs": found}


class _Rounds(TrainerCallback):
    """Keeps the report of each probe round."""

    def __init__(self, support: SupportCallback):
        self.support, self.bodies = support, {}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.support._report:
            self.bodies[self.support._report["step"]] = self.support._report

    def summary(self) -> dict:
        bodies = list(self.bodies.values())
        last = bodies[-1]
        return {
            "rounds": len(bodies),
            "entries": sum(len(m["entered"]) for body in bodies for m in body["movements"].values()),
            "exits": sum(len(m["left"]) for body in bodies for m in body["movements"].values()),
            "certified": {name: max(body["verdict"][name]["low"] for body in bodies) for name in TERMS},
            "certified_in_a_family": {
                name: max(part["verdict"][name]["low"] for body in bodies for part in body["families"].values())
                for name in TERMS
            },
            "bar": [body["checks"]["bar"]["df"] for body in bodies],
            "sightings": last["sightings"],
            "null_floor": last["null_floor"],
        }


def _ledger_errors(run, ledger, keys) -> dict:
    """Training prompts whose bound exceeds the exact p_ref, among those drawn."""
    from fe_posttrain.training.rollout_events import prompt_key

    prompts = {prompt_key(prompt): prompt for prompt in run.train_dataset["prompt"]}
    drawn = np.flatnonzero(ledger.drawn)
    p = exact(reference(), [prompts[int(keys[i])] for i in drawn])
    wrong = ledger.lower_bound()[drawn] > p
    return {"prompts": len(drawn), "bound_above_p": int(wrong.sum()), "share": float(wrong.mean()), "nominal": 0.05}


def support_displacement() -> dict:
    """Windows, closure and RMS against exact values, over full runs; and an injected change."""
    runs = []
    with tempfile.TemporaryDirectory() as cache:
        for kind, families in (("rl", ("tail_10", "basin")), ("mixture", ("tail_10", "basin", "barrier"))):
            for seed in range(3):
                runs.append({"kind": kind, "seed": seed} | _run_windows(kind, families, seed, cache))
    return {"runs": runs, "injected": [_injected(share) for share in (0.02, 0.04, 0.08)]}


def _run_windows(kind: str, families: Sequence[str], seed: int, cache: str) -> dict:
    settings = SupportSettings(support=True, support_reference_draws=64, support_budget=64)
    support = SupportCallback(probe_rows(families, seed), digits.correct, settings=settings, cache=cache)
    truth = _ExactP(families, seed)
    keys = {} if kind == "rl" else MIXTURE | {"learning_rate": 1e-3}
    trained(families, seed, support, truth, demonstrated=() if kind == "rl" else ("barrier",), **keys)
    windows = support.displacements.windows
    right = [float(np.log(truth.p[w.step] / truth.p[w.step - w.updates])) for w in windows]
    errors = np.array([w.value - exactly for w, exactly in zip(windows, right, strict=True)])
    check = support._report["checks"]["closure"]
    return {
        "sum": float(sum(w.value for w in windows)),
        "exact_sum": float(sum(right)),
        "closure": check["value"],
        "closure_se": check["se"],
        "closure_bar": max(0.3, 3 * check["se"]),
        "windows": len(windows),
        "window_error_in_se": float(np.sqrt(np.mean((errors / np.array([max(w.se, 0.01) for w in windows])) ** 2))),
        "rms": rms(windows),
        "exact_rms": float(np.sqrt(np.mean(np.square(right)))),
    }


class _ExactP(TrainerCallback):
    """Mean exact p of a sample of training prompts, at the end of every step that may end a window."""

    def __init__(self, families: Sequence[str], seed: int):
        self.prompts = list(digits.dataset(list(families), 2048, seed)["prompt"])[:512]
        self.p: dict[int, float] = {0: float(exact(reference(), self.prompts).mean())}

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % 8 == 0 or state.global_step >= state.max_steps:
            self.p[state.global_step] = float(exact(model, self.prompts).mean())


def _injected(share: float) -> dict:
    """A policy moved by `share` of the way to a trained one: RMS of 400 windows of 64 fresh draws, against exact."""
    prompts = digits.prompts("tail_10", 64, 0, "probe")
    before, after = reference(), reference()
    target = trained(("tail_10", "basin"), 0, max_steps=20).model
    with torch.no_grad():
        for mine, theirs in zip(after.parameters(), target.parameters(), strict=True):
            mine.lerp_(theirs, share)
    truth = float(np.log(exact(after, prompts).mean() / exact(before, prompts).mean()))
    rows = [{"prompt": prompt} for prompt in prompts]
    tokenizer = AutoTokenizer.from_pretrained(reference_model())
    asked = Comparison("", "", "", digits.correct, draws=2, reference_draws=2, max_new_tokens=12, batch_size=4096)
    with tempfile.TemporaryDirectory() as cache:
        probes = probed(asked, rows, tokenizer, before, after, Path(cache), lambda line: None)
    windows = []
    for number in range(40):
        drawn = probes.judged(after, np.repeat(np.arange(len(rows)), 160), "injected", number)
        right = np.flatnonzero(drawn.correct)
        chosen = np.sort(np.random.default_rng(number).permutation(right)[:640])
        old = probes.drawing.log_probs(before, drawn.row[chosen], [drawn.completion_ids[i] for i in chosen])
        ratio = old - drawn.log_probs[chosen]
        for part in np.array_split(np.random.default_rng(number).permutation(len(chosen)), 10):
            windows.append(window(number, 1, ratio[part], drawn.row[chosen][part]))
    estimate = rms(windows)
    return {
        "share": share,
        "exact": abs(truth),
        "rms": estimate,
        "ratio": estimate / abs(truth),
        "windows": len(windows),
    }


def support_tail() -> dict:
    """RL on tail_10, tail_03, basin; B = 1024: certified IN by the probe ledger alone, and the verdict."""
    found, families = [], ("tail_10", "tail_03", "basin")
    with tempfile.TemporaryDirectory() as cache:
        for seed in range(3):
            rows = probe_rows(families, seed)
            settings = SupportSettings(support=True, support_budget=1024)
            support = SupportCallback(rows, digits.correct, settings=settings, cache=cache)
            run = trained(families, seed, support, per_device_train_batch_size=128)
            body, ledger = support._report, support.probes.ledger
            log_e = ledger.log_e_at(float(threshold(1024)))
            called = e_bh(np.exp(np.minimum(log_e, 700)), 0.05)
            points = _exact_points(run, rows, 1024)
            found.append(
                {
                    "seed": seed,
                    "in_by_ledger_alone": {
                        name: float(called[[row["family"] == name for row in rows]].mean()) for name in families
                    },
                    "trained_draws": body["draws"]["trained"]["least"],
                    "verdict": {name: body["verdict"][name] for name in TERMS},
                    "exact": points,
                    "sentence": body["sentence"],
                }
            )
    return {"budget": 1024, "runs": found}


def _exact_points(run, rows: list[dict], budget: int) -> dict:
    prompts = [row["prompt"] for row in rows]
    return exact_points(exact(reference(), prompts), exact(run.accelerator.unwrap_model(run.model), prompts), budget)


def support_barrier() -> dict:
    """Barrier trained with worked demonstrations, B = 256, 20 repeats: 4 training seeds x 5 sets of probe prompts."""
    repeats, base = [], reference()
    tokenizer = AutoTokenizer.from_pretrained(reference_model())
    asked = Comparison("reference", "trained", "", digits.correct, max_new_tokens=12, budget=256, batch_size=1024)
    for seed in range(4):
        run = trained(
            ("tail_10", "basin", "barrier"), seed, demonstrated=("barrier",), **MIXTURE | {"learning_rate": 1e-3}
        )
        policy = run.accelerator.unwrap_model(run.model).eval()
        for number in range(5):
            rows = probe_rows(FAMILIES, 10 + 5 * seed + number)
            with tempfile.TemporaryDirectory() as cache:
                probes = probed(asked, rows, tokenizer, base, policy, Path(cache), lambda line: None)
            probes_body = reported(probes, probes.rounds[-1], "testbed", "family", None, pooled_labels=True)
            repeats.append({"seed": seed, "probes": number} | _compared(probes_body, base, policy, rows))
            print(seed, number, in_brief(probes_body), flush=True)
    return {"budget": 256, "reference_draws": 1024, "trained_draws": 64, "repeats": repeats} | _tally(repeats)


def _compared(body: dict, base, policy, rows: list[dict]) -> dict:
    """Certified against exact points, overall and by family."""
    prompts = [row["prompt"] for row in rows]
    before, after = exact(base, prompts), exact(policy, prompts)
    parts = {"all": (body["verdict"], np.arange(len(rows)))}
    for name, part in body["families"].items():
        parts[name] = (part["verdict"], np.flatnonzero([row["family"] == name for row in rows]))
    found = {}
    for name, (verdict, chosen) in parts.items():
        points = exact_points(before[chosen], after[chosen], body["key"]["budget"])
        found[name] = {
            term: [round(x, 2) for x in (verdict[term]["low"], points[term], verdict[term]["high"])] for term in TERMS
        }
    return {"low_exact_high": found, "calls": body["calls"]["reference"], "bar": body["checks"]["bar"]["verdict"]}


def _tally(repeats: list[dict]) -> dict:
    terms = [
        (name, term, ends) for r in repeats for name, part in r["low_exact_high"].items() for term, ends in part.items()
    ]
    inside = [low <= exactly <= high for _, _, (low, exactly, high) in terms]
    shares = [r["low_exact_high"]["barrier"]["created"] for r in repeats]
    whole = [
        all(low <= x <= high for part in r["low_exact_high"].values() for low, x, high in part.values())
        for r in repeats
    ]
    return {
        "certified_share_of_created_on_barrier": [round(low / x, 3) for low, x, _ in shares],
        "created_above_exact": sum(term == "created" and low > x for _, term, (low, x, _) in terms),
        "terms_inside": [sum(inside), len(inside)],
        "repeats_with_every_term_inside": [sum(whole), len(whole)],
    }


def support_draws() -> dict:
    """Draws that the calls took, against 1,024 of each prompt from both models."""
    found = {}
    base, tokenizer = reference(), AutoTokenizer.from_pretrained(reference_model())
    policy = trained(("tail_10", "tail_03", "basin"), 0, per_device_train_batch_size=128).model.eval()
    for budget in (1024, 256):
        rows = probe_rows(FAMILIES, 0)
        asked = Comparison(
            "reference", "trained", "", digits.correct, max_new_tokens=12, budget=budget, batch_size=1024
        )
        with tempfile.TemporaryDirectory() as cache:
            probes = probed(asked, rows, tokenizer, base, policy, Path(cache), lambda line: None)
        drawn, member = probes.bank.call_counts[1], probes.bank.membership()
        fixed = _fixed_calls(probes, rows, base, budget)
        part = {}
        for name in FAMILIES:
            mine = np.array([row["family"] == name for row in rows])
            part[name] = {
                "in": int((member[mine] == 1).sum()),
                "out": int((member[mine] == -1).sum()),
                "in_at_fixed_1024": int((fixed[mine] == 1).sum()),
                "out_at_fixed_1024": int((fixed[mine] == -1).sum()),
                "reference_draws_a_prompt": float(drawn[mine].mean()),
                "share_of_reference_draws": float(drawn[mine].mean() / 1024),
                "share_of_both": float((drawn[mine].mean() + asked.draws) / 2048),
            }
        found[str(budget)] = part
    return {"prompts_a_family": PER_FAMILY, "budgets": found}


def _fixed_calls(probes, rows: list[dict], base, budget: int) -> np.ndarray:
    """The calls from 1,024 draws of every prompt."""
    from fe_posttrain.support.calls import Evidence, membership

    every = np.repeat(np.arange(len(rows)), 1024)
    hits = probes.judged(base, every, "fixed").correct.reshape(len(rows), 1024).sum(1)
    return membership(Evidence.of_counts(hits, np.full(len(rows), 1024), budget))
