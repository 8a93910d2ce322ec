"""Alarms: watches what a run logs and says when something happens that people fear. See recipes/README.md, "Alarms"."""

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback

from fe_posttrain.training.drift_alarms import EntropyCollapse, KLRunaway, ZeroSignal
from fe_posttrain.training.recording import tell
from fe_posttrain.training.series import Finding, load_state, state_of
from fe_posttrain.training.truth_alarms import GAIN_HIGH, SupportCollapse, VerifierExploitation

logger = logging.getLogger(__name__)

KINDS = {kind.name: kind for kind in (KLRunaway, SupportCollapse, VerifierExploitation, EntropyCollapse, ZeroSignal)}
BLIND_AFTER = 50  # rows: by then an alarm has seen what it needs, or the recipe does not log it


class Alarms(TrainerCallback):
    """Warns of KL that runs away, collapsing support, exploited verifiers, collapsing entropy and absent signal.

    Looks at every logged row and changes nothing about training. An alarm that goes off warns once, tells an event
    `alarm` (alarm, message, value, threshold, since) and counts in `alarms/NAME`, which is logged once the run logs
    what NAME needs; it goes off again only after what it saw had gone. Logged rows are what its windows count in.

    Args:
        stop_on: names of alarms that ask for a stop: `stopping` is then the message, and whoever trains may end the
            run at the end of a generation block (`trainer.stop_requested`), as the launch of a recipe does.
        say: told once which alarms this run gives nothing to look at.

    Raises:
        ValueError: an unknown name in `stop_on`.
    """

    def __init__(self, stop_on: Iterable[str] = (), say: Callable[[str], None] = logger.info):
        self.stop_on = tuple(stop_on)
        if unknown := [name for name in self.stop_on if name not in KINDS]:
            raise ValueError(f"stop_on: {unknown[0]!r}; no alarm is called so; write some of {', '.join(KINDS)}")
        self.stopping: str | None = None
        self.trainer = None
        self._say = say
        self._alarms = {name: kind() for name, kind in KINDS.items()}
        self._fired: dict[str, int] = {}  # of those that have seen what they need
        self._in_episode: list[str] = []
        self._rows = 0
        self._of_probe: dict[str, float] = {}

    def bind(self, trainer) -> None:
        self.trainer = trainer
        if trainer.args.reference_model_name_or_path:
            self._alarms["kl_runaway"].level = math.inf

    def on_event(self, args, state, control, event: str, content: dict[str, Any]) -> None:
        """Keep how sure the probe was of its gain, until its numbers are logged."""
        if event == "probe" and (high := content["report"]["verdict"]["gain"]["high"]) is not None:
            self._of_probe = {GAIN_HIGH: high}

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not (state.is_world_process_zero and logs):
            return
        row = dict(logs)
        if "support/gain" in row:
            row, self._of_probe = row | self._of_probe, {}
        for name, alarm in self._alarms.items():
            finding = alarm.see(state.global_step, row)
            if finding is None:
                continue
            self._fired.setdefault(name, 0)
            if finding.bad and name not in self._in_episode:
                self._in_episode.append(name)
                self._go_off(name, alarm, finding)
            elif finding.over and name in self._in_episode:
                self._in_episode.remove(name)
        self._rows += "loss" in row
        if self._rows == BLIND_AFTER and "loss" in row:
            self._name_the_blind()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero and self._rows < BLIND_AFTER:
            self._name_the_blind()

    def metrics_to_log(self) -> dict[str, float]:
        """How often each alarm that has something to look at has gone off."""
        return {f"alarms/{name}": float(count) for name, count in self._fired.items()}

    def checkpoint_state(self) -> dict[str, Any]:
        """What a resumed run needs; a stop that has been agreed on is over, one that has not is still asked for."""
        stopped = self.trainer is not None and self.trainer.stopped_early
        return {
            "alarms": {name: state_of(alarm) for name, alarm in self._alarms.items()},
            "fired": dict(self._fired),
            "in_episode": list(self._in_episode),
            "rows": self._rows,
            "of_probe": dict(self._of_probe),
            "stopping": None if stopped else self.stopping,
        }

    def load_checkpoint_state(self, kept: dict[str, Any]) -> None:
        """Take back what `checkpoint_state` gave."""
        for name, alarm in self._alarms.items():
            load_state(alarm, kept["alarms"][name])
        self._fired, self._in_episode = dict(kept["fired"]), list(kept["in_episode"])
        self._rows, self._of_probe, self.stopping = kept["rows"], dict(kept["of_probe"]), kept["stopping"]

    def _go_off(self, name: str, alarm, finding: Finding) -> None:
        self._fired[name] += 1
        message = f"{name} since step {finding.since}: {alarm.what}; {alarm.advice}"
        logger.warning("alarm %s", message)
        if self.trainer is not None:
            tell(
                self.trainer,
                "alarm",
                alarm=name,
                message=message,
                value=finding.value,
                threshold=finding.threshold,
                since=finding.since,
            )
        if name in self.stop_on and self.stopping is None:
            self.stopping = message

    def _name_the_blind(self) -> None:
        blind = [f"{name} needs {kind.needs}" for name, kind in KINDS.items() if name not in self._fired]
        if blind:
            self._say(f"alarms that have nothing to look at so far: {'; '.join(blind)}")
