"""What of a run does not end at the optimum of F as written, in plain words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fe_posttrain.training.gates import SCHEDULE_OF
from fe_posttrain.training.prefix_settings import CHANGES_OPTIMUM as PREFIXES_CHANGE_OPTIMUM

if TYPE_CHECKING:
    from fe_posttrain.training.config import FreeEnergyConfig

_MOVING_REFERENCE = "sync_ref_model: the reference moves, so F is measured against a target that moves too."
_RESET_REFERENCE = (
    "reference_resets: at each of these steps the policy becomes the reference; from then on F, its KL and its optimum "
    "are relative to the policy of that step, and the run ends at the optimum of the last one."
)
_PENALISES_DEMONSTRATIONS = (
    "kl_sampler: demonstrations penalises the squared log-ratio of demonstrations, not KL(pi || reference): it ends at "
    "log pi - log reference = demonstration_energy_weight / beta on each of them, where normalisation leaves room, and "
    "holds no probability elsewhere."
)

# Settings under which the run does not end at the written optimum, and what they do, in plain words.
_CHANGES_OPTIMUM = (
    (
        lambda a: a.scale_rewards != "none",
        "scale_rewards: {scale_rewards} divides advantages by the reward's standard deviation: the temperature "
        "becomes beta * std(reward | prompt) and shrinks as the policy sharpens.",
    ),
    (
        lambda a: a.estimator == "trl" and a.uses_reference,
        "estimator: trl takes the KL per token (k3 times ratio): it forgets a token's effect on later KL.",
    ),
    (
        lambda a: a.estimator == "trl" and a.loss_type != "dr_grpo",
        "loss_type: {loss_type} divides by lengths that vary: terms of F are reweighted by completion length.",
    ),
    (
        lambda a: a.top_p < 1 or a.top_k > 0 or a.min_p or a.repetition_penalty != 1.0,
        "top_p, top_k, min_p or repetition_penalty: samples come from a truncated policy, log-probs from the whole.",
    ),
    (
        lambda a: bool(a.generation_kwargs),
        "generation_kwargs: {generation_kwargs} may change what is sampled, and log-probs do not know of it.",
    ),
    (
        lambda a: a.temperature != 1.0,
        "temperature: {temperature}: reward and KL are those of the policy at this temperature, not of the model.",
    ),
    (
        lambda a: a.gradient_accumulation_steps % (a.steps_per_generation * a.num_iterations) != 0,
        "num_iterations, steps_per_generation: steps on older rollouts weigh tokens by a ratio clipped at epsilon.",
    ),
    (
        lambda a: a.use_vllm and a.vllm_importance_sampling_correction,
        "use_vllm: the ratio between trainer and vLLM is {vllm_importance_sampling_mode} and capped.",
    ),
    (
        lambda a: a.mask_truncated_completions,
        "mask_truncated_completions: completions without an end token have no term in F.",
    ),
    (
        lambda a: a.top_entropy_quantile < 1.0,
        "top_entropy_quantile: only tokens of high entropy are trained.",
    ),
    (
        lambda a: a.entropy_coef != 0 or a.use_adaptive_entropy,
        "entropy_coef: an entropy bonus is added to F.",
    ),
    (
        lambda a: a.off_policy_mask_threshold is not None,
        "off_policy_mask_threshold: rows are left out by their own advantage.",
    ),
    (
        lambda a: a.failure_buffer > 0,
        "failure_buffer: {failure_buffer}: demonstrations are read only of prompts whose rollouts all failed, in steps "
        "of their own: a gate on the group's own rewards is no weight of F, and no gap is shown.",
    ),
    (
        lambda a: a.prefix_share > 0,
        PREFIXES_CHANGE_OPTIMUM,
    ),
    (
        lambda a: a.sync_ref_model,
        _MOVING_REFERENCE,
    ),
    (
        lambda a: bool(a.reference_resets) and a.keeps_reference,
        _RESET_REFERENCE,
    ),
)

_ON_DEMONSTRATIONS = (
    (
        lambda a: a.demonstration_projection == "reverse" and a.demonstration_beta == 0,
        "demonstration_projection: reverse descends -pi of each demonstrated token: where demonstrations differ it "
        "ends at the most frequent token, not at their frequencies.",
    ),
    (
        lambda a: a.demonstration_beta > 0,
        "demonstration_beta: {demonstration_beta} replaces -log pi by a target per token: it ends at "
        "softmax(log reference + 1[demonstrated] / demonstration_beta).",
    ),
    (
        lambda a: a.demonstration_shaping is not None,
        "demonstration_shaping: {demonstration_shaping} weighs each demonstrated token by the policy's own law: what "
        "is descended is not -log pi.",
    ),
)
_ON_GROUPS = (
    (
        lambda a: a.gate is not None,
        "gate: {gate} weighs a prompt's terms by what its own rollouts achieved: that is no weight of one F, and no "
        "gap is shown.",
    ),
    (
        lambda a: a.reward_projection != "reverse" and not a.uses_reference,
        "reward_projection: {reward_projection} at beta 0 selects: completions with reward >= success_threshold: "
        "{success_threshold} count alike, and how far above it they lie does not count.",
    ),
    (
        lambda a: a.reward_projection == "alternating" and not a.uses_reference,
        "reward_projection: alternating at beta 0 has two ends, the highest reward and the selected completions, and "
        "every projection_period: {projection_period} steps it heads for the other.",
    ),
    (
        lambda a: a.forward_sampler == "bank",
        "forward_sampler: bank fits bank_draws: {bank_draws} completions of each prompt: it ends at their weights, and "
        "what none of them shows is not learned.",
    ),
)


def what_changes_the_optimum(args: "FreeEnergyConfig") -> list[str]:
    """One sentence for each setting of `args` that moves the run's fixed point away from the optimum of F."""
    if args.is_sft:
        found = [_PENALISES_DEMONSTRATIONS] if args.uses_reference else []
        found += [_MOVING_REFERENCE] if args.sync_ref_model and args.keeps_reference else []
        found += [_RESET_REFERENCE] if args.reference_resets and args.keeps_reference else []
        tables = (_ON_DEMONSTRATIONS,)
    else:
        found, tables = [], (_CHANGES_OPTIMUM, _ON_GROUPS, _ON_DEMONSTRATIONS)
    found += [text.format(**vars(args)) for table in tables for applies, text in table if applies(args)]
    return found + list(_moving_weights(args))


def _moving_weights(args: "FreeEnergyConfig") -> Iterator[str]:
    moving = [key for key in SCHEDULE_OF.values() if getattr(args, key) is not None]
    if moving:
        yield (
            f"{', '.join(moving)}: F moves with the step, and so does its optimum; at the end it is that of the last "
            "step's weights."
        )
