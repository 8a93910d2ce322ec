"""Build what a recipe says and run it: model, data, trainer, run folder, terminal."""

import logging
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import transformers
from accelerate.utils import broadcast_object_list
from peft import get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.data import Data, load
from fe_posttrain.recipe.finish import account, clear_half_model, samples, save_final, summary
from fe_posttrain.recipe.method import described
from fe_posttrain.recipe.opening import Opened, open_run, require_same_recipe, resolved, versions_differ
from fe_posttrain.recipe.plan import equation, print_plan
from fe_posttrain.recipe.reading import RecipeError, read_recipe
from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.recipe.watching import Watchers, watch
from fe_posttrain.tasks import chain_sum, depths, digits, formats, gsm8k
from fe_posttrain.tasks.bases import BASES
from fe_posttrain.training.checkpoints import WRITE_ERRORS, failed_write, newest_complete
from fe_posttrain.training.config import FreeEnergyConfig, ModelConfig, get_peft_config, get_quantization_config
from fe_posttrain.training.optimizer import check_optimizer
from fe_posttrain.training.rewards import find_reward
from fe_posttrain.training.run import StopSignals, decide_together
from fe_posttrain.training.trainer import FreeEnergyTrainer
from fe_posttrain.view.terminal import ending

TASKS = (digits, depths, formats, chain_sum, gsm8k)  # whose versions a run folder records


@dataclass(frozen=True)
class Options:
    """What the door can be asked beside the recipe.

    Args:
        resume: continue from the newest complete checkpoint of `output_dir`.
        allow_changed_recipe: also where the recipe differs from the checkpoint's.
        dry_run: print the plan and stop.
    """

    resume: bool = False
    allow_changed_recipe: bool = False
    dry_run: bool = False


class Stopped(Exception):
    """A signal ended the run early, after a checkpoint. `signal` is its number."""

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


class StoppedByAlarm(Exception):
    """An alarm that the recipe names in `stop_on_alarm` ended the run early, after a checkpoint."""


class NotSaved(Exception):
    """The run is done and its result could not be written; the message says what is left."""


def launch(path: str, overrides: list[str], options: Options | None = None) -> Path | None:
    """Train what the recipe at `path` says and return the run folder; None after a dry run.

    Raises:
        RecipeError: the recipe cannot be run; the message is for the person who wrote it.
        Stopped: a signal ended the run early.
        StoppedByAlarm: an alarm of `stop_on_alarm` did.
        NotSaved: no room for the final model.
    """
    options = options or Options()
    settings, args, model_config = _resolve(path, overrides)
    if options.resume and "output_dir" not in read_recipe(path, overrides).values:
        raise RecipeError("--resume: which run?; every run has a folder of its own; add --output_dir FOLDER")
    console = Console(quiet=args.process_index != 0)
    _quiet()
    name = model_config.model_name_or_path
    base = name if name in BASES else None
    model_path = _model_path(name)
    with _as_recipe_error():
        check_optimizer(args)
        tokenizer = AutoTokenizer.from_pretrained(
            model_path, revision=model_config.model_revision, trust_remote_code=args.trust_remote_code
        )
        if tokenizer.eos_token_id is None and args.eos_token is None:
            raise RecipeError("eos_token: the tokenizer has none; completions would not end; write eos_token: TOKEN")
        data = load(settings, args, tokenizer, model_path)
        if options.dry_run:
            _name_teacher(args)
            _dry_run(console, settings, args, model_config, model_path, tokenizer, data)
            return None
        opened, recipe = _open(settings, args, model_config, data, options)
        args.report_to = [name for name in args.report_to if name != "wandb"]  # ours is guarded, TRL's is not
        _name_teacher(args)
        transformers.logging.set_verbosity_warning()  # weights that a model lacks would be random: that is told
        trainer = _trainer(settings, args, model_config, model_path, tokenizer, data)
        transformers.logging.set_verbosity_error()
    if opened.checkpoint is None and args.process_index == 0:
        opened.folder.describe(recipe, {task.__name__.split(".")[-1]: task.VERSION for task in TASKS})
    for line in [
        equation(args),
        *described(settings, vars(args)),
        f"run folder: {args.output_dir}",
        *data.report,
        *opened.remarks,
    ]:
        console.print(line, highlight=False, soft_wrap=True)
    trainer.checkpoint_notes = {"recipe": recipe}
    watchers = watch(trainer, settings, data, base, equation(args), console)
    seconds = _train(trainer, path, opened, recipe, watchers, console)
    with _as_not_saved(args.output_dir):
        main, exact = args.process_index == 0, watchers.exact
        rows = samples(exact.prompts, model_path, trainer, tokenizer) if exact and main else []
        spent = account(trainer, seconds)
        found = (str(path), trainer, opened.folder, seconds, exact, watchers.support, spent)
        result = summary(*found) if main else {}
        merge = settings.merge_adapter
        model = save_final(trainer, lambda: watchers.cards.for_model(result, merged=merge), merge=merge)
        if main:
            opened.folder.write_json("samples.json", rows)
            opened.folder.write_json("summary.json", result)
            watchers.reports.write()
            ending.summarise(console, result, rows)
    _push(trainer)
    ending.farewell(console, opened.folder.path, model, steps=trainer.state.global_step, seconds=seconds)
    trainer.end()
    return Path(args.output_dir)


