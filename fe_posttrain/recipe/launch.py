"""Build what a recipe says and run it: model, data, trainer, run folder, terminal."""

import json
import logging
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.recipe.settings import TESTBED, RunSettings
from fe_posttrain.sequences import Decoding, sample
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.exact import exact_probabilities
from fe_posttrain.tasks.exact_callback import ExactCallback
from fe_posttrain.tasks.pretraining import reference_model
from fe_posttrain.training.config import FreeEnergyConfig, ModelConfig, get_peft_config
from fe_posttrain.training.demonstrations import PAIRED
from fe_posttrain.training.rewards import find_reward
from fe_posttrain.training.rollouts import KNOWN_P
from fe_posttrain.training.run import MetricsCallback, RunFolder
from fe_posttrain.training.trainer import FreeEnergyTrainer
from fe_posttrain.view import terminal

SAMPLES_PER_FAMILY = 2


def launch(path: str, overrides: list[str]) -> Path:
    """Train what the recipe at `path` says and return the run folder.

    Raises:
        RecipeError: the recipe cannot be run; the message is for the person who wrote it.
    """
    settings, args, model_config, rewards = _resolve(path, overrides)
    main = args.process_index == 0
    console = Console(quiet=not main)
    _quiet()
    folder = None
    if main:
        with _as_recipe_error():
            folder = RunFolder(args.output_dir)
        folder.describe({**vars(settings), **vars(model_config), **args.to_dict()}, {"digits": digits.VERSION})
        console.print(f"[bold]{_equation(args)}[/bold]\nrun folder: {folder.path}", highlight=False)

    testbed = model_config.model_name_or_path == TESTBED
    model_path = str(reference_model()) if testbed else model_config.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=args.trust_remote_code)
    prompts, demos = _data(settings, args, model_path, tokenizer)
    with _as_recipe_error():
        trainer = FreeEnergyTrainer(
            model_path,
            reward_funcs=rewards,
            args=args,
            train_dataset=prompts,
            demo_dataset=demos,
            processing_class=tokenizer,
            peft_config=get_peft_config(model_config),
        )
    trainer.remove_callback(PrinterCallback)
    exact = _exact_callback(settings, trainer, model_path) if testbed else None
    if exact:
        trainer.add_callback(exact)
    trained = dict.fromkeys([*settings.prompts, *settings.demonstrations]) if exact else {}
    progress = terminal.TerminalCallback(console, {f"p({name})": f"testbed/p/{name}" for name in trained})
    trainer.add_callback(progress)
    if main:
        trainer.add_callback(MetricsCallback(folder))

    started = time.time()
    try:
        trainer.train()
    finally:
        progress.close()
    seconds = time.time() - started
    trainer.save_model(str(Path(args.output_dir) / "model"))
    if main:
        summary = {"recipe": str(path), "steps": trainer.state.global_step, "train_seconds": round(seconds, 2)}
        summary["families"] = exact.summary() if exact else {}
        summary["exact"] = {"start": exact.history[0], "end": exact.history[-1]} if exact else {}
        summary["free_energy"] = _first_and_last(folder.path / "metrics.jsonl")
        samples = _samples(exact.prompts, model_path, trainer, tokenizer) if exact else []
        folder.write_json("samples.json", samples)
        folder.write_json("summary.json", summary)
        console.print()
        terminal.summarise(console, summary, samples)
        console.print(f"{summary['steps']} steps in {seconds:.1f} s; everything is in {folder.path}", highlight=False)
    trainer.end()
    return Path(args.output_dir)


@contextmanager
def _as_recipe_error():
    """Errors of values, as their owner words them, without a traceback for the person who wrote the recipe."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise RecipeError(str(error)) from error


def _resolve(path: str, overrides: list[str]) -> tuple[RunSettings, FreeEnergyConfig, ModelConfig, list | None]:
    """The three dataclasses of a recipe and its reward functions, checked against each other."""
    settings, args, model_config = resolve(path, overrides)
    rewards = [find_reward(name) for name in settings.reward_funcs] or None
    args.output_dir = broadcast_object_list([args.output_dir])[0]  # one folder, whatever second a process started in
    args.disable_tqdm = True
    args.model_init_kwargs = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        **(args.model_init_kwargs or {}),
    }
    return settings, args, model_config, rewards


def _quiet() -> None:
    """Leave the terminal to the progress line; libraries keep their errors."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("fe_posttrain").setLevel(logging.INFO)


