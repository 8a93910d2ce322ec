"""Settings of FreeEnergyConfig that contradict each other, or name what is not there."""

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from fe_posttrain.training.gates import SCHEDULE_OF, schedule, try_shaping, weighs
from fe_posttrain.training.limits import RANGES, out_of_limits
from fe_posttrain.training.prefix_settings import problems as of_prefixes
from fe_posttrain.training.reference_keys import reset_problems, teacher_problems

if TYPE_CHECKING:
    from fe_posttrain.training.config import FreeEnergyConfig

_STEPS = 1_000_000  # a schedule is tried on a run of this length, where a recipe counts epochs


def problems(args: "FreeEnergyConfig") -> list[str]:
    """Every problem of `args`, each as `key: what; why; what to write`.

    `args` need not have been through its constructor: its fields are all that is read.
    """
    values = {field.name: getattr(args, field.name) for field in fields(args) if hasattr(args, field.name)}
    found = [f"{key}: {text}" for key, text in out_of_limits(type(args), values)]
    if named := list(_named(args)):
        return found + named  # the rest reads what these keys mean
    checks = (_of_the_whole, _on_rollouts, _of_projections, _on_demonstrations, _of_the_buffer)
    checks = (*checks, of_prefixes, reset_problems, teacher_problems)
    return found + [line for check in checks for line in check(args)]


