"""Ranges and choices of single settings: one table for FreeEnergyConfig, for recipes and for their schema.

`out_of_limits` checks the values of a dataclass against it. What concerns two settings at once is not here.
"""

import difflib
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

PREFIX_LAWS, PREFIX_UPDATES = ("fixed", "binomial"), ("none", "uncertain")
ESTIMATORS = ("sequence", "sequence_to_go", "trl")
KL_SAMPLERS = ("policy", "demonstrations")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without the ends that are `open`; those in `also` are allowed beside."""

    why: str
    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    also: tuple[int, ...] = ()

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return (above and below and math.isfinite(value)) or value in self.also

    def __str__(self) -> str:
        words = f"a number above {self.low}" if self.open_low else f"{self.low} or more"
        if self.high < math.inf:
            words = f"a number from {self.low} to {self.high}"
            words += f", without {self.low}" if self.open_low else ""
            words += f", without {self.high}" if self.open_high else ""
        return words + "".join(f", or {value}" for value in self.also)


COUNT = Range("it counts what there must be one of", 1)
COUNT_FROM_0 = Range("it is a count", 0)
POSITIVE = Range("it must be positive", 0, open_low=True)
NOT_NEGATIVE = Range("it cannot be negative", 0)
WEIGHT = Range("a weight of F is finite and not negative", 0)
SHARE = Range("it is a share", 0, 1)
DECAY = Range("it is the decay of a running mean", 0, 1, open_high=True)
SECONDS = Range("it is a time in seconds", 0, open_low=True)
STEPS = Range("it counts optimizer steps, or below 1 is a share of the run", 0, open_low=True)
SEED = Range("numpy takes seeds of 32 bits", 0, 2**32 - 1)
PORT = Range("it is a port", 1, 65535)
TEMPERATURE = Range("logits are divided by it", 0, open_low=True)

_RANGES: dict[Range, str] = {
    WEIGHT: "reward_energy_weight demonstration_energy_weight beta prefix_likelihood_weight",
    COUNT: "per_device_train_batch_size per_device_eval_batch_size per_device_demonstration_batch_size "
    "gradient_accumulation_steps eval_accumulation_steps steps_per_generation generation_batch_size num_iterations "
    "num_generations_eval max_completion_length max_length dataset_num_proc vllm_max_model_length "
    "vllm_tensor_parallel_size ref_model_sync_steps max_tool_calling_iterations "
    "save_total_limit torch_empty_cache_steps dataloader_prefetch_factor ddp_bucket_cap_mb pad_to_multiple_of "
    "lora_r lora_alpha prompt_rows demonstration_rows probe_rows probe_steps support_rows support_budget "
    "support_batch_size bank_draws projection_period failure_buffer_batch_size prefix_rollouts",
    Range("a group is compared with itself", 2): "num_generations",
    Range("draws are split in halves", 2): "support_draws support_reference_draws support_displacement_rows",
    Range("it counts optimizer steps; -1 leaves it to num_train_epochs", 1, also=(-1,)): "max_steps",
    Range("it counts tokens; 0 keeps all", 0, also=(-1,)): "top_k",
    COUNT_FROM_0: "dataloader_num_workers num_completions_to_print support_steps support_displacement_steps "
    "reference_cache_mib bank_refresh_steps failure_buffer",
    STEPS: "save_steps logging_steps",
    Range("it counts optimizer steps, or below 1 is a share of the run", 0): "eval_steps eval_delay warmup_steps",
    POSITIVE: "num_train_epochs loss_divisor repetition_penalty delta sapo_temperature_neg sapo_temperature_pos "
    "vespo_k_pos vespo_k_neg vllm_importance_sampling_clip_max vllm_importance_sampling_cap "
    "off_policy_mask_threshold adam_epsilon",
    TEMPERATURE: "temperature",
    NOT_NEGATIVE: "learning_rate weight_decay max_grad_norm epsilon epsilon_high vespo_lambda_pos vespo_lambda_neg "
    "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target vllm_importance_sampling_clip_min "
    "router_aux_loss_coef neftune_noise_alpha demonstration_beta failure_buffer_learning_rate "
    "failure_buffer_max_grad_norm",
    SHARE: "min_p top_entropy_quantile ref_model_mixup_alpha reward_fault_limit label_smoothing_factor prefix_share",
    Range("it is a share of the probability", 0, 1, open_low=True): "top_p",
    Range("it is a share of a prefix, one token of it at least", 0, 1, open_low=True): "prefix_update_share",
    Range("groups are weighted by its inverse", 0, 1, open_low=True): "quiet_group_rate",
    Range("it is a share of the GPU's memory", 0, 1, open_low=True): "vllm_gpu_memory_utilization",
    Range("it is the share that is dropped", 0, 1, open_high=True): "lora_dropout",
    DECAY: "adam_beta1 adam_beta2",
    Range("it is an error probability", 0, 1, open_low=True, open_high=True): "support_alpha support_delta",
    SECONDS: "reward_timeout vllm_server_timeout ddp_timeout",
    SEED: "seed data_seed",
    PORT: "vllm_server_port vllm_group_port",
}
RANGES: dict[str, Range] = {name: span for span, names in _RANGES.items() for name in names.split()}

_DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int8")
_OVERLONG = ("error", "drop", "truncate")
CHOICES: dict[str, tuple] = {
    "estimator": ESTIMATORS,
    "kl_sampler": KL_SAMPLERS,
    "prefix_law": PREFIX_LAWS,
    "prefix_update": PREFIX_UPDATES,
    "reward_projection": ("reverse", "forward", "alternating"),
    "forward_sampler": ("policy", "bank"),
    "demonstration_projection": ("forward", "reverse"),
    "reward_fault_policy": ("stop", "mask"),
    "loss_type": ("dr_grpo", "grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("none", "group", "batch", False, True),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "overlong_prompts": _OVERLONG,
    "overlong_demonstrations": _OVERLONG,
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
    "vllm_importance_sampling_mode": ("sequence_mask", "sequence_truncate", "token_mask", "token_truncate"),
    "cache_implementation": tuple(ALL_CACHE_IMPLEMENTATIONS),
    "attn_implementation": (
        "eager",
        "sdpa",
        "flex_attention",
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
    ),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "include_num_input_tokens_seen": ("no", "all", "non_padding", False, True),
    "report_to": ("none", "all", *INTEGRATION_TO_CALLBACK),
    "bnb_4bit_quant_storage": _DTYPES,
    "lora_task_type": ("CAUSAL_LM",),  # what is trained here
}
# A kernel of the Hub (`owner/name`) or a paged variant (`paged|sdpa`) is an attention implementation too.
OPEN = {"attn_implementation": "/|"}


@cache
def limits(kind: type) -> tuple[dict[str, Range], dict[str, tuple]]:
    """Ranges and choices of the fields of dataclass `kind`: ours, those of its enums and of its metadata."""
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    choices = {f.name: tuple(f.metadata["choices"]) for f in fields(kind) if f.metadata.get("choices")}
    choices |= {name: found for name in names if (found := _enum_values(hints[name]))}
    choices |= {name: CHOICES[name] for name in names if name in CHOICES}
    return {name: RANGES[name] for name in names if name in RANGES}, choices


def _enum_values(hint: Any) -> tuple:
    """The values of the Enum that `hint` is, or holds in a union or list."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(member.value for member in hint)
    if get_origin(hint) in (Union, types.UnionType, list):
        return next((found for inner in get_args(hint) if (found := _enum_values(inner))), ())
    return ()