@contextmanager
def _as_recipe_error():
    """Errors of values, as their owner words them, without a traceback for the person who wrote the recipe."""
    try:
        yield
    except (ValueError, TypeError, ImportError, *WRITE_ERRORS) as error:  # the last: what reading weights raises
        raise RecipeError(str(error)) from error


@contextmanager
def _as_not_saved(output_dir: str):
    """Failed writes at the end of a run as one message: what is left, and how to get the rest."""
    try:
        yield
    except WRITE_ERRORS as error:
        found = newest_complete(output_dir).folder
        left = f"the newest checkpoint is {found}; make room and add --resume" if found else "no checkpoint is left"
        raise NotSaved(f"the final model was not saved: {failed_write(error)}; {left}") from error


def _push(trainer: FreeEnergyTrainer) -> None:
    """On request, when everything is saved."""
    if not trainer.args.push_to_hub:
        return
    try:
        trainer.push_to_hub("Model save", revision=trainer.args.hub_revision)
    except OSError as error:  # the Hub's errors are of this kind
        raise NotSaved(
            f"push_to_hub: {str(error).splitlines()[0]}; everything is saved in {trainer.args.output_dir}; push it "
            f"later with: hf upload {trainer.hub_model_id} {trainer.args.output_dir}/model"
        ) from error


def _resolve(path: str, overrides: list[str]) -> tuple[RunSettings, FreeEnergyConfig, ModelConfig]:
    """The three dataclasses of a recipe, with what every run of ours fills in."""
    settings, args, model_config = resolve(path, overrides)
    args.output_dir = broadcast_object_list([args.output_dir])[0]  # one folder, whatever second a process started in
    args.disable_tqdm = True
    for owner, key in ((args, "chat_template_path"), (settings, "reward_model_name_or_path")):
        if (name := getattr(owner, key)) is not None:
            setattr(owner, key, os.path.expanduser(name))
    args.model_init_kwargs = {
        "revision": model_config.model_revision,
        "attn_implementation": model_config.attn_implementation,
        "dtype": model_config.dtype,
        "use_safetensors": True,
        **(args.model_init_kwargs or {}),
    }
    return settings, args, model_config


def _model_path(name: str) -> str:
    return str(BASES[name]()) if name in BASES else os.path.expanduser(name)


def _name_teacher(args: FreeEnergyConfig) -> None:
    """Where the teacher lies on this machine; the run folder keeps the recipe's word for it."""
    if args.reference_model_name_or_path:
        args.reference_model_name_or_path = _model_path(args.reference_model_name_or_path)


