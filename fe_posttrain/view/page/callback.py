"""report.html while a run trains."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fe_posttrain.view.page.report import NAME, write_report


class ReportCallback(TrainerCallback):
    """Writes the page at every probe and, as a context, when training ends, however it does; main process only.

    A page that cannot be made costs one line and nothing else.

    Args:
        folder: the run folder.
        say: takes the line for the person at the terminal.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self.folder, self.say = folder, say

    def on_event(self, args, state, control, event: str, content: Mapping[str, Any]) -> None:
        if event == "probe":
            self.write()

    def __enter__(self) -> "ReportCallback":
        return self

    def __exit__(self, *_) -> None:
        self.write()

    def write(self) -> None:
        """Write the page of what the run folder holds now."""
        try:
            write_report(self.folder)
        except Exception as error:  # of any kind: a page is no reason to stop a training
            why = f"{type(error).__name__}: {error}"
            self.say(f"{NAME}: not written: {why}; scripts/report.py {self.folder} tries again")
