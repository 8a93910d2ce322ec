"""How completions are grouped, generated and shared by optimizer steps: the arithmetic, its rules, what to write."""

import math
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What makes no run: reported at the first of `keys` that is written, and only where neither `keys` nor `beside`,
    which `applies` reads too, have problems of their own."""

    keys: tuple[str, ...]
    applies: Callable[[SimpleNamespace], Any]
    text: str | Callable[[SimpleNamespace], str]
    beside: tuple[str, ...] = ()


def processes() -> int:
    """How many processes the launcher started."""
    return int(os.environ.get("WORLD_SIZE", 1))


def micro_batches(run: SimpleNamespace) -> int:
    """Micro-batches that share one generation, as GRPOConfig derives them."""
    if run.generation_batch_size:
        return max(1, run.generation_batch_size // (run.per_device_train_batch_size * processes()))
    return run.steps_per_generation or run.gradient_accumulation_steps


def generation_batch(run: SimpleNamespace) -> int:
    """Completions of one generation, over all processes."""
    return run.generation_batch_size or run.per_device_train_batch_size * processes() * micro_batches(run)


def _whole(run: SimpleNamespace) -> int:
    """The least number of completions that are whole micro-batches and, where a run rolls out, whole groups."""
    return math.lcm(run.per_device_train_batch_size * processes(), run.num_generations if run.generates else 1)


def _no_whole_groups(run: SimpleNamespace) -> str:
    """What to write where a generation does not hold whole groups."""
    batch, group, rows = generation_batch(run), run.num_generations, run.per_device_train_batch_size
    step = group // math.gcd(group, processes() * micro_batches(run))
    divisors = [n for n in range(2, group) if batch % n == 0]
    return (
        f"{batch} completions a generation in groups of {group}; a prompt's group would be cut; write "
        f"per_device_train_batch_size: {math.ceil(rows / step) * step}"
        + (f", or num_generations: {divisors[-1]}" if divisors else "")
    )


def _no_whole_eval_groups(run: SimpleNamespace) -> str:
    group = run.num_generations_eval or run.num_generations
    step = group // math.gcd(group, processes())
    rows = math.ceil(run.per_device_eval_batch_size / step) * step
    return (
        f"{run.per_device_eval_batch_size} rows x {processes()} process(es) in groups of {group}; an evaluation batch "
        f"holds whole groups; write per_device_eval_batch_size: {rows}"
    )


def steps_per_rollouts(run: SimpleNamespace) -> int:
    """Optimizer steps that share their rollouts, until one begins with new ones."""
    accumulated = run.gradient_accumulation_steps
    return math.lcm(micro_batches(run) * run.num_iterations, accumulated) // accumulated


def _save_every(run: SimpleNamespace) -> float:
    """Steps between checkpoints; a share of the run in steps, where its length is written."""
    is_share = run.save_steps < 1 and run.max_steps > 0
    return math.ceil(run.save_steps * run.max_steps) if is_share else run.save_steps


def _saves_inside_block(run: SimpleNamespace) -> bool:
    """Whether a checkpoint falls between steps that share their rollouts; the one at the end of a run does not."""
    if not run.generates or run.save_strategy != "steps":
        return False
    block, every = steps_per_rollouts(run), _save_every(run)
    return block > 1 and every % block != 0 and not 0 < run.max_steps <= every


def _save_at(run: SimpleNamespace) -> str:
    block, every = steps_per_rollouts(run), _save_every(run)
    return (
        f"a checkpoint every {every:g} steps, but {block} optimizer steps share their rollouts; saved between them, "
        f"a run could not be resumed exactly; write a multiple of {block}, as save_steps: "
        f"{max(1, math.ceil(every / block)) * block}"
    )


_BATCH = ("per_device_train_batch_size", "num_generations", "generation_batch_size", "steps_per_generation")
_SAVE = ("save_steps", "save_strategy", "steps_per_generation", "generation_batch_size", "num_iterations")
# What decides whether a run rolls out.
ROLLS_OUT = (
    "reward_energy_weight",
    "reward_energy_schedule",
    "beta",
    "beta_schedule",
    "kl_sampler",
)  # what decides whether a run does

GROUPING: tuple[Rule, ...] = (
    Rule(
        ("generation_batch_size", "steps_per_generation"),
        lambda run: run.generation_batch_size and run.steps_per_generation,
        "written beside steps_per_generation; each follows from the other; remove one of them",
    ),
    Rule(
        ("generation_batch_size",),
        lambda run: run.generation_batch_size and run.generation_batch_size % _whole(run),
        lambda run: (
            f"{run.generation_batch_size} completions, for micro-batches of {run.per_device_train_batch_size} on each "
            f"of {processes()} processes, in groups of {run.num_generations}; it must hold whole ones; write "
            f"generation_batch_size: {math.ceil(run.generation_batch_size / _whole(run)) * _whole(run)}"
        ),
        ("per_device_train_batch_size", "num_generations"),
    ),
    Rule(
        _BATCH,
        lambda run: run.generates and not run.generation_batch_size and generation_batch(run) % run.num_generations,
        _no_whole_groups,
        ("gradient_accumulation_steps", *ROLLS_OUT),
    ),
    Rule(
        ("per_device_eval_batch_size", "num_generations_eval", "num_generations", "eval_strategy", "eval_on_start"),
        lambda run: (
            run.generates
            and (run.eval_strategy != "no" or run.eval_on_start)
            and (run.per_device_eval_batch_size * processes()) % (run.num_generations_eval or run.num_generations)
        ),
        _no_whole_eval_groups,
        ROLLS_OUT,
    ),
    Rule(_SAVE, _saves_inside_block, _save_at, ("gradient_accumulation_steps", "max_steps", *_BATCH, *ROLLS_OUT)),
)
