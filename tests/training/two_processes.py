"""Run by torchrun in test_two_processes.py, and imported by it for the one-process side; writes what it saw."""

import os
import sys
from pathlib import Path
from unittest.mock import patch

import small
import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.sequences.sampling import Drawn
from fe_posttrain.sequences.scoring import score
from fe_posttrain.tasks import digits
from fe_posttrain.training import rollouts, scoring
from fe_posttrain.training.reward_faults import RewardError

ROWS, GROUP, STEPS = 12, 4, 2  # on two processes, rows 4-7 of each step are one group on both


def fixed_rollouts(prompts, trainer):
    """Completions that depend on the row's place in the whole batch alone, scored by the policy of now."""
    rank, tokenizer = trainer.accelerator.process_index, small.TOKENIZER
    prompt_ids = tokenizer(prompts)["input_ids"]
    completion_ids = []
    for i in range(len(prompts)):
        generator = torch.Generator().manual_seed(1000 * trainer.state.global_step + rank * len(prompts) + i)
        length = int(torch.randint(1, 8, (1,), generator=generator))
        drawn = torch.randint(4, len(tokenizer), (length,), generator=generator).tolist()
        completion_ids.append([*drawn, tokenizer.eos_token_id])
    model = trainer.accelerator.unwrap_model(trainer.model)
    log_probs, mask = score(model, prompt_ids, completion_ids, pad_token_id=tokenizer.pad_token_id)
    kept = [row[m].tolist() for row, m in zip(log_probs, mask, strict=True)]
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": kept}


def straddling(folder: Path, processes: int, estimator: str, **settings) -> list[dict[str, torch.Tensor]]:
    """Gradients of a mixture under the default estimator, its groups straddling processes."""
    record, _ = small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={
            "max_steps": STEPS,
            "per_device_train_batch_size": ROWS // processes,
            "num_generations": GROUP,
            "max_completion_length": 8,
            "beta": 0.2,
            "estimator": estimator,
            "demonstration_energy_weight": 0.5,
            "max_grad_norm": 0.0,
            **settings,
        },
        model=small.model(),
        reward_funcs=[small.length_reward],
        train_dataset=small.prompts(),
        demo_dataset=small.demonstrations(),
        rollout_func=fixed_rollouts,
    )
    return record.gradients


def gated(folder: Path, processes: int) -> list[dict[str, torch.Tensor]]:
    """Gradients under a gate, one group straddling processes: each prompt's demonstration by its own successes."""

    def by_place(completions, **_):
        first = int(os.environ.get("RANK", "0")) * len(completions)
        return [
            [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0][first + i] for i in range(len(completions))
        ]

    rows = small.prompts()
    record, _ = small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={
            "max_steps": STEPS,
            "per_device_train_batch_size": ROWS // processes,
            "num_generations": GROUP,
            "max_completion_length": 8,
            "beta": 0.2,
            "gate": {"threshold": {"solved_at_most": 1}},
            "demonstration_energy_weight": 0.5,
            "demonstration_beta": 0.3,
            "max_grad_norm": 0.0,
        },
        model=small.model(),
        reward_funcs=[by_place],
        train_dataset=rows.add_column("demonstration", [digits.demonstration(x) for x in rows["prompt"]]),
        rollout_func=fixed_rollouts,
    )
    return record.gradients


def whole_groups(folder: Path, processes: int, shares: bool) -> list[dict[str, torch.Tensor]]:
    """Gradients with whole groups on each process, at beta 0: one has less to forward than the other, and no signal
    at all in its first step."""

    def reward(completion_ids, **_):
        rewards = small.length_reward(completion_ids)
        first = os.environ.get("RANK", "0") == "0"
        return [1.0 if first and i < 8 else reward for i, reward in enumerate(rewards)]

    with patch.object(scoring, "call_in_tokens", lambda device: 1):  # a forward costs nothing: several are made
        record, _ = small.run(
            FreeEnergyTrainer,
            FreeEnergyConfig,
            folder,
            settings={
                **small.ROLLOUTS,
                "max_steps": STEPS,
                "per_device_train_batch_size": 16 // processes,
                "beta": 0.0,
                "max_grad_norm": 0.0,
                "share_prompts": shares,
            },
            model=small.model(),
            reward_funcs=[reward],
            train_dataset=small.prompts(),
            rollout_func=fixed_rollouts,
        )
    return record.gradients


