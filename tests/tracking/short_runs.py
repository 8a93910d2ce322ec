"""Short tracked runs on the testbed's reference: shared by the tests of the tracking room."""

import random
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer, SupportCallback, SupportSettings
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining import reference_model

SMALL = {
    "support_batch_size": 1024,
    "support_draws": 4,
    "support_reference_draws": 16,
    "support_budget": 16,
    "support_displacement_rows": 8,
}
KINDS = {
    "rl": {"beta": 0.05},
    "trl": {"beta": 0.05, "estimator": "trl"},
    "sft": {"beta": 0.0, "reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0},
    "mixture": {"beta": 0.02, "demonstration_energy_weight": 0.5},
    "lora": {"beta": 0.05},
    "random reward": {"beta": 0.05},
}


def probe_rows(each: int = 2, families: tuple[str, ...] = ("basin", "tail_10", "barrier")) -> list[dict]:
    return [{"prompt": x, "family": name} for name in families for x in digits.prompts(name, each, 0, "probe")]


def jittered(prompts, completions, **columns) -> list[float]:
    """Correctness plus a little of Python's own randomness."""
    return [value + 0.1 * random.random() for value in digits.correct(prompts, completions)]


class Rows(TrainerCallback):
    """Every logged row, without times."""

    def __init__(self):
        self.rows: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        kept = {k: v for k, v in logs.items() if not k.startswith("train_") and not k.endswith("_time")}
        self.rows.append({"step": state.global_step} | kept)


def support(cache: Path, signal=digits.correct, rows: list[dict] | None = None, **settings) -> SupportCallback:
    words = {key: settings.pop(key) for key in ("labels", "channels") if key in settings}
    chosen = SupportSettings(support=True, **SMALL | settings)
    return SupportCallback(probe_rows() if rows is None else rows, signal, settings=chosen, cache=cache, **words)


def trainer(
    folder: Path, kind: str, *callbacks, reward=digits.correct, demonstrated=None, rows=None, **settings
) -> FreeEnergyTrainer:
    args = FreeEnergyConfig(
        str(folder),
        **{
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "max_completion_length": 12,
            "max_steps": 8,
            "learning_rate": 1e-3,
            "seed": 3,
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "save_strategy": "no",
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "logging_steps": 1,
        }
        | KINDS[kind]
        | settings,
    )
    random.seed(0)
    shown = kind in ("sft", "mixture")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=True)
    made = FreeEnergyTrainer(
        str(reference_model()),
        None if kind == "sft" else (jittered if kind == "random reward" else reward),
        args,
        None if kind == "sft" else rows or digits.dataset(["tail_10", "basin"], 32, seed=0),
        demonstrated or digits.dataset(["barrier", "basin"], 64, seed=0, demonstrations=True) if shown else None,
        peft_config=lora if kind == "lora" else None,
    )
    made.remove_callback(PrinterCallback)
    for callback in callbacks:
        made.add_callback(callback)
    return made


def weights(made: FreeEnergyTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.model.state_dict().items()}
