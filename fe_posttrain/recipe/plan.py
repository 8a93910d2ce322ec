"""The dry run: what a recipe would do, printed before any trainer is built."""

import itertools
from collections.abc import Iterator
from functools import partial

from accelerate.utils import is_peft_model
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fe_posttrain.recipe.data import Data
from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.training.announcements import what_changes_the_optimum
from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.demonstrations import prepare
from fe_posttrain.training.fit import tokenise_prompts
from fe_posttrain.training.fit_demonstrations import as_completions, tokenise_demonstrations
from fe_posttrain.training.memory import Part, count_steps, estimate_memory, not_counted
from fe_posttrain.training.reference_cache import cache_file
from fe_posttrain.view import weights

EXAMPLES = 2
_HEAD, _TAIL = 300, 100  # characters shown of a long text
_OPEN, _CLOSE = "⟦", "⟧"


def equation(args: FreeEnergyConfig) -> str:
    """F of this run, as it was asked for."""
    parts = []
    weight = partial(weights.shown, vars(args), arrow="->")
    if args.uses_reward:
        parts.append(f"{weight('reward_energy_weight')} E[-reward]")
    if args.uses_demonstrations:
        parts.append(f"{weight('demonstration_energy_weight')} E_demonstrations[-log pi]")
    if args.uses_reference:
        held = " KL(pi || reference)" if args.generates else "/2 E_demonstrations[(log pi - log reference)^2]"
        parts.append(f"{weight('beta')}{held}")
    return "F(pi) = " + " + ".join(parts)


def print_plan(console: Console, settings: RunSettings, args: FreeEnergyConfig, model, tokenizer, data: Data) -> None:
    """Print F, the work, the memory, what changes the optimum, the rows left out, and tokenised examples.

    Args:
        model: the policy as it will be trained, with its adapter if it has one; its weights are counted, not used.
        tokenizer: the trainer's, its settings applied.
    """
    console.print(Text(equation(args), "bold"))
    console.print(_work(settings, args, model, tokenizer, data))
    console.print(Text("Memory of a device, estimated", "bold"))
    console.print(_memory(settings, args, model, data))
    console.print(f"Not counted: {', '.join(not_counted(args))}. Sharding (FSDP, DeepSpeed) is not looked at.\n")
    for title, lines in (
        ("Moves the end of the run away from the optimum of F", what_changes_the_optimum(args)),
        ("Rows that do not fit", data.report),
    ):
        if lines:
            console.print(Text(title, "bold"))
            for line in lines:
                console.print(f"  {line}", highlight=False, markup=False)
            console.print()
    if data.prompts is not None:
        _print_prompts(console, args, tokenizer, data)
    if "demonstrations" in data.fits:
        _print_demonstrations(console, args, tokenizer, data)


def _work(settings: RunSettings, args: FreeEnergyConfig, model, tokenizer, data: Data) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in _work_lines(settings, args, model, tokenizer, data):
        table.add_row(name, Text(value))
    table.add_row("", "")
    return table