def _equation(args: FreeEnergyConfig) -> str:
    """F of this run, as it was asked for."""
    parts = []
    if args.reward_energy_weight:
        parts.append(f"{args.reward_energy_weight:g} E[-reward]")
    if args.demonstration_energy_weight:
        parts.append(f"{args.demonstration_energy_weight:g} E_demonstrations[-log pi]")
    if args.uses_reference:
        beta = f"{args.beta:g}" if args.beta_final is None else f"({args.beta:g} -> {args.beta_final:g})"
        parts.append(f"{beta} KL(pi || reference)")
    return "F(pi) = " + " + ".join(parts)


def _data(settings: RunSettings, args: FreeEnergyConfig, model_path: str, tokenizer) -> tuple[Dataset | None, ...]:
    """Rollout prompts and demonstrations of the testbed."""
    prompts = demos = None
    if args.generates:
        prompts = digits.dataset(settings.prompts, settings.prompt_rows, args.seed)
        model = AutoModelForCausalLM.from_pretrained(model_path).eval()
        if settings.reward_funcs == ["digits"]:  # the verifier that p is exact for
            prompts = prompts.add_column(KNOWN_P, exact_probabilities(model, tokenizer, prompts["prompt"]).tolist())
        if settings.demonstrations_paired:
            worked = [digits.demonstration(x, settings.demonstration_worked) for x in prompts["prompt"]]
            prompts = prompts.add_column(PAIRED, worked)
    if settings.demonstrations and not settings.demonstrations_paired:
        demos = digits.dataset(
            settings.demonstrations,
            settings.demonstration_rows,
            args.seed + 1,
            demonstrations=True,
            worked=settings.demonstration_worked,
        )
    return prompts, demos


def _exact_callback(settings: RunSettings, trainer: FreeEnergyTrainer, model_path: str) -> ExactCallback:
    """Exact p of every family: what a run does to prompts that it never saw matters too. With demonstrations the
    optimum is not Gibbs, and no gap is shown."""
    args = trainer.args
    shows_gap = args.generates and not args.demonstration_energy_weight
    return ExactCallback(
        trainer.processing_class,
        {name: digits.prompts(name, settings.probe_rows, seed=0, split="probe") for name in digits.FAMILIES},
        model_path,
        every=settings.probe_steps,
        reward_energy_weight=args.reward_energy_weight,
        beta_at=(lambda step: args.beta_at(step, trainer.state.max_steps)) if shows_gap else None,
    )


def _first_and_last(metrics: Path) -> dict[str, dict[str, float]]:
    """Mean of each free-energy term over the first and the last tenth of the logged steps."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "free_energy/total" in row]
    count = max(1, len(rows) // 10)
    found = {}
    for key in ("total", "reward", "demonstration", "kl", "gap"):
        values = [row.get(f"free_energy/{key}") for row in rows]
        if rows and None not in values:
            found[key] = {"start": sum(values[:count]) / count, "end": sum(values[-count:]) / count}
    return found


def _samples(probes: dict, model_path: str, trainer, tokenizer) -> list[dict[str, Any]]:
    """One completion of a few probe prompts by the reference and by the policy."""
    asked = [(family, x) for family, prompts in probes.items() for x in prompts[:SAMPLES_PER_FAMILY]]
    prompt_ids = tokenizer([x for _, x in asked])["input_ids"]
    policy = trainer.accelerator.unwrap_model(trainer.model)
    reference = AutoModelForCausalLM.from_pretrained(model_path).to(policy.device)
    drawn = {}
    with torch.random.fork_rng(devices=[]) if policy.device.type == "cpu" else nullcontext():
        torch.manual_seed(0)
        for end, model in (("before", reference), ("after", policy)):
            ids, _ = sample(
                model.eval(),
                prompt_ids,
                Decoding(trainer.args.max_completion_length),
                eos_token_ids=[tokenizer.eos_token_id],
                pad_token_id=tokenizer.pad_token_id,
            )
            drawn[end] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    rows = []
    for i, (family, x) in enumerate(asked):
        row = {"family": family, "prompt": x, "answer": digits.answers(x)[-1]}
        for end in ("before", "after"):
            row |= {end: drawn[end][i], f"{end}_correct": digits.verify(x, drawn[end][i])}
        rows.append(row)
    return rows
