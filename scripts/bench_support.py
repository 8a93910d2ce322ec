"""What tracking costs a step: scripts/bench.py --support.

One run, in blocks of 16 steps that take turns: without tracking, with ledger and riding metrics, with displacement
beside them. Two readings: the ratio of mean step times of the blocks, and, more closely, the time inside the event
and its log row over the time of the step.
"""

import statistics
import tempfile
from pathlib import Path

import bench_arms
import numpy as np
from transformers import AutoModelForCausalLM, TrainerCallback

from fe_posttrain import SupportCallback, SupportSettings
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining import reference_model

BLOCK = 16  # steps of one turn: two windows
TURNS = ("off", "ledger", "displacement")


class _Turns(TrainerCallback):
    """Takes tracking out of the trainer and puts it back, and keeps the time of every step and event."""

    def __init__(self, trainer, support: SupportCallback):
        self.trainer, self.support = trainer, support
        self.steps: dict[str, list[float]] = {name: [] for name in TURNS}
        self.inside: dict[str, list[float]] = {name: [] for name in TURNS}
        self.displacements = None
        self._event, self._started = 0.0, 0.0
        support.metrics_to_log = self._timed(support.metrics_to_log)
        events = trainer._events
        events.made, events.scored = self._timed(events.made), self._timed(events.scored)

    def _timed(self, function):
        def timed(*args):
            started = bench_arms._clock()
            result = function(*args)
            self._event += bench_arms._clock() - started
            return result

        return timed

    def turn(self, step: int) -> str:
        return TURNS[step // BLOCK % len(TURNS)]

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.displacements = self.support.displacements

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        name, callbacks = self.turn(state.global_step), self.trainer.callback_handler.callbacks
        if (self.support in callbacks) == (name == "off"):
            callbacks.remove(self.support) if name == "off" else callbacks.append(self.support)
        self.support.displacements = self.displacements if name == "displacement" else None
        if state.global_step % BLOCK == 0 and self.displacements is not None:
            self.displacements.kept = None  # a window does not reach over turns

    def on_step_end(self, args, state, control, **kwargs) -> None:
        now, name = bench_arms._clock(), self.turn(state.global_step - 1)
        if state.global_step > BLOCK * len(TURNS):  # the first turns warm up
            self.steps[name].append(now - self._started)
            self.inside[name].append(self._event)
        self._started, self._event = now, 0.0


def measure(rounds: int) -> dict:
    """Shares of a step's time; `rounds` turns of each kind."""
    folder, steps = reference_model(), (rounds + 1) * len(TURNS) * BLOCK
    model = AutoModelForCausalLM.from_pretrained(folder)
    run = bench_arms.trainer("ours_rl", folder, model, bench_arms.data(), batch=bench_arms.TIME_BATCH, steps=steps)
    rows = [{"prompt": prompt} for prompt in digits.prompts("tail_10", 4, 0, "probe")]
    settings = SupportSettings(support=True, support_draws=4, support_reference_draws=4)
    with tempfile.TemporaryDirectory() as cache:
        support = SupportCallback(rows, digits.correct, settings=settings, cache=Path(cache))
        run.add_callback(support)
        turns = _Turns(run, support)
        run.add_callback(turns)
        run.train()
    if support.off is not None:
        raise RuntimeError(f"tracking was switched off: {support.summary()['off']}")
    means = {name: statistics.fmean(times) for name, times in turns.steps.items()}
    found = {"step_ms_without": 1e3 * means["off"]}
    for name in TURNS[1:]:
        inside = np.array(turns.inside[name]).reshape(-1, BLOCK).mean(1)
        share = inside.mean() / (means["off"] + inside.mean())
        found[name] = {
            "share_inside_event": float(share),
            "share_se": float(inside.std(ddof=1) / np.sqrt(len(inside)) / means["off"]),
            "ratio_of_steps": means[name] / means["off"],
            "ratio_se": float(_ratio_error(turns.steps[name], turns.steps["off"])),
        }
    found["bytes_per_prompt"] = support.summary()["ledger"]["bytes_per_prompt"]
    found["settings"] = {"steps": steps, "block": BLOCK, "batch": bench_arms.TIME_BATCH, **bench_arms.ROLLOUTS}
    return found


def _ratio_error(times: list[float], base: list[float]) -> float:
    """Standard error of the ratio of two means."""
    errors = [np.std(x, ddof=1) / np.sqrt(len(x)) / np.mean(x) for x in (times, base)]
    return float(np.mean(times) / np.mean(base) * np.hypot(*errors))