def out_of_limits(kind: type, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and problem (`what; why; what to write`) of each of `values` that the table does not allow.

    None is left to the types, and so is text where a range is meant.
    """
    ranges, choices = limits(kind)
    for name, value in values.items():
        if name in ranges and isinstance(value, int | float) and not isinstance(value, bool):
            if value not in ranges[name]:
                yield name, f"{value}; {ranges[name].why}; write {ranges[name]}"
        elif not_finite := next(_not_finite(value), None):
            yield name, f"{not_finite}; it is no finite number; write one"
        wrong = [item for item in _items(name, value) if name in choices and not _is_choice(name, item, choices[name])]
        if wrong:
            yield name, f"{_shown(wrong[0])}; unknown; {_wanted(wrong[0], choices[name])}"


def _items(name: str, value: Any) -> list:
    """What is chosen: each entry of a list, each word of `debug`, or the value itself."""
    if name == "debug" and isinstance(value, str):
        return value.split()
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_choice(name: str, item: Any, choices: tuple) -> bool:
    if item is None or (isinstance(item, str) and any(mark in item for mark in OPEN.get(name, ""))):
        return True
    return any(item == choice and isinstance(item, bool) == isinstance(choice, bool) for choice in choices)


def _shown(value: Any) -> str:
    return repr(value.value if isinstance(value, Enum) else value)


def _wanted(value: Any, choices: tuple) -> str:
    """What to write instead: every choice where they are few, the nearest where they are many."""
    names = [choice if isinstance(choice, str) else str(choice).lower() for choice in choices]
    near = [name for name in names if name.startswith(f"{value}_")][:1]
    near = near or difflib.get_close_matches(str(value), names, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}? " if near else ""
    if len(names) > 16:
        nearest = difflib.get_close_matches(str(value), names, n=6, cutoff=0.3) or names[:6]
        return f"{hint}write one of {len(names)}, as {', '.join(nearest)}"
    return f"{hint}write one of {', '.join(names)}" if len(names) > 1 else f"write {names[0]}"


def _not_finite(value: Any) -> Iterator[float]:
    """Every NaN and infinity in a value, lists and mappings included."""
    if isinstance(value, float) and not math.isfinite(value):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _not_finite(inner)