def sft_parity(folder: Path) -> dict[str, bool]:
    """SFTTrainer against pure demonstrations on this many processes."""
    settings = {"max_steps": 20, "per_device_train_batch_size": 4, "data_seed": 3}
    pure = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}
    rows = small.demonstrations()
    theirs, sft = small.run(SFTTrainer, SFTConfig, folder, settings=settings, model=small.model(), train_dataset=rows)
    ours, trainer = small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={**settings, **pure},
        model=small.model(),
        demo_dataset=rows,
    )
    same = {key: ours.column(key) == theirs.column(key) for key in ("loss", "grad_norm", "num_tokens")}
    unwrap = trainer.accelerator.unwrap_model
    same["weights"] = small.same_weights(unwrap(trainer.model), unwrap(sft.model))
    return same | {
        "second epoch": theirs.logs[-1]["epoch"] > 1,
        "two processes": trainer.accelerator.num_processes == 2,
    }


def penalised(folder: Path, processes: int) -> dict[str, list]:
    """Gradients and penalties of SFT with beta on its demonstrations; the second step is off the reference."""
    os.environ["FE_POSTTRAIN_CACHE"] = str(folder / "cache")
    record, _ = small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={
            "max_steps": STEPS,
            "per_device_train_batch_size": ROWS // processes // 2,
            "gradient_accumulation_steps": 2,
            "reward_energy_weight": 0.0,
            "demonstration_energy_weight": 1.0,
            "beta": 0.3,
            "kl_sampler": "demonstrations",
            "optim": "sgd",
            "learning_rate": 0.05,
            "max_grad_norm": 0.0,
        },
        model=small.model(),
        demo_dataset=small.demonstrations(ROWS),
    )
    penalties = record.column("free_energy/demonstration_penalty") if record.logs else []
    return {"gradients": record.gradients, "penalties": penalties}


def paired_with_gaps(folder: Path) -> list[float]:
    """Demonstrations for every fourth prompt: on most steps one process has none and must not be waited for."""
    rows = small.prompts()
    rows = rows.add_column("demonstration", [None if i % 4 else "52413" for i in range(len(rows))])
    settings = {**small.ROLLOUTS, "max_steps": 6, "per_device_train_batch_size": 8, "beta": 0.1}
    record, _ = small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={**settings, "demonstration_energy_weight": 1.0},
        model=small.model(),
        reward_funcs=[small.length_reward],
        train_dataset=rows,
    )
    return record.column("free_energy/demonstration")


def prefixed(folder: Path, processes: int) -> dict[str, list]:
    """Gradients of rollouts that start inside demonstrations, groups on both processes, with what is logged."""

    def fixed(model, token_ids, decoding, *, eos_token_ids, pad_token_id, limits, compiled):
        drawn, rank = [], int(os.environ.get("RANK", "0"))
        for i, most in enumerate(limits):
            generator = torch.Generator().manual_seed(rank * len(limits) + i)
            length = int(torch.randint(1, most + 1, (1,), generator=generator))
            drawn.append([*torch.randint(4, 20, (length - 1,), generator=generator).tolist(), eos_token_ids[0]])
        log_probs, mask = score(model, token_ids, drawn, pad_token_id=pad_token_id)
        kept = [row[m].tolist() for row, m in zip(log_probs, mask, strict=True)]
        return Drawn(drawn, kept, [[0.5] * len(row) for row in drawn])

    rows = digits.dataset(["barrier", "tail_10"], 40, seed=0)
    with patch.object(rollouts, "sample", fixed):
        record, _ = small.run(
            FreeEnergyTrainer,
            FreeEnergyConfig,
            folder,
            settings={
                "max_steps": STEPS,
                "per_device_train_batch_size": ROWS // processes,
                "num_generations": GROUP,
                "max_completion_length": 16,
                "beta": 0.2,
                "prefix_share": 0.6,
                "prefix_law": "binomial",
                "prefix_rollouts": 3,
                "prefix_update": "uncertain",
                "prefix_likelihood_weight": 0.3,
                "max_grad_norm": 0.0,
            },
            model=small.model(),
            reward_funcs=[small.length_reward],
            train_dataset=rows.add_column("demonstration", [digits.demonstration(x) for x in rows["prompt"]]),
        )
    columns = ("prefix/tokens", "free_energy/demonstration")
    logged = [[row[name] for name in columns] for row in record.logs]
    return {"gradients": record.gradients, "logged": logged}


