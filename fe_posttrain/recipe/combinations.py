"""Settings that contradict each other: one table of rules over a whole recipe, defaults included."""

import math
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from types import SimpleNamespace

from fe_posttrain.recipe.grouping import GROUPING, ROLLS_OUT, Rule
from fe_posttrain.tracking.settings import SupportSettings

# What a key that is written needs beside it, or it would be ignored in silence.
_LORA = """lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type
use_rslora use_dora merge_adapter load_in_4bit load_in_8bit"""
_4BIT = "bnb_4bit_quant_type bnb_4bit_quant_storage use_bnb_nested_quant"
_BUFFER = "batch_size learning_rate max_grad_norm format"
_NEEDS = {
    **dict.fromkeys(_LORA.split(), ("use_peft", "true")),
    **dict.fromkeys(_4BIT.split(), ("load_in_4bit", "true")),
    "dataset_config": ("dataset_name", "the name of a Hub dataset"),
    "demonstration_dataset_config": ("demonstration_dataset_name", "the name of a Hub dataset"),
    "dataloader_prefetch_factor": ("dataloader_num_workers", "1"),
    "dataloader_persistent_workers": ("dataloader_num_workers", "1"),
    "log_completions_hub_repo": ("log_completions", "true"),
    "hub_model_id": ("push_to_hub", "true"),
    "stop_on_alarm": ("alarms", "true"),
    **{f"failure_buffer_{key}": ("failure_buffer", "128") for key in _BUFFER.split()},
    **{f.name: ("support", "true") for f in fields(SupportSettings) if f.name != "support"},
}
_PACKAGES = {"use_vllm": "vllm", "load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes"}
_PACKAGES |= {"deepspeed": "deepspeed", "use_liger_kernel": "liger_kernel"}