def _named(args) -> Iterator[str]:
    """Functions and schedules that are not there, or do not take their arguments."""
    for key, tried in (("gate", weighs), ("demonstration_shaping", try_shaping)):
        if (entry := getattr(args, key)) is not None:
            try:
                tried(entry)
            except ValueError as error:
                yield str(error)
    for weight, key in (*SCHEDULE_OF.items(), ("prefix_share", "prefix_schedule")):
        span = RANGES[weight]
        if getattr(args, key) is None:
            continue
        try:
            moving = schedule(key, getattr(args, key), getattr(args, weight))
            steps = args.max_steps if args.max_steps > 0 else _STEPS
            tried = [moving(i * (steps - 1) // 100, steps) for i in range(101)]
        except ValueError as error:
            text = str(error)
            yield text if text.startswith(key) else f"{key}: {text}"
            continue
        except TypeError as error:
            yield f"{key}: {error}; a schedule is a function f(step, total_steps, value) of numbers; write such a one"
            continue
        wrong = [value for value in tried if not isinstance(value, int | float) or value not in span]
        if wrong:
            yield f"{key}: {wrong[0]!r} on its way; {span.why}; write {span}"


def _of_the_whole(args) -> Iterator[str]:
    if not (args.uses_reward or args.uses_demonstrations or args.uses_reference):
        yield (
            "reward_energy_weight: 0, like demonstration_energy_weight and beta; F would be constant; "
            "write 1 for one of them"
        )
    if args.loss_type not in (None, "dr_grpo") and args.estimator.startswith("sequence") and not args.is_sft:
        yield (
            f"loss_type: {args.loss_type!r}; estimator {args.estimator} divides F by one constant (dr_grpo) "
            "and by nothing else; leave it out, or write estimator: trl"
        )
    if args.is_sft and not args.uses_reference and args.demonstration_energy_schedule is not None:
        yield (
            "demonstration_energy_schedule: written while reward_energy_weight and beta are 0; the only weight of F "
            "moves with the learning rate; write lr_scheduler_type instead"
        )


def _on_rollouts(args) -> Iterator[str]:
    """What rollouts, gates and estimators cannot stand."""
    if args.quiet_group_rate != 1 and args.estimator == "trl":
        yield (
            f"quiet_group_rate: {args.quiet_group_rate} with estimator trl; TRL's step is left as it is; leave it "
            "out, or take another estimator"
        )
    if args.gate is None:
        return
    if not args.uses_reward:
        yield (
            f"gate: {args.gate} with reward_energy_weight 0; it looks at the rewards of a group, and none is asked "
            "for; remove it, or write a positive weight"
        )
    elif not (args.uses_demonstrations or weighs(args.gate)[0]):
        yield (
            f"gate: {args.gate} with demonstration_energy_weight 0; it weighs demonstrations alone and would do "
            "nothing; write a positive weight, or remove it"
        )
    if args.estimator == "trl":
        yield f"gate: {args.gate} with estimator trl; TRL's step is left as it is; write estimator: sequence"
    if args.estimator == "sequence_to_go":
        yield f"gate: {args.gate} with estimator sequence_to_go; it acts on whole rollouts; write estimator: sequence"


def _of_projections(args) -> Iterator[str]:
    """What forward projection of rewards, and either one of demonstrations, cannot stand."""
    if args.reward_projection == "reverse":
        if args.forward_sampler == "bank":
            yield "forward_sampler: bank with reward_projection reverse; it would do nothing; remove it"
    else:
        if not args.uses_reward or args.estimator != "sequence":
            what = f"estimator {args.estimator}" if args.uses_reward else "reward_energy_weight 0"
            yield (
                f"reward_projection: {args.reward_projection} with {what}; it weighs whole completions by their "
                "reward; write estimator: sequence and a positive reward_energy_weight"
            )
        if not (args.scale_rewards in (None, "none", False) and args.gate is None):
            key = "gate" if args.gate is not None else "scale_rewards"
            yield (
                f"{key}: {getattr(args, key)} with reward_projection {args.reward_projection}; it acts on advantages "
                "of reverse projection; remove it"
            )
        if args.forward_sampler == "bank" and args.reward_projection == "alternating":
            yield "forward_sampler: bank with reward_projection alternating; both share rollouts; write policy"
    if args.demonstration_beta and args.kl_sampler == "demonstrations":
        yield (
            "demonstration_beta: positive with kl_sampler demonstrations; both hold demonstrations to the reference; "
            "write one of them"
        )
    shaped = args.demonstration_shaping is not None
    if shaped and (args.demonstration_projection == "reverse" or args.demonstration_beta):
        yield (
            "demonstration_shaping: written beside demonstration_projection reverse or demonstration_beta; it scales "
            "-log pi of demonstrated tokens; remove one of them"
        )
    changed = shaped or args.demonstration_projection == "reverse" or args.demonstration_beta
    if changed and not args.uses_demonstrations:
        reverse = args.demonstration_projection == "reverse"
        key = "demonstration_shaping" if shaped else "demonstration_projection" if reverse else "demonstration_beta"
        yield f"{key}: written while demonstration_energy_weight is 0; it would do nothing; remove it"
    if shaped and (args.packing or args.padding_free):
        yield (
            "demonstration_shaping: written with packing or padding_free; a factor may be that of a whole sequence, "
            "and several lie in one row; write packing: false and padding_free: false"
        )


def _on_demonstrations(args) -> Iterator[str]:
    """What `kl_sampler: demonstrations` and packing cannot stand."""
    penalised = args.kl_sampler == "demonstrations"
    if penalised and (args.uses_reward or not (args.uses_demonstrations and args.uses_reference)):
        yield (
            f"kl_sampler: demonstrations with reward_energy_weight {args.reward_energy_weight}, "
            f"demonstration_energy_weight {args.demonstration_energy_weight} and beta {args.beta}; it makes "
            "no rollouts and penalises how far demonstrations move; write reward_energy_weight: 0 and the other two "
            "positive, or kl_sampler: policy"
        )
    if penalised and args.packing and args.packing_strategy != "bfd":
        yield (
            f"packing_strategy: {args.packing_strategy}; it cuts sequences, and under kl_sampler: demonstrations "
            "the log-ratio of each whole one is a term of F; write bfd"
        )
    if args.packing and args.packing_strategy == "wrapped" and not args.is_sft:
        yield "packing_strategy: wrapped; it cuts sequences, and beside rollouts each one is a term of F; write bfd"


def _of_the_buffer(args) -> Iterator[str]:
    """What `failure_buffer` cannot do without, or stand."""
    if not args.failure_buffer:
        return
    if not (args.uses_reward and args.uses_demonstrations):
        yield (
            f"failure_buffer: {args.failure_buffer} with reward_energy_weight {args.reward_energy_weight} and "
            f"demonstration_energy_weight {args.demonstration_energy_weight}; it trains on demonstrations of prompts "
            "whose rollouts failed; write both positive, or failure_buffer: 0"
        )
    if args.fp16:
        yield (
            "failure_buffer: with fp16; gradients are scaled for the run's own optimizer alone; write bf16: true "
            "instead, or failure_buffer: 0"
        )
    if args.gate is not None:
        yield (
            "failure_buffer: with a gate; each says by a group's rewards when its demonstration is read; remove one of "
            "them"
        )
    if args.forward_sampler == "bank":
        yield (
            "failure_buffer: with forward_sampler bank; who fails there is the reference or an older policy; write "
            "forward_sampler: policy"
        )