def buffered(folder: Path, processes: int) -> dict:
    """Final weights of a run that learns by the failure buffer alone, from prompts that end in an odd digit.

    Three demonstrations are read at once, in steps of two and one: one process has none in the second.
    """

    def nothing(prompts, **_):
        return [0.0] * len(prompts)

    rows = small.prompts()
    rows = rows.add_column("demonstration", [x[1:] for x in rows["prompt"]])
    waiting = []

    class Waits(TrainerCallback):
        def bind(self, trainer):
            self.trainer = trainer

        def on_step_end(self, args, state, control, **kwargs):
            waiting.append(list(self.trainer._failure_buffer.rows))

    _, trainer = small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={
            **small.ROLLOUTS,
            "max_steps": 6,
            "per_device_train_batch_size": ROWS // processes,
            "beta": 0.0,
            "learning_rate": 0.0,
            "adam_epsilon": 1e-4,
            "demonstration_energy_weight": 1.0,
            "failure_buffer": 3,
            "failure_buffer_batch_size": 2,
            "failure_buffer_learning_rate": 0.01,
            "failure_buffer_format": f"{Path(__file__).resolve()}:ends_odd",
        },
        model=small.model(),
        reward_funcs=[nothing],
        train_dataset=rows,
        rollout_func=fixed_rollouts,
        callbacks=[Waits()],
    )
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    return {"weights": weights, "waiting": waiting}


def ends_odd(prompts, **_) -> list[float]:
    """A format for `buffered`: it stands for one that some prompts' completions have."""
    return [float(prompt[-1] in "13579") for prompt in prompts]


def faulty_on_rank_1(folder: Path, policy: str) -> dict:
    """A reward that is NaN in two rows of rank 1 alone: what each process makes of it."""
    rank = int(os.environ["RANK"])

    def grade(completion_ids, **_):
        rewards = small.length_reward(completion_ids)
        return [float("nan") if rank == 1 and i in (2, 3) else reward for i, reward in enumerate(rewards)]

    settings = {**small.ROLLOUTS, "max_steps": 2, "per_device_train_batch_size": 8, "beta": 0.1}
    try:
        record, _ = small.run(
            FreeEnergyTrainer,
            FreeEnergyConfig,
            folder,
            settings={**settings, "reward_fault_policy": policy, "reward_fault_limit": 0.2},
            model=small.model(),
            reward_funcs=[grade],
            train_dataset=small.prompts(),
        )
    except RewardError as error:
        return {"rank": rank, "error": str(error)}
    return {"rank": rank, "faults": record.column("rewards/grade/faults") if rank == 0 else None}


if __name__ == "__main__":
    where = Path(sys.argv[1])
    found = {name: straddling(where, 2, name) for name in ("sequence", "sequence_to_go")}
    found["gated"] = gated(where, 2)
    found["reset"] = straddling(where, 2, "sequence", reference_resets=[1])
    found["whole groups"] = whole_groups(where, 2, True)
    found["sft"] = sft_parity(where)
    found["penalised"] = penalised(where, 2)
    found["prefixed"] = prefixed(where, 2)
    found["paired"] = paired_with_gaps(where)
    found["buffered"] = gather_object([buffered(where, 2)])
    for policy in ("stop", "mask"):
        found[policy] = gather_object([faulty_on_rank_1(where, policy)])
    if torch.distributed.get_rank() == 0:
        torch.save(found, where / "found.pt")
    torch.distributed.destroy_process_group()
