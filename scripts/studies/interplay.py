"""Which prompts reinforcement learning raises pass@k on, by how far they are from what the model can do already.

After "On the Interplay of Pre-Training, Mid-Training, and RL on Reasoning Language Models" (arXiv 2512.07783):
difficulty is the number of operations, and pass@k for large k moves only where training is at the edge of competence;
mid-training shifts the edge. Every p is exact, so pass@k is the mean of 1 - (1 - p)^k over held-out prompts.

Departure: the corpora of pretraining and mid-training write the working of their deepest prompts to its end one time
in a hundred and one in fifty, where the paper's hold few of such prompts. Holding few, p spreads over decades from one
string of operations to the next, and a run as short as these reaches only the upper ones.
"""

import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from transformers.utils import logging

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.depths import MIXTURE, Mixture, batches, depths_model
from fe_posttrain.tasks.exact import exact_probabilities
from fe_posttrain.tasks.pretraining_run import PretrainSettings, fit

DEPTHS = range(1, 6)
PROBES = 80  # held-out prompts of a depth
DRAWS = (1, 4, 16, 64, 128, 256, 1024)  # k of pass@k
MID: Mixture = {1: (0.15, 1.0), 2: (0.25, 1.0), 3: (0.25, 1.0), 4: (0.35, 0.02)}
MID_SETTINGS = PretrainSettings(steps=300, muon_lr=0.01, adamw_lr=0.004)
CLAIM = {  # model: {depth that RL trains on: whether pass@128 of that depth moves}
    "base": {2: False, 3: True, 4: False},
    "mid-trained": {3: False, 4: True},
}
MOVES, STAYS = 0.2, 0.05  # a change of pass@128 of more than the one; of less than the other, either way
SETTINGS = {
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "log_level": "error",
    "max_steps": 40,
    "per_device_train_batch_size": 128,
    "num_generations": 16,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
    "beta": 0.02,
}


def interplay(repeats: int = 3) -> dict:
    """RL on one depth at a time, from the base of depths and from the same mid-trained, so many seeds each."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folders = {"base": str(depths_model()), "mid-trained": _midtrained()}
    before = {name: _measured(AutoModelForCausalLM.from_pretrained(folder)) for name, folder in folders.items()}
    runs = []
    for seed in range(repeats):
        for name, depths in CLAIM.items():
            for depth, moves in depths.items():
                after = _measured(_reinforced(folders[name], depth, seed))
                change = _at_128(after, depth) - _at_128(before[name], depth)
                as_claimed = change > MOVES if moves else abs(change) < STAYS
                words = {"model": name, "depth": depth, "seed": seed, "change_of_pass@128": round(change, 4)}
                runs.append(words | {"as_claimed": bool(as_claimed)} | _told(after, depth))
                print(words, as_claimed, flush=True)
    return {
        "what": "exact p and pass@k = mean 1 - (1 - p)^k on 80 held-out prompts of each depth (operations), before and "
        "after 40 steps of RL (sequence estimator, 128 completions, beta .02) on prompts of one depth alone",
        "criterion": f"pass@128 of the depth trained on changes by more than {MOVES} where claimed to move, by less "
        f"than {STAYS} elsewhere",
        "claim": {name: {str(depth): moves for depth, moves in depths.items()} for name, depths in CLAIM.items()},
        "as_claimed": sum(run["as_claimed"] for run in runs),
        "runs_made": len(runs),
        "mixtures": {"base": _plain(MIXTURE), "mid-training": _plain(MID)},
        "before": before,
        "runs": runs,
    }


def _plain(mixture: Mixture) -> dict:
    return {str(depth): {"share": share, "finished": rate} for depth, (share, rate) in mixture.items()}


def _midtrained() -> str:
    """Folder of the base, trained further on the mixture that holds depth 4."""
    folder = tempfile.mkdtemp()
    AutoTokenizer.from_pretrained(depths_model()).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(depths_model())
    fit(model, batches(1, MID_SETTINGS.batch_size, MID), MID_SETTINGS, "further, with depth 4")
    model.save_pretrained(folder)
    return folder


def _reinforced(folder: str, depth: int, seed: int) -> torch.nn.Module:
    longest = (digits.LIST_LENGTH + 1) * depth  # a worked answer and its end token
    trainer = FreeEnergyTrainer(
        folder,
        digits.correct,
        FreeEnergyConfig(tempfile.mkdtemp(), seed=seed, max_completion_length=longest, **SETTINGS),
        digits.dataset([f"depth_{depth}"], 1024, seed),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model)


@torch.no_grad()
def _measured(model: torch.nn.Module) -> dict[str, dict]:
    """Depth -> mean p, its deciles 1 and 9, and pass@k."""
    tokenizer, found = AutoTokenizer.from_pretrained(depths_model()), {}
    for depth in DEPTHS:
        prompts = digits.prompts(f"depth_{depth}", PROBES, 0, "probe")
        p = exact_probabilities(model.eval(), tokenizer, prompts).numpy()
        low, high = np.quantile(p, (0.1, 0.9))
        found[str(depth)] = {
            "p": _short(p.mean()),
            "p_deciles": [_short(low), _short(high)],
            "pass": {str(k): round(float(np.mean(1 - (1 - p) ** k)), 4) for k in DRAWS},
        }
    return found


def _told(after: dict[str, dict], depth: int) -> dict[str, dict]:
    """p and pass@128 of every depth, and every pass@k of the one that was trained on."""
    at_128 = {name: part["pass"]["128"] for name, part in after.items()}
    return {
        "p": {name: part["p"] for name, part in after.items()},
        "pass@128": at_128,
        "pass": after[str(depth)]["pass"],
    }


def _at_128(found: dict[str, dict], depth: int) -> float:
    return found[str(depth)]["pass"]["128"]


def _short(x: float) -> float:
    return float(f"{x:.3g}")
