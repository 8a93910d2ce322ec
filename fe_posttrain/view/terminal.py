"""The terminal: a progress line with F and its terms, sample completions, a final table with start and end."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from transformers import TrainerCallback

from fe_posttrain.view import support

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
    return "  ".join(f"{label} {logs[key]:.3f}" for label, key in _SHOWN if logs.get(key) is not None)


class TerminalCallback(TrainerCallback):
    """A live bar on a terminal, a plain line every tenth of the run elsewhere; main process only.

    `watched`: logged keys to show beside F, by label; they keep their last value between the steps that log them.
    """

    def __init__(self, console: Console, watched: Mapping[str, str]):
        self.console = console
        self.watched = watched
        self._seen: dict[str, float] = {}
        self._progress: Progress | None = None
        self._task = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        if self.console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TimeRemainingColumn(),
                TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            )
            self._progress = Progress(*columns, console=self.console, expand=True)
            self._task = self._progress.add_task("", total=state.max_steps, completed=state.global_step)
            self._progress.start()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        logs = logs or {}
        self._seen |= {label: logs[key] for label, key in self.watched.items() if key in logs}
        if not (state.is_world_process_zero and "free_energy/total" in logs):
            return
        watched = [f"{label} {_probability(value)}" for label, value in self._seen.items()]
        line = "  ".join([progress_line(logs), *watched])
        if self._progress is not None:
            self._progress.update(self._task, description=line)
        elif state.global_step == 1 or state.global_step % max(1, state.max_steps // 10) == 0:
            self.console.print(f"step {state.global_step}/{state.max_steps}  {line}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was found; whoever trains calls this also when training fails."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def summarise(console: Console, summary: Mapping, samples: list[Mapping]) -> None:
    """What a person wants to know when a run ends: samples, F and its terms, exact p per family."""
    if samples:
        columns = ("family", "prompt", "before", "after", "right answer")
        rows = [
            (row["family"], row["prompt"], _marked(row, "before"), _marked(row, "after"), row["answer"])
            for row in samples
        ]
        _table(console, "Sample completions of held-out prompts", columns, rows)
    if summary["free_energy"]:
        rows = [(term, f"{v['start']:.4f}", f"{v['end']:.4f}") for term, v in summary["free_energy"].items()]
        _table(console, "Free energy: mean of the first and of the last tenth of steps", ("term", "start", "end"), rows)
    if summary["families"]:
        rows = [(name, _probability(v["start"]), _probability(v["end"])) for name, v in summary["families"].items()]
        _table(console, "Exact probability of a correct completion, held-out prompts", ("family", "start", "end"), rows)
    if off := summary["support"].get("off"):
        console.print(f"support was not tracked to the end: {escape(off)}", highlight=False)
    elif summary["support"]:
        support.show(console, summary["support"], brief=True)


def _table(console: Console, title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in ("start", "end") else "left")
    for row in rows:
        table.add_row(*row)
    console.print(f"[bold]{title}[/bold]")
    console.print(table)


def _marked(row: Mapping, end: str) -> str:
    return f"{escape(row[end])} {'[green]✓[/green]' if row[f'{end}_correct'] else '[red]✗[/red]'}"


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 1e-3 else f"{p:.0e}"
