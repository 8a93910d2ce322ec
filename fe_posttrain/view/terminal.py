"""The terminal: a progress line with F and its terms, sample completions, a final table with start and end."""

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback

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
    """A live bar on a terminal, a plain line every tenth of the run elsewhere; main process only."""

    def __init__(self, console: Console):
        self.console = console
        self._progress: Progress | None = None
        self._task = None
        self._line = ""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if not state.is_world_process_zero:
            return
        if self.console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
            )
            self._progress = Progress(*columns, console=self.console)
            self._task = self._progress.add_task("", total=state.max_steps)
            self._progress.start()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        line = progress_line(logs or {})
        if not (state.is_world_process_zero and line):
            return
        self._line = line
        if self._progress is not None:
            self._progress.update(self._task, description=line)
        elif state.global_step == 1 or state.global_step % max(1, state.max_steps // 10) == 0:
            self.console.print(f"step {state.global_step}/{state.max_steps}  {line}", highlight=False)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def families_table(families: Mapping[str, Mapping[str, float]]) -> Table:
    """Exact success probability of the probe prompts per family, at the start and at the end."""
    table = Table(title="exact p on held-out prompts", title_justify="left")
    for name in ("family", "start", "end"):
        table.add_column(name, justify="left" if name == "family" else "right")
    for family, ends in families.items():
        table.add_row(family, _probability(ends["start"]), _probability(ends["end"]))
    return table


def energies_table(terms: Mapping[str, Mapping[str, float]]) -> Table:
    """First and last logged value of F and its terms."""
    table = Table(title="free energy (first and last tenth of the steps)", title_justify="left")
    for name in ("term", "start", "end"):
        table.add_column(name, justify="left" if name == "term" else "right")
    for term, ends in terms.items():
        table.add_row(term, f"{ends['start']:.4f}", f"{ends['end']:.4f}")
    return table


def samples_table(samples: list[dict[str, str | bool]]) -> Table:
    """Completions of the same prompts before and after, with the verifier's word."""
    table = Table(title="sample completions", title_justify="left")
    for name in ("family", "prompt", "before", "after", "an answer"):
        table.add_column(name)
    for row in samples:
        before, after = (f"{row[end]} {'✓' if row[f'{end}_correct'] else '✗'}" for end in ("before", "after"))
        table.add_row(row["family"], row["prompt"], before, after, row["answer"])
    return table


def _probability(p: float) -> str:
    return f"{p:.4f}" if p >= 1e-3 else f"{p:.1e}"
