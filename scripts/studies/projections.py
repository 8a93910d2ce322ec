"""Both projections of one target, same energy and beta, through the real trainer: what is left of the gap F - F*."""

import statistics
import tempfile

from studies.optimum import BETA, _train

BANK = {"reward_projection": "forward", "forward_sampler": "bank"}
ARMS = {
    "reverse": {},
    "forward, the policy's draws": {"reward_projection": "forward"},
    "forward, a bank of 4096 draws": {**BANK, "bank_draws": 4096},
    "forward, a bank of 512 draws, drawn anew every 50 steps": {**BANK, "bank_draws": 512, "bank_refresh_steps": 50},
}
MOST = 15.0  # percent of the initial gap that may be left


def projections(seeds: int = 3) -> dict:
    """Remaining gap in percent of the initial one, per arm and seed; 400 steps of 128 samples."""
    import torch
    from transformers.utils import logging

    from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
    from fe_posttrain.tasks import enumerable

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gaps: dict[str, list[float]] = {name: [] for name in ARMS}
    for seed in range(seeds):
        folder = tempfile.mkdtemp()
        enumerable.build_model(seed).save_pretrained(folder)
        for name, own in ARMS.items():
            arm = (FreeEnergyTrainer, FreeEnergyConfig, {"loss_divisor": 1, **own})
            gaps[name].append(100 * _train(arm, seed, folder))
            print(f"seed {seed}: {name}: {gaps[name][-1]:.2f} %", flush=True)
    return {
        "what": f"remaining gap (F - F*) / (F_start - F*) in percent, 400 steps of 128 samples, beta {BETA}",
        "bar_percent": MOST,
        "mean": {name: statistics.mean(values) for name, values in gaps.items()},
        "per_seed": gaps,
        "within_bar": {name: max(values) <= MOST for name, values in gaps.items()},
    }
