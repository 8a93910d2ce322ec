"""Echo Chamber (Zhao et al. 2025, arXiv 2504.07912) on the testbed: RL from a base that writes several formats.

The verifier accepts every format, so nothing in the reward asks for one of them. Said before the runs, whose
settings were chosen on seed 0, which is not among them:

* collapse: without KL the format that the base is best at, common or rare, ends above .9 from below .6, in every run
  of the families where accuracies differ. Where they are alike no claim is made;
* optimum: with KL, all else equal, every format ends within .06 of its share at the free energy's optimum, which is
  share_f E[e^{r / beta} | f] / Z, and the format that leads there leads, in every run of every family.
"""

import tempfile
from collections import Counter

COLLAPSED, FROM, NEAR = 0.9, 0.6, 0.06
BETAS = (0.0, 0.3)
EVERY, PROBES = 10, 64
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": 150,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "log_level": "error",
    "logging_steps": 50,
    "learning_rate": 3e-4,
    "per_device_train_batch_size": 64,
    "num_generations": 16,
    "max_completion_length": 8,
}


def echo_chamber(repeats: int = 3) -> dict:
    """Exact shares and accuracy of each format on held-out prompts, over the steps of RL with and without KL."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from fe_posttrain.tasks import formats
    from fe_posttrain.tasks.formats_base import formats_model
    from fe_posttrain.tasks.formats_exact import at_optimum, exact_formats
    from fe_posttrain.tasks.tokenizer import build_tokenizer

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder, tokenizer = str(formats_model()), build_tokenizer()
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    families, runs = {}, []
    for family in formats.FAMILIES:
        start = exact_formats(base, tokenizer, formats.prompts(family, PROBES, 0, "probe"))
        optima = {f"beta {beta:g}": _shown(at_optimum(start, beta=beta)) for beta in BETAS if beta}
        families[family] = {"base": _shown(start), "optimum": optima}
        for beta in BETAS:
            for seed in range(1, repeats + 1):
                history = _train(folder, tokenizer, family, beta, seed)
                runs.append({"family": family, "beta": beta, "seed": seed, **_outcome(history), "history": history})
                print({key: value for key, value in runs[-1].items() if key != "history"}, flush=True)
    return {
        "what": "RL from a base of three formats, all accepted by the verifier; exact values, in order of `formats`",
        "formats": list(formats.FORMATS),
        "families": families,
        "collapse": _collapse(families, [run for run in runs if not run["beta"]]),
        "optimum": _optimum(families, [run for run in runs if run["beta"]]),
        "runs": runs,
    }


def _train(folder: str, tokenizer, family: str, beta: float, seed: int) -> list[dict]:
    """One run of RL on a family's prompts; what `_shown` says of its formats, every few steps."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback

    from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
    from fe_posttrain.sequences.models import evaluating
    from fe_posttrain.tasks import formats
    from fe_posttrain.tasks.formats_exact import exact_formats

    asked, history = formats.prompts(family, PROBES, 0, "probe"), []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.on_step_end(args, state, control, model)

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step % EVERY == 0:
                with evaluating(model):
                    history.append({"step": state.global_step} | _shown(exact_formats(model, tokenizer, asked)))

    with tempfile.TemporaryDirectory() as output:
        trainer = FreeEnergyTrainer(
            folder,
            formats.correct,
            FreeEnergyConfig(output, seed=seed, beta=beta, **SETTINGS),
            Dataset.from_dict({"prompt": formats.prompts(family, 1024, seed)}),
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return history


def _shown(found) -> dict:
    """Shares, accuracy per format, p of a right answer and entropy of the shares in nats, for JSON."""
    return {
        "shares": [round(x, 4) for x in found.share.mean(0).tolist()],
        "accuracy": [round(x, 4) for x in found.accuracy.tolist()],
        "p": round(found.correct.sum(1).mean().item(), 4),
        "entropy": round(found.entropy, 4),
    }


def _outcome(history: list[dict]) -> dict:
    """The format with the greatest share at the end, that share, its share at the start, and the other ends."""
    first, last = history[0], history[-1]
    column = _leader(last)
    ends = {"winner": column, "winner_from": first["shares"][column], "winner_to": last["shares"][column]}
    return ends | {key: [first[key], last[key]] for key in ("accuracy", "p", "entropy")}


def _leader(shown: dict, key: str = "shares") -> int:
    return max(range(len(shown[key])), key=shown[key].__getitem__)


def _collapse(families: dict, runs: list[dict]) -> dict:
    """How many runs of each family ended with one format, which one, and whether the claim holds."""
    found = {}
    for name, about in families.items():
        own = [run for run in runs if run["family"] == name]
        found[name] = {
            "runs": len(own),
            "collapsed": sum(run["winner_from"] < FROM and run["winner_to"] > COLLAPSED for run in own),
            "winners": dict(Counter(run["winner"] for run in own)),
            "most_accurate_in_base": _leader(about["base"], "accuracy"),
            "least_share_of_winner": min(run["winner_to"] for run in own),
        }
    claimed = [each for name, each in found.items() if name != "alike"]
    holds = all(
        each["collapsed"] == each["winners"].get(each["most_accurate_in_base"], 0) == each["runs"] for each in claimed
    )
    return {"criterion": f"winner's share > {COLLAPSED} from < {FROM}", "holds": holds, "families": found}


def _optimum(families: dict, runs: list[dict]) -> dict:
    """Measured shares beside the closed form's, and whether every run ended near it."""
    rows = []
    for run in runs:
        predicted = families[run["family"]]["optimum"][f"beta {run['beta']:g}"]
        measured = run["history"][-1]
        pairs = zip(predicted["shares"], measured["shares"], strict=True)
        rows.append(
            {key: run[key] for key in ("family", "beta", "seed")}
            | {"predicted": predicted["shares"], "measured": measured["shares"]}
            | {"most_apart": round(max(abs(a - b) for a, b in pairs), 4)}
            | {"same_leader": _leader(predicted) == _leader(measured)}
        )
    return {
        "criterion": f"every share within {NEAR} of share_f E[e^(r / beta) | f] / Z, same leader",
        "holds": all(row["most_apart"] <= NEAR and row["same_leader"] for row in rows),
        "most_apart": max(row["most_apart"] for row in rows),
        "rows": rows,
    }
