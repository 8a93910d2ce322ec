"""What is left of the gap F - F* on a world that can be enumerated, for our estimators and TRL's trainers."""

import statistics
import tempfile

STEPS, BETA = 400, 0.3
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": STEPS,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "log_level": "error",
    "logging_steps": 100,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.0,
    "per_device_train_batch_size": 128,
    "num_generations": 16,
    "max_completion_length": 3,
    "beta": BETA,
}


def _arms() -> dict:
    """Name -> (trainer, config, settings of its own)."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer

    return {
        "sequence": (FreeEnergyTrainer, FreeEnergyConfig, {"loss_divisor": 1}),
        "sequence_to_go": (
            FreeEnergyTrainer,
            FreeEnergyConfig,
            {"loss_divisor": 1, "estimator": "sequence_to_go"},
        ),
        "TRL RLOOTrainer": (RLOOTrainer, RLOOConfig, {}),
        "TRL GRPOTrainer, no std": (GRPOTrainer, GRPOConfig, {"scale_rewards": "none"}),
        "TRL GRPOTrainer": (GRPOTrainer, GRPOConfig, {}),
    }


def _train(arm: tuple, seed: int, folder: str) -> float:
    """Remaining gap of one arm on the enumerable world; every arm starts from the same weights on disk."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PrinterCallback

    from fe_posttrain.tasks import enumerable

    trainer_class, config_class, own = arm
    model = AutoModelForCausalLM.from_pretrained(folder)  # TRL reloads its reference from where this came from
    before = enumerable.log_probs(model)
    trainer = trainer_class(
        model,
        reward_funcs=[enumerable.reward],
        args=config_class(output_dir=tempfile.mkdtemp(), seed=seed, **{**SETTINGS, **own}),
        train_dataset=Dataset.from_dict({"prompt": [enumerable.PROMPT] * 64}),
        processing_class=enumerable.build_tokenizer(),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return enumerable.remaining_gap(enumerable.log_probs(model), before, BETA)


def _train_exactly(folder: str) -> float:
    """The same optimizer on autograd of the exact F: what 400 steps can reach without sampling noise."""
    import torch
    from transformers import AutoModelForCausalLM

    from fe_posttrain.tasks import enumerable
    from fe_posttrain.theory.free_energy import exact_free_energy

    model = AutoModelForCausalLM.from_pretrained(folder)
    before = enumerable.log_probs(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["learning_rate"], weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    rows = enumerable.completions()
    mask = torch.tensor([[i < len(row) for i in range(enumerable.MAX_TOKENS)] for row in rows])
    tokens = torch.tensor([[*row, *[0] * (enumerable.MAX_TOKENS - len(row))] for row in rows])
    prompt = torch.tensor(enumerable.prompt_ids()).expand(len(rows), -1)
    for _ in range(STEPS):
        logits = model(torch.cat([prompt, tokens], dim=1)).logits[:, prompt.shape[1] - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        log_policy = (chosen * mask).sum(1).double()
        optimizer.zero_grad()
        exact_free_energy(log_policy, before, enumerable.energies(), beta=BETA).total.backward()
        optimizer.step()
        decay.step()
    return enumerable.remaining_gap(enumerable.log_probs(model), before, BETA)


def optimum(seeds: int = 5) -> dict:
    """Remaining gap in percent of the initial one, per arm and seed."""
    import torch
    from transformers.utils import logging

    from fe_posttrain.tasks import enumerable

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    arms = _arms()
    gaps: dict[str, list[float]] = {name: [] for name in ["autograd of the exact F", *arms]}
    for seed in range(seeds):
        folder = tempfile.mkdtemp()
        enumerable.build_model(seed).save_pretrained(folder)
        gaps["autograd of the exact F"].append(100 * _train_exactly(folder))
        for name, arm in arms.items():
            gaps[name].append(100 * _train(arm, seed, folder))
        print(f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.2f} %" for name, values in gaps.items()), flush=True)
    return {
        "what": "remaining gap (F - F*) / (F_start - F*) in percent, 400 steps of 128 samples, beta .3",
        "mean": {name: statistics.mean(values) for name, values in gaps.items()},
        "per_seed": gaps,
    }
