"""The terminal while a run trains: a panel that stays at its foot, or plain lines where nobody watches."""

import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from rich.console import Console
from rich.live import Live
from transformers import TrainerCallback

from fe_posttrain.view.terminal.panel import Block, Panel, blocks
from fe_posttrain.view.terminal.progress import Progress
from fe_posttrain.view.text import number, probability

REFRESH = 0.5  # seconds between two drawings, at least; the clock alone moves once a second
REPORT = "report.html"

# (label, logged key): the order in which a person asks.
_SHOWN = (
    ("F", "free_energy/total"),
    ("gap", "free_energy/gap"),
    ("reward term", "free_energy/reward"),
    ("demo term", "free_energy/demonstration"),
    ("KL", "free_energy/kl"),
)


def progress_line(logs: Mapping[str, float]) -> str:
    """F and its terms as one line, leaving out what a run does not have."""
    return "  ".join(f"{label} {number(logs[key])}" for label, key in _SHOWN if logs.get(key) is not None)


def watches(console: Console) -> bool:
    """Whether somebody looks at a terminal that can move its cursor: no pipe, no TERM=dumb, no CI."""
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return console.is_interactive and not console.is_dumb_terminal and not in_ci


class TerminalCallback(TrainerCallback):
    """A live panel on a terminal, plain lines every tenth of the run elsewhere; main process only.

    While the panel stands, whatever is printed, logged or warned appears above it.

    Args:
        watched: logged keys of probabilities to show beside F, by label; they keep their last value between the
            steps that log them.
    """

    def __init__(self, console: Console, watched: Mapping[str, str]):
        self.console = console
        self.watched = watched
        self._seen: Progress | None = None
        self._panel: Panel | None = None
        self._live: Live | None = None
        self._handlers: list[tuple[logging.StreamHandler, object]] = []
        self._drawn = 0.0
        self._stale = True  # the panel does not show what was seen last
        self._seeing = Lock()  # the clock draws from a thread of its own
        self._report: Path | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        self._seen = Progress(state.global_step, state.max_steps, time.monotonic())
        self._report = Path(args.output_dir) / REPORT

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if self._seen is not None:
            self._seen.begin_step(time.monotonic())

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self._seen is not None:
            self._seen.step = state.global_step  # drawn with its row, or when the clock moves
            if self._panel is None and watches(self.console):
                self._start(str(args.output_dir))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self._seen is None or not logs:
            return
        with self._seeing:
            self._seen.log(state.global_step, logs)
        self._draw()
        step, steps = state.global_step, state.max_steps
        if not watches(self.console) and "free_energy/total" in logs and (step == 1 or step % max(1, steps // 10) == 0):
            watched = [f"{label} {probability(p)}" for label, p in self._probabilities().items()]
            self._say(f"step {step}/{steps}  {'  '.join([progress_line(logs), *watched])}")

    def on_event(self, args, state, control, event: str, content: Mapping) -> None:
        """Into the panel; whoever probes, saves, warns of an alarm or leaves out rows has a line of its own."""
        if self._seen is None:
            return
        with self._seeing:
            self._seen.step = state.global_step
            self._seen.tell(state.global_step, event, content)
        self._draw(at_once=event != "rollouts")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """A run that ends as it should leaves no panel: its summary follows."""
        if self._live is not None:
            self._live.transient = state.global_step >= state.max_steps

    def close(self) -> None:
        """Leave the terminal as it was found; whoever trains calls this also when training fails."""
        live, self._live = self._live, None
        if live is not None:
            try:
                live.stop()
            finally:
                for handler, stream in self._handlers:
                    handler.setStream(stream)
                self._handlers = []

    def _start(self, title: str) -> None:
        """Put the panel up: after the first step, when native libraries have said what they say to the terminal."""
        self._panel = Panel(self._seen, title)
        self._live = Live(
            console=self.console,
            get_renderable=self._current,
            refresh_per_second=1,
            vertical_overflow="crop",
            redirect_stderr=sys.stderr.isatty(),  # a file that errors are sent to shall have them
        )
        self._live.start(refresh=True)
        self._redirect_handlers()

    def _draw(self, at_once: bool = False) -> None:
        if self._live is None:
            return
        self._stale, now = True, time.monotonic()  # what is not drawn now is when the clock moves
        if at_once or now - self._drawn >= REFRESH:
            self._drawn = now
            self._live.refresh()

    def _current(self) -> Panel:
        """The panel, made anew when something was seen since it was drawn: most rows of a fast run never are."""
        if self._stale:
            self._stale = False
            with self._seeing:
                self._panel.body = self._blocks()
        return self._panel

    def _blocks(self) -> tuple[Block, ...]:
        return blocks(self._seen, self._probabilities(), str(self._report) if self._report.is_file() else "")

    def _probabilities(self) -> dict[str, float]:
        return {label: self._seen.last[key] for label, key in self.watched.items() if key in self._seen.last}

    def _redirect_handlers(self) -> None:
        """Loggers that were given the terminal before the panel stood write above it, too."""
        proxies = {}
        for proxy, real in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
            original = getattr(proxy, "rich_proxied_file", None)
            if original is not None:
                proxies |= {id(original): proxy, id(real): proxy}
        loggers = [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]
        for handler in {handler for logger in loggers for handler in logger.handlers}:
            if isinstance(handler, logging.StreamHandler) and id(handler.stream) in proxies:
                self._handlers.append((handler, handler.stream))
                handler.setStream(proxies[id(handler.stream)])

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
