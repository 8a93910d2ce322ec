"""The keys of another reference than the policy's start: which steps they mean, and what contradicts them."""

import math

_BANK = (
    "written beside forward_sampler: bank; the bank is drawn from the policy of the start and weighted as the "
    "reference's; write forward_sampler: policy, or remove one of them"
)


def reset_steps(resets: list[float], total_steps: int) -> list[int]:
    """Optimizer steps, counted from 0, that `reference_resets` means in a run of `total_steps`; in rising order.

    >>> reset_steps([300, 0.5], 400)
    [200, 300]
    """
    return sorted({math.ceil(at * total_steps) if at < 1 else int(at) for at in resets})


def reset_problems(args) -> list[str]:
    """What is wrong with `reference_resets` of a FreeEnergyConfig, as `key: what; why; what to write`."""
    found, shown = [], ", ".join(f"{at:g}" for at in args.reference_resets)
    for at in args.reference_resets:
        if not at > 0 or (at > 1 and at != int(at)):
            found.append(
                f"reference_resets: {at:g}; each counts optimizer steps from the start, or below 1 is a share of the "
                "run; write whole numbers from 1, or shares above 0"
            )
    if found or not args.reference_resets:
        return found
    late = [step for step in reset_steps(args.reference_resets, args.max_steps) if step >= args.max_steps]
    if args.max_steps > 0 and late:
        found.append(
            f"reference_resets: {shown} with max_steps {args.max_steps}; a reset is made where a step begins, and the "
            f"run has none from {late[0]} on; write smaller ones"
        )
    if args.reference_model_name_or_path:
        found.append(
            "reference_resets: written beside reference_model_name_or_path; a reset would put the policy in that "
            "model's place; remove one of them"
        )
    if args.sync_ref_model:
        found.append("reference_resets: written beside sync_ref_model; both move the reference; remove one of them")
    if args.forward_sampler == "bank":
        found.append(f"reference_resets: {_BANK}")
    optim = str(getattr(args.optim, "value", args.optim))
    if optim.startswith("schedule_free") or "layerwise" in optim:
        found.append(
            f"reference_resets: {shown} with optim {optim}; a reset begins with a fresh optimizer, and this one keeps "
            "its state where it cannot be cleared; write optim: adamw_torch"
        )
    return found


def teacher_problems(args) -> list[str]:
    """What contradicts `reference_model_name_or_path` in a FreeEnergyConfig."""
    name, found = args.reference_model_name_or_path, []
    if name is None:
        return found
    if not args.keeps_reference:
        found.append(
            f"reference_model_name_or_path: {name} with beta {args.beta:g}; F has no KL and nobody would ask that "
            "model; write beta: 1.0, or remove it"
        )
    if args.forward_sampler == "bank":
        found.append(f"reference_model_name_or_path: {_BANK}")
    if args.sync_ref_model:
        found.append(
            "reference_model_name_or_path: written beside sync_ref_model; the policy's weights would be mixed into "
            "that model's; remove one of them"
        )
    if args.cast_lm_head_to_fp32:
        found.append(
            "reference_model_name_or_path: written beside cast_lm_head_to_fp32; only the policy's head would be cast; "
            "write dtype: float32, or remove one of them"
        )
    return found
