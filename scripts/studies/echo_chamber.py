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
EVERY, PROBES = 30, 64
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
                runs.append({"family": family, "beta": beta, "seed": seed} | _told(history))
                print({key: runs[-1][key] for key in ("family", "beta", "seed", "winner", "to")}, flush=True)
    names = list(formats.FORMATS)
    return {
        "what": "RL from a base of three formats, all accepted by the verifier; exact values, in order of `formats`",
        "formats": names,
        "families": families,
        "collapse": _collapse(families, names, [run for run in runs if not run["beta"]]),
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


def _told(history: list[dict]) -> dict:
    """A run for JSON: the format with the greatest share at the end, that share then and at the start, accuracy at the
    end, and over the steps the shares, p and entropy."""
    from fe_posttrain.tasks.formats import FORMATS

    column = _leader(history[-1])
    return {
        "winner": list(FORMATS)[column],
        "from": history[0]["shares"][column],
        "to": history[-1]["shares"][column],
        "accuracy": history[-1]["accuracy"],
        "shares": {name: [at["shares"][i] for at in history] for i, name in enumerate(FORMATS)},
        **{key: [at[key] for at in history] for key in ("step", "p", "entropy")},
    }


def _leader(shown: dict, key: str = "shares") -> int:
    return max(range(len(shown[key])), key=shown[key].__getitem__)


def _collapse(families: dict, names: list[str], runs: list[dict]) -> dict:
    """How many runs of each family ended with one format, which one, and whether the claim holds."""
    found = {}
    for family, about in families.items():
        own = [run for run in runs if run["family"] == family]
        found[family] = {
            "runs": len(own),
            "collapsed": sum(run["from"] < FROM and run["to"] > COLLAPSED for run in own),
            "winners": dict(Counter(run["winner"] for run in own)),
            "most_accurate_in_base": names[_leader(about["base"], "accuracy")],
            "least_share_of_winner": min(run["to"] for run in own),
        }
    claimed = [each for family, each in found.items() if family != "alike"]
    holds = all(
        each["collapsed"] == each["winners"].get(each["most_accurate_in_base"], 0) == each["runs"] for each in claimed
    )
    return {"criterion": f"winner's share > {COLLAPSED} from < {FROM}", "holds": holds, "families": found}


def _optimum(families: dict, runs: list[dict]) -> dict:
    """Measured shares beside the closed form's, and whether every run ended near it."""
    rows = []
    for run in runs:
        predicted = families[run["family"]]["optimum"][f"beta {run['beta']:g}"]
        measured = {"shares": [over_steps[-1] for over_steps in run["shares"].values()]}
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
