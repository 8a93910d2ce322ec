"""What goes along with a launched run: it measures, warns, records, shows and mirrors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PrinterCallback

from fe_posttrain.recipe.cards import Cards
from fe_posttrain.recipe.data import Data
from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.bases import BASES
from fe_posttrain.tasks.exact_callback import ExactCallback
from fe_posttrain.tracking.callback import SupportCallback
from fe_posttrain.training.alarms import Alarms
from fe_posttrain.training.recording import RolloutSamples, RunRecorder
from fe_posttrain.training.rewards import find_reward
from fe_posttrain.training.run import RunFolder
from fe_posttrain.training.trainer import FreeEnergyTrainer
from fe_posttrain.view.board.mirror import WandbCallback
from fe_posttrain.view.page.callback import ReportCallback
from fe_posttrain.view.terminal.callback import TerminalCallback


@dataclass(frozen=True)
class Watchers:
    """The callbacks of a run.

    exact: the testbed's exact values; support: accessible support; alarms: see `training.alarms`; each None where it
    is off. cards: model cards; reports: report.html.
    """

    trainer: FreeEnergyTrainer
    console: Console
    exact: ExactCallback | None
    support: SupportCallback | None
    alarms: Alarms | None
    cards: Cards
    reports: ReportCallback

    @property
    def alarming(self) -> str | None:
        """The message of an alarm that is to end the run; main process only."""
        return self.alarms.stopping if self.alarms else None

    @contextmanager
    def at_work(self, recipe: Mapping[str, Any]) -> Iterator[None]:
        """Take them to the trainer and, however training ends, let each of them finish."""
        trainer, folder = self.trainer, RunFolder(self.trainer.args.output_dir, resumed=True)
        trainer.remove_callback(PrinterCallback)
        callbacks = [self.exact, self.support, self.alarms, self.cards, RolloutSamples(recipe["support_tag"])]
        with ExitStack() as closing:
            if trainer.accelerator.is_main_process:
                closing.enter_context(self.reports)  # first in and last out: it shows how the run ended
                recorder = closing.enter_context(RunRecorder(folder))
                families = [*recipe["prompts"], *recipe["demonstrations"]]
                progress = TerminalCallback(self.console, {f"p({name})": f"testbed/p/{name}" for name in families})
                closing.callback(progress.close)
                callbacks = [recorder, *callbacks, self.reports, progress]  # what others read is written first
                if "wandb" in recipe["report_to"]:
                    board = WandbCallback(folder.path, recipe, _say(self.console))
                    callbacks.append(closing.enter_context(board))
            for callback in filter(None, callbacks):
                trainer.add_callback(callback)
            yield


def watch(
    trainer: FreeEnergyTrainer,
    settings: RunSettings,
    data: Data,
    base: str | None,
    equation: str,
    console: Console,
) -> Watchers:
    """What the settings ask for.

    Args:
        base: the model's name in BASES; None for other models, whose exact p nobody knows.
        equation: F of the run.
    """
    say = _say(console)
    return Watchers(
        trainer,
        console,
        _exact_callback(settings, trainer, base) if base else None,
        _support_callback(settings, data, say) if settings.support else None,
        Alarms(settings.stop_on_alarm, say=say) if settings.alarms else None,
        Cards(trainer, data.example, equation),
        ReportCallback(Path(trainer.args.output_dir), say),
    )


def _say(console: Console) -> Callable[[str], None]:
    return partial(console.print, highlight=False, soft_wrap=True)


def _exact_callback(settings: RunSettings, trainer: FreeEnergyTrainer, base: str) -> ExactCallback | None:
    """Exact p of every family: what a run does to prompts that it never saw matters too. KL is to the base, and no gap
    is shown relative to another reference or with demonstrations. Of depths p alone: what a base writes that is lost
    in three operations has too many branches for an exact KL. None for the base of formats: no such families."""
    args = trainer.args
    families = digits.measured({**settings.prompts, **settings.demonstrations}, base)
    if not families:
        return None
    branches = any(digits.FAMILIES[name].base == "testbed_depths" for name in families)
    return ExactCallback(
        trainer.processing_class,
        {name: digits.prompts(name, settings.probe_rows, seed=0, split="probe") for name in families},
        None if branches else str(BASES[base]()),
        every=settings.probe_steps,
        weights_at=(lambda step: args.weights_at(step, trainer.state.max_steps)) if args.has_gibbs_optimum else None,
    )


def _support_callback(settings: RunSettings, data: Data, say: Callable[[str], None]) -> SupportCallback:
    testbed = digits.correct if settings.prompts or settings.demonstrations else None
    signal = find_reward(settings.support_signal) if settings.support_signal else None
    return SupportCallback(
        data.probes.to_list(),
        signal or (None if settings.reward_funcs else testbed),
        labels=find_reward(settings.support_labels) if settings.support_labels else None,
        channels={name: find_reward(path) for name, path in settings.support_channels.items()},
        settings=settings,
        say=say,
    )
