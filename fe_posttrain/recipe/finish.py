"""What a finished run leaves: the final model, sample completions, a summary."""

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from transformers import AutoModelForCausalLM

from fe_posttrain.recipe.cards import README
from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.sampling import sample
from fe_posttrain.tasks import digits
from fe_posttrain.training.checkpoints import NEVER_KEPT, discard
from fe_posttrain.training.run import RunFolder
from fe_posttrain.training.trainer import FreeEnergyTrainer

SAMPLES_PER_FAMILY = 2
STAGED = ".model"


def save_final(trainer: FreeEnergyTrainer, card: Callable[[], str], *, merge: bool) -> Path:
    """Write `model/` whole: weights (safetensors), tokenizer and the text of `card`. All processes call this.

    With `merge`, a LoRA adapter is merged into the weights, and `adapter/` keeps it as it was trained.
    """
    run_folder = Path(trainer.args.output_dir)
    merge = merge and is_peft_model(trainer.accelerator.unwrap_model(trainer.model))
    staged = run_folder / STAGED
    trainer.save_model(str(staged), _internal_call=True)  # pushing comes when everything is in its place
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        for unwanted in NEVER_KEPT:
            (staged / unwanted).unlink(missing_ok=True)
        if merge:
            _move(staged, run_folder / "adapter")
            trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(staged)
            trainer.processing_class.save_pretrained(staged)
        (staged / README).write_text(card())
        _move(staged, run_folder / "model")
    trainer.accelerator.wait_for_everyone()
    return run_folder / "model"


def _move(staged: Path, place: Path) -> None:
    if place.exists():
        discard(place)
    staged.rename(place)


def clear_half_model(run_folder: Path) -> None:
    """Remove what a process that was killed while saving the final model left."""
    shutil.rmtree(run_folder / STAGED, ignore_errors=True)


def account(trainer: FreeEnergyTrainer, seconds: float) -> dict[str, float]:
    """What the run spent, counts of all processes added up; all of them call this.

    Beside `training.account.Account`: updates (optimizer steps), parameters (of the policy, adapters included) and
    train_seconds, of this process.
    """
    return {
        **trainer._account.total(),
        "updates": trainer.state.global_step,
        "parameters": trainer.accelerator.unwrap_model(trainer.model).num_parameters(),
        "train_seconds": round(seconds, 2),
    }


def summary(
    recipe: str,
    trainer: FreeEnergyTrainer,
    folder: RunFolder,
    seconds: float,
    exact,
    support,
    spent: dict[str, float],
) -> dict[str, Any]:
    """The content of summary.json: steps, time, start and end of F, its terms, the testbed's exact p, support, and
    what `account` says."""
    return {
        "recipe": recipe,
        "steps": trainer.state.global_step,
        "train_seconds": round(seconds, 2),
        "families": exact.summary() if exact else {},
        "exact": {"start": exact.history[0], "end": exact.history[-1]} if exact else {},
        "free_energy": _first_and_last(folder.metrics),
        "support": support.summary() if support else {},
        "account": spent,
    }


def _first_and_last(metrics: Path) -> dict[str, dict[str, float]]:
    """Mean of each free-energy term over the first and the last tenth of the logged steps."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    rows = [row for row in map(json.loads, lines) if "free_energy/total" in row]
    count = max(1, len(rows) // 10)
    found = {}
    for key in ("total", "optimum", "gap", "reward", "demonstration", "kl", "demonstration_penalty"):
        values = [row.get(f"free_energy/{key}") for row in rows]
        if rows and None not in values:
            found[key] = {"start": sum(values[:count]) / count, "end": sum(values[-count:]) / count}
    return found


def samples(probes: dict, model_path: str, trainer: FreeEnergyTrainer, tokenizer) -> list[dict[str, Any]]:
    """One completion of a few probe prompts of the testbed by the reference and by the policy."""
    asked = [(family, x) for family, prompts in probes.items() for x in prompts[:SAMPLES_PER_FAMILY]]
    prompt_ids = tokenizer([x for _, x in asked])["input_ids"]
    policy = trainer.accelerator.unwrap_model(trainer.model)
    reference = AutoModelForCausalLM.from_pretrained(model_path).to(policy.device)
    drawn = {}
    with torch.random.fork_rng(devices=[]) if policy.device.type == "cpu" else nullcontext():
        torch.manual_seed(0)
        for end, model in (("before", reference), ("after", policy)):
            ids, _, _ = sample(
                model.eval(),
                prompt_ids,
                Decoding(trainer.args.max_completion_length),
                eos_token_ids=[tokenizer.eos_token_id],
                pad_token_id=tokenizer.pad_token_id,
            )
            drawn[end] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    rows = []
    for i, (family, x) in enumerate(asked):
        row = {"family": family, "prompt": x, "answer": digits.answers(x)[-1]}
        for end in ("before", "after"):
            row |= {end: drawn[end][i], f"{end}_correct": digits.verify(x, drawn[end][i])}
        rows.append(row)
    return rows
