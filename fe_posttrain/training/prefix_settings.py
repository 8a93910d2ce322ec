"""Keys of rollouts that start inside a demonstration: what is in force at a step, and what they cannot stand."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fe_posttrain.training.gates import schedule

if TYPE_CHECKING:
    from fe_posttrain.training.config import FreeEnergyConfig

DEFAULTS: dict[str, Any] = {
    "prefix_schedule": None,
    "prefix_law": "fixed",
    "prefix_rollouts": None,
    "prefix_update": "none",
    "prefix_update_share": 0.2,
    "prefix_likelihood_weight": 0.0,
}
CHANGES_OPTIMUM = (
    "prefix_share: rollouts start inside a demonstration: the reward term is that of what follows it, the KL is taken "
    "on these tokens alone, and no gap is shown. The support ledger and displacement see no rollout of a generation "
    "that has such ones."
)


def share_at(args: "FreeEnergyConfig", step: int, total_steps: int) -> float:
    """Share of a demonstration that rollouts of optimizer step `step`, counted from 0, start with.

    Raises:
        ValueError: as `prefix_schedule: what; why; what to write`.
    """
    return schedule("prefix_schedule", args.prefix_schedule, args.prefix_share)(step, total_steps)


def problems(args: "FreeEnergyConfig") -> Iterator[str]:
    """Contradictions of the prefix keys, each as `key: what; why; what to write`."""
    if not args.prefix_share:
        for key, default in DEFAULTS.items():
            if getattr(args, key) != default:
                yield (
                    f"{key}: {getattr(args, key)} while prefix_share is 0; no rollout starts inside a demonstration; "
                    "write a positive prefix_share, or remove it"
                )
        return
    if args.is_sft or args.estimator == "trl" or args.use_vllm:
        what = "a run without rollouts" if args.is_sft else "use_vllm" if args.use_vllm else "estimator trl"
        yield (
            f"prefix_share: {args.prefix_share} with {what}; our own sampler continues demonstrations, and our "
            "estimators train what follows them; remove it, or roll out under estimator: sequence without vLLM"
        )
    if args.packing or args.padding_free:
        yield (
            f"prefix_share: {args.prefix_share} with packing or padding_free; demonstrations that rollouts start in "
            "are paired with prompts, row by row; write packing: false and padding_free: false"
        )
    for key, without in (("reward_projection", "reverse"), ("gate", None), ("failure_buffer", 0)):
        if getattr(args, key) != without:
            yield (
                f"prefix_share: {args.prefix_share} with {key} {getattr(args, key)}; that takes rollouts for the "
                "policy's own draws from the prompt on; remove one of them"
            )
    if args.prefix_rollouts is not None and args.prefix_rollouts > args.num_generations:
        yield (
            f"prefix_rollouts: {args.prefix_rollouts} with num_generations {args.num_generations}; a group has no more "
            "rollouts; write at most that"
        )
    if args.prefix_update_share != DEFAULTS["prefix_update_share"] and args.prefix_update == "none":
        yield (
            f"prefix_update_share: {args.prefix_update_share} with prefix_update none; no token of a prefix joins the "
            "reward term; write prefix_update: uncertain, or remove it"
        )
    if args.prefix_likelihood_weight and args.demonstration_energy_weight:
        yield (
            f"prefix_likelihood_weight: {args.prefix_likelihood_weight} with demonstration_energy_weight "
            f"{args.demonstration_energy_weight}; whole demonstrations have their term of F already; write one of them"
        )