def _quiet() -> None:
    """Leave the terminal to the progress line; libraries keep their errors."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("fe_posttrain").setLevel(logging.INFO)
    logging.getLogger("trl.trainer.grpo_trainer").setLevel(logging.ERROR)  # it prints every row without a reward


def _open(
    settings: RunSettings, args: FreeEnergyConfig, model_config: ModelConfig, data: Data, options: Options
) -> tuple[Opened, dict]:
    """The run folder and the resolved recipe; refuses to resume another recipe's run."""
    tokens = {"eos_token": args.eos_token, "pad_token": args.pad_token}  # to_dict takes them for secrets
    files = [*data.files, *_reward_files(settings), *([args.chat_template_path] if args.chat_template_path else [])]
    parts = [vars(settings), vars(model_config), args.to_dict(), tokens]
    recipe = resolved(parts, map(Path, files))

    def decide() -> Opened:
        opened = open_run(args.output_dir, resume=options.resume, processes=args.world_size)
        clear_half_model(opened.folder.path)
        if opened.checkpoint is not None:
            allowed = options.allow_changed_recipe
            opened.remarks.extend(require_same_recipe(opened.checkpoint, recipe, allowed=allowed))
            opened.remarks.extend(versions_differ(opened.folder))
        return opened

    return decide_together(decide), recipe


def _reward_files(settings: RunSettings) -> list[str]:
    words = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in settings.reward_funcs]
    files = [file for file, colon, _ in (word.rpartition(":") for word in words) if file.endswith(".py")]
    return [os.path.expanduser(file) for file in files]


def _trainer(
    settings: RunSettings,
    args: FreeEnergyConfig,
    model_config: ModelConfig,
    model_path: str,
    tokenizer,
    data: Data,
) -> FreeEnergyTrainer:
    rewards = [find_reward(entry) for entry in settings.reward_funcs]
    if name := settings.reward_model_name_or_path:
        judge, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            num_labels=1,
            use_safetensors=True,
            trust_remote_code=args.trust_remote_code,
            output_loading_info=True,
        )
        if missing := sorted(info["missing_keys"]):
            raise RecipeError(
                f"reward_model_name_or_path: {name}: no weights for {', '.join(missing[:3])}; they would be random; "
                "name a model that was trained to classify"
            )
        rewards.append(judge)
    return FreeEnergyTrainer(
        model_path,
        reward_funcs=rewards or None,
        args=args,
        train_dataset=data.prompts,
        demo_dataset=data.demonstrations,
        eval_dataset=data.evaluation,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )


def _train(
    trainer: FreeEnergyTrainer, path: str, opened: Opened, recipe: dict, watchers: Watchers, console: Console
) -> float:
    """Train until the end, or until a signal or an alarm; returns the seconds that it took.

    Raises:
        Stopped: after the checkpoint that a signal asked for.
        StoppedByAlarm: after the checkpoint that an alarm asked for.
    """
    started = time.time()
    say = partial(console.print, highlight=False, soft_wrap=True)
    with watchers.at_work(recipe), StopSignals(say) as signals:
        trainer.stop_requested = lambda: signals.requested() or watchers.alarming is not None
        trainer.train(resume_from_checkpoint=str(opened.checkpoint) if opened.checkpoint else None)
    if trainer.stopped_early:
        state = trainer.state
        ended = (
            f"stopped after step {state.global_step} of {state.max_steps}; to continue: "
            f"--config {path} --output_dir {trainer.args.output_dir} --resume"
        )
        if alarm := broadcast_object_list([watchers.alarming])[0]:  # the main process hears them
            raise StoppedByAlarm(f"{alarm}\n{ended}")
        raise Stopped(signals.received or signal.SIGTERM, ended)  # another process may have been asked
    return time.time() - started


def _dry_run(
    console: Console,
    settings: RunSettings,
    args: FreeEnergyConfig,
    model_config: ModelConfig,
    model_path: str,
    tokenizer,
    data: Data,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path, **args.model_init_kwargs)
    if (adapter := get_peft_config(model_config)) is not None:
        model = get_peft_model(model, adapter)
    print_plan(console, settings, args, model, tokenizer, data)