def _work_lines(
    settings: RunSettings, args: FreeEnergyConfig, model, tokenizer, data: Data
) -> Iterator[tuple[str, str]]:
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    yield "model", f"{type(model).__name__} of {model.config._name_or_path or 'no path'}"
    yield "parameters", f"{total:,}, {'all' if trained == total else f'{trained:,} ({trained / total:.2%})'} trained"
    if args.reference_model_name_or_path:
        yield "reference", f"{args.reference_model_name_or_path}, a model of its own"
    rows, what = (len(data.prompts), "prompts") if args.generates else _demonstration_rows(args, tokenizer, data)
    steps = count_steps(args, rows)
    batch = (
        f"{_count(args.world_size, 'process', 'es')} x {args.per_device_train_batch_size} a device x "
        f"{args.gradient_accumulation_steps} accumulated = {steps.rows:,}"
    )
    if args.generates:
        rewards = [*settings.reward_funcs, settings.reward_model_name_or_path]
        yield "rewards", ", ".join(str(reward) for reward in rewards if reward) or "none"
        prompts = steps.rows / args.num_generations / args.num_iterations
        yield "a step", f"{batch} completions, {args.num_generations} of each prompt: {prompts:g} prompts"
    else:
        yield "a step", f"{batch} {what}"
    yield "steps", f"{steps.total:,} = {steps.epochs:.2f} passes over {rows:,} {what}"
    if args.generates:
        block = args.generation_batch_size * args.num_iterations  # rows of the steps that share a generation
        drawn = -(-steps.total * steps.rows // block) * args.generation_batch_size
        longest = args.max_completion_length
        yield "sampled", f"{drawn:,} completions of at most {longest:,} tokens: at most {drawn * longest:,} tokens"
    if data.probes is not None:
        yield "support", _probing(settings, len(data.probes))
    if "demonstrations" not in data.fits:
        return
    passes = steps.epochs
    if args.generates and data.demonstrations is not None:
        size = args.per_device_demonstration_batch_size or args.per_device_train_batch_size
        read = steps.total * size * args.world_size * args.gradient_accumulation_steps
        rows, what = _demonstration_rows(args, tokenizer, data)
        passes = read / rows
        yield "beside them", f"{read // steps.total:,} {what} a step: {passes:.2f} passes over {rows:,}"
    fit = data.fits["demonstrations"]
    tokens = sum(fit.tokens)
    if args.failure_buffer:
        size = args.failure_buffer_batch_size or args.per_device_train_batch_size
        waiting = f"{args.failure_buffer:,} of {len(fit.tokens):,} demonstrations wait for prompts that failed"
        yield "failure buffer", f"as soon as {waiting}, they are read once, {min(size, args.failure_buffer):,} a step"
        return
    about = "" if passes == int(passes) else "about "
    yield (
        "demonstrated",
        f"{len(fit.tokens):,} demonstrations of {tokens:,} tokens, {fit.trained:,} of them trained, "
        f"x {passes:.2f} = {about}{round(passes * tokens):,} tokens",
    )
    if args.is_sft and args.uses_reference:
        yield "reference", _reference_scores(args, fit.trained)


def _reference_scores(args: FreeEnergyConfig, trained: int) -> str:
    """When the reference scores demonstrations, and what is kept of it."""
    if args.sync_ref_model or args.reference_resets or not args.reference_cache_mib:
        return "scores every batch"
    kept = f"{readable(4 * trained)} of log-probs in {cache_file()}, at most {args.reference_cache_mib:,} MiB"
    return f"scores a demonstration once, in the first pass of the first run: {kept}"


def _probing(settings: RunSettings, prompts: int) -> str:
    """What tracking of support draws beside training."""
    drawn = prompts * 2 * (settings.support_draws // 2)
    most = prompts * (settings.support_draws + 2 * settings.support_reference_draws)
    when = f"every {settings.support_steps:,} steps and at the end" if settings.support_steps else "at the end"
    return (
        f"{prompts:,} probe prompts x {settings.support_draws} draws = {drawn:,} completions {when}; once and cached, "
        f"{prompts * settings.support_draws:,} to {most:,} of the reference"
    )


def _demonstration_rows(args: FreeEnergyConfig, tokenizer, data: Data) -> tuple[int, str]:
    """How many rows a loader of demonstrations has, and what they are."""
    if not args.packing:
        return len(data.fits["demonstrations"].tokens), "demonstrations"
    shuffle = args.is_sft and args.shuffle_dataset
    return len(prepare(data.demonstrations, tokenizer, args, shuffle=shuffle)), "packs of demonstrations"


def _memory(settings: RunSettings, args: FreeEnergyConfig, model, data: Data) -> Table:
    longest = {name: max(fit.tokens) for name, fit in data.fits.items()}
    parts = estimate_memory(args, model, longest.get("prompts", 0), longest.get("demonstrations", 0))
    if settings.support:
        parts += _kept_for_support(settings, args, model)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("part", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("how", overflow="fold")
    for part in parts:
        table.add_row(part.name, readable(part.size), part.how)
    table.add_row("all at once", readable(sum(part.size for part in parts)), "", style="bold")
    return table


def _kept_for_support(settings: RunSettings, args: FreeEnergyConfig, model) -> list[Part]:
    """Copies of the trained weights that tracking keeps on the device."""
    size = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    kept = []
    if args.generates and settings.support_displacement_steps:
        kept.append(Part("kept window", size, "trained weights at the start of a displacement window (support)"))
    if not ((args.uses_reference and args.reference_is_base) or is_peft_model(model)):
        kept.append(Part("kept start", size, "trained weights at the start of the run (support)"))
    return kept


def readable(size: int) -> str:
    """Bytes in units of 1024: `1.50 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def _print_prompts(console: Console, args: FreeEnergyConfig, tokenizer, data: Data) -> None:
    prompts = data.prompts.select(range(min(EXAMPLES, len(data.prompts))))["prompt"][:]
    for i, ids in enumerate(tokenise_prompts(prompts, tokenizer, args), start=1):
        console.print(Text(f"Prompt {i} as the model sees it: {_count(len(ids), 'token', 's')}", "bold"))
        console.print(Text(_shortened(tokenizer.decode(ids))), soft_wrap=True)
        console.print()


def _print_demonstrations(console: Console, args: FreeEnergyConfig, tokenizer, data: Data) -> None:
    rows = as_completions(data.prompts) if data.demonstrations is None else data.demonstrations
    rows = rows.select(range(min(EXAMPLES, len(rows))))
    for i, (ids, trained) in enumerate(tokenise_demonstrations(rows, tokenizer, args), start=1):
        counts = f"{_count(len(ids), 'token', 's')}, {sum(trained)} trained: in {_OPEN} {_CLOSE}"
        console.print(Text(f"Demonstration {i}: {counts}", "bold"))
        console.print(highlighted(ids, trained, tokenizer), soft_wrap=True)
        console.print()


def highlighted(ids: list[int], trained: list[bool], tokenizer) -> Text:
    """Tokens as text, special ones included; stretches of trained ones are green and in double brackets."""
    text, pairs = Text(), list(zip(ids, trained, strict=True))
    for is_trained, stretch in itertools.groupby(pairs, key=lambda pair: pair[1]):
        piece = _shortened(tokenizer.decode([token for token, _ in stretch]))
        text.append(f"{_OPEN}{piece}{_CLOSE}" if is_trained else piece, "bold green" if is_trained else "")
    return text


def _shortened(text: str) -> str:
    left_out = len(text) - _HEAD - _TAIL
    return text if left_out <= 0 else f"{text[:_HEAD]} ... {left_out:,} characters ... {text[-_TAIL:]}"


def _count(number: int, one: str, ending: str) -> str:
    return f"{number:,} {one}{'' if number == 1 else ending}"