def contradictions(run: SimpleNamespace) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys and problem (`what; why; what to write`) of each combination that makes no run.

    `run` holds every setting by its name (those with a problem of their own at their default), `generates` of
    FreeEnergyConfig, `written`, the keys that the recipe holds, and `faulty`, those with a problem of their own.
    """
    for key, (needed, value) in _NEEDS.items():
        if {key, needed} & run.faulty:
            continue
        if key in run.written and getattr(run, key) and not getattr(run, needed):
            yield (key, needed), f"written without {needed}; it would do nothing; write {needed}: {value}, or remove it"
    for key, package in _PACKAGES.items():
        if getattr(run, key) and find_spec(package) is None:
            yield (key,), f"it needs the package {package}, which is not installed; pip install {package}, or remove it"
    for rule in RULES:
        if not run.faulty.intersection(rule.keys + rule.beside) and rule.applies(run):
            yield rule.keys, rule.text(run) if callable(rule.text) else rule.text


def _has_demonstrations(run) -> bool:
    """Whether there may be any: a column of `dataset_name` cannot be known before it is read."""
    return bool(run.demonstrations or run.demonstrations_paired or run.demonstration_dataset_name or run.dataset_name)


def _has_eval_data(run) -> bool:
    return bool(run.dataset_test_split or run.eval_dataset_name)


def _evaluates(run) -> bool:
    return run.eval_strategy != "no" or run.eval_on_start


def _rewards(run) -> int:
    return len(run.reward_funcs) + bool(run.reward_model_name_or_path)


def _fraction_above_one(key: str) -> Rule:
    return Rule(
        (key,),
        lambda run: (getattr(run, key) or 0) > 1 and getattr(run, key) != int(getattr(run, key)),
        lambda run: f"{getattr(run, key)}; above 1 it counts whole steps; write {key}: {round(getattr(run, key))}",
    )


_KEYS_OF_THEIR_OWN = {"temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "max_length"}
_DEMONSTRATIONS = ("demonstrations", "demonstrations_paired", "demonstration_dataset_name", "dataset_name")
_KEEP_BEST = ("load_best_model_at_end", "eval_strategy", "save_strategy")

RULES: tuple[Rule, ...] = (
    *map(_fraction_above_one, ("save_steps", "eval_steps", "logging_steps", "warmup_steps")),
    Rule(
        ("load_in_4bit", "load_in_8bit"),
        lambda run: run.load_in_4bit and run.load_in_8bit,
        "true, like load_in_8bit; weights have one precision; remove one of them",
    ),
    Rule(("bf16", "fp16"), lambda run: run.bf16 and run.fp16, "true, like fp16; one precision at a time; remove one"),
    Rule(
        ("bf16_full_eval", "fp16_full_eval"),
        lambda run: run.bf16_full_eval and run.fp16_full_eval,
        "true, like fp16_full_eval; one precision at a time; remove one",
    ),
    Rule(
        ("dataset_name", "prompts"),
        lambda run: run.dataset_name and run.prompts,
        "written beside prompts; rollout prompts come from one's own data or from the testbed; remove one of them",
    ),
    Rule(
        ("demonstration_dataset_name", "demonstrations"),
        lambda run: run.demonstration_dataset_name and run.demonstrations,
        "written beside demonstrations; they come from one's own data or from the testbed; remove one of them",
    ),
    Rule(
        ("dataset_name", "demonstration_dataset_name", "demonstrations"),
        lambda run: not run.generates and run.dataset_name and (run.demonstration_dataset_name or run.demonstrations),
        "written beside other demonstrations; a pure SFT run reads demonstrations alone; remove one of them",
        ROLLS_OUT,
    ),
    Rule(
        ("system_prompt", "prompts", "demonstrations"),
        lambda run: run.system_prompt and (run.prompts or run.demonstrations),
        "written with rows of the testbed, whose model knows no conversation; remove it",
    ),
    Rule(
        ("prompts",),
        lambda run: run.generates and not run.prompts and not run.dataset_name,
        "missing; a run with reward energy or beta rolls out prompts; write dataset_name: prompts.jsonl, or "
        "prompts: {tail_10: 1} for the testbed (or kl_sampler: demonstrations, for SFT with beta and no rollouts)",
        ("dataset_name", *ROLLS_OUT),
    ),
    Rule(
        ("demonstration_energy_weight",),
        lambda run: run.uses_demonstrations and not _has_demonstrations(run),
        lambda run: (
            f"{run.demonstration_energy_weight:g} without demonstrations; there is nothing to learn from; "
            "write demonstration_dataset_name: rows.jsonl, or demonstrations: {barrier: 1} for the testbed"
        ),
        _DEMONSTRATIONS,
    ),
    Rule(
        ("demonstration_dataset_name", "demonstrations", "demonstrations_paired"),
        lambda run: (
            (run.demonstrations or run.demonstration_dataset_name or run.demonstrations_paired)
            and not run.reads_demonstrations
        ),
        "written while demonstration_energy_weight is 0; nobody would read them; write "
        "demonstration_energy_weight: 1.0, or remove them",
        ("demonstration_energy_weight",),
    ),
    Rule(
        ("demonstrations_paired",),
        lambda run: run.demonstrations_paired and not run.prompts,
        "true without prompts; it gives testbed prompts their demonstrations; write prompts: {barrier: 1}",
        ("prompts",),
    ),
    Rule(
        ("reward_funcs", "reward_energy_weight"),
        lambda run: run.uses_reward and not _rewards(run),
        lambda run: (
            f"no reward_funcs while reward_energy_weight is {run.reward_energy_weight:g}; F has a reward term "
            "and no reward; write reward_funcs: [digits], or reward_energy_weight: 0.0"
        ),
        ("reward_model_name_or_path",),
    ),
    Rule(
        ("reward_funcs", "reward_model_name_or_path"),
        lambda run: _rewards(run) and not run.uses_reward and not _evaluates(run) and not run.support,
        "written while reward_energy_weight is 0 and nothing is evaluated; nobody would call them; write "
        "reward_energy_weight: 1.0, or remove them",
        ("reward_energy_weight", "eval_strategy", "eval_on_start"),
    ),
    Rule(
        ("reward_weights",),
        lambda run: run.reward_weights is not None and len(run.reward_weights) != _rewards(run),
        lambda run: (
            f"weights: {len(run.reward_weights)}, rewards: {_rewards(run)}; each reward has one; write "
            f"reward_weights: {[1.0] * _rewards(run)}"
        ),
        ("reward_funcs", "reward_model_name_or_path"),
    ),
    Rule(
        ("eval_strategy", "eval_on_start"),
        lambda run: _evaluates(run) and not _has_eval_data(run),
        "written without rows to evaluate on; write dataset_test_split: test, or eval_dataset_name: rows.jsonl",
        ("dataset_test_split", "eval_dataset_name"),
    ),
    Rule(
        ("dataset_test_split", "eval_dataset_name"),
        lambda run: _has_eval_data(run) and not _evaluates(run),
        "written while eval_strategy is no; these rows would never be evaluated; write eval_strategy: steps, or "
        "remove it",
        ("eval_strategy", "eval_on_start"),
    ),
    Rule(
        ("dataset_test_split",),
        lambda run: run.dataset_test_split and not run.dataset_name and not run.demonstration_dataset_name,
        "a split of no dataset; write dataset_name too, or eval_dataset_name instead",
        ("dataset_name", "demonstration_dataset_name"),
    ),
    Rule(
        _KEEP_BEST,
        lambda run: (
            run.load_best_model_at_end
            and (run.eval_strategy == "no" or run.save_strategy not in ("best", run.eval_strategy))
        ),
        lambda run: (
            f"true with eval_strategy {run.eval_strategy} and save_strategy {run.save_strategy}; the best "
            f"checkpoint is known where both happen; write eval_strategy: {_both(run)} and save_strategy: {_both(run)}"
        ),
    ),
    Rule(
        (*_KEEP_BEST, "save_steps", "eval_steps"),
        lambda run: (
            run.load_best_model_at_end
            and run.eval_strategy == run.save_strategy == "steps"
            and not _is_multiple(run.save_steps, run.eval_steps or run.logging_steps)
        ),
        lambda run: (
            f"true with save_steps {run.save_steps:g} and eval_steps {run.eval_steps or run.logging_steps:g}; "
            "what is saved must have been evaluated; write a save_steps that is a multiple of eval_steps"
        ),
    ),
    Rule(
        ("save_strategy",),
        lambda run: run.save_strategy == "best" and run.eval_strategy == "no",
        "best while eval_strategy is no; nothing would be measured; write eval_strategy: steps",
        ("eval_strategy",),
    ),
    Rule(
        ("lr_scheduler_type",),
        lambda run: run.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy") and run.eval_strategy == "no",
        "it follows evaluations while eval_strategy is no; write eval_strategy: steps, or lr_scheduler_type: linear",
        ("eval_strategy",),
    ),
    Rule(
        ("generation_kwargs",),
        lambda run: _KEYS_OF_THEIR_OWN & set(run.generation_kwargs or {}),
        lambda run: (
            f"{sorted(_KEYS_OF_THEIR_OWN & set(run.generation_kwargs))[0]} has a key of its own, which would not know "
            "of it; write that key"
        ),
    ),
    Rule(
        ("neftune_noise_alpha",),
        lambda run: run.neftune_noise_alpha and (run.generates or run.kl_sampler == "demonstrations"),
        "noise in the embeddings of a run that rolls out or compares with a reference; the two would differ before the "
        "first step; remove it",
        ROLLS_OUT,
    ),
    Rule(
        ("support", "sync_ref_model"),
        lambda run: run.support and run.sync_ref_model,
        "true, like sync_ref_model; a claim about a reference that moves cannot hold; remove one of them",
    ),
    Rule(
        ("support",),
        lambda run: run.support and not (_on_testbed(run) or run.support_dataset_name or _has_eval_data(run)),
        "true without held-out prompts to probe; write support_dataset_name: prompts.jsonl, with the columns that the "
        "signal reads",
        ("support_dataset_name", "dataset_test_split", "eval_dataset_name"),
    ),
    Rule(
        ("support", "support_signal"),
        lambda run: run.support and not (run.support_signal or run.reward_funcs or _on_testbed(run)),
        "true while nothing says which completions are correct; write support_signal: NAME, as in reward_funcs",
        ("reward_funcs",),
    ),
    Rule(
        ("failure_buffer", "demonstration_dataset_name", "demonstrations"),
        lambda run: (
            run.failure_buffer
            and (run.demonstration_dataset_name or (run.demonstrations and not run.demonstrations_paired))
        ),
        "written with demonstrations of their own; it holds those of prompts that failed; write "
        "demonstrations_paired: true, or give the rows of dataset_name a column `demonstration`",
        ("demonstrations_paired",),
    ),
    *GROUPING,
    Rule(
        ("auto_find_batch_size",),
        lambda run: run.auto_find_batch_size,
        "true; halving a batch would cut groups of completions; lower per_device_train_batch_size and remove it",
    ),
    Rule(
        ("hub_strategy", "push_to_hub"),
        lambda run: run.push_to_hub and run.hub_strategy in ("checkpoint", "all_checkpoints"),
        lambda run: (
            f"{run.hub_strategy} pushes checkpoints while they are staged, before they are whole; write "
            "hub_strategy: every_save, or end"
        ),
    ),
    Rule(
        ("loss_type", "importance_sampling_level"),
        lambda run: run.loss_type in ("luspo", "vespo") and run.importance_sampling_level != _level(run),
        lambda run: (
            f"{run.loss_type} with importance_sampling_level {run.importance_sampling_level}; it is made for "
            f"the other; write importance_sampling_level: {_level(run)}"
        ),
    ),
    Rule(
        ("vllm_importance_sampling_clip_min", "vllm_importance_sampling_clip_max"),
        lambda run: (
            None not in (run.vllm_importance_sampling_clip_min, run.vllm_importance_sampling_clip_max)
            and run.vllm_importance_sampling_clip_min >= run.vllm_importance_sampling_clip_max
        ),
        lambda run: (
            f"{run.vllm_importance_sampling_clip_min:g}, not below vllm_importance_sampling_clip_max "
            f"{run.vllm_importance_sampling_clip_max:g}; they bound a ratio; write a smaller one"
        ),
    ),
)


def _on_testbed(run) -> bool:
    return bool(run.prompts or run.demonstrations)


def _both(run) -> str:
    """The strategy that evaluation and saving can share."""
    return next((s for s in (run.eval_strategy, run.save_strategy) if s in ("steps", "epoch")), "steps")


def _level(run) -> str:
    return "sequence" if run.loss_type == "luspo" else "token"


def _is_multiple(number: float, of: float) -> bool:
    if (number < 1) != (of < 1):
        return False
    return math.isclose(number / of, round(number / of), rel_tol=1e-6)
