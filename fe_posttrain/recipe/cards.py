"""The model cards of a launched run: one in every checkpoint, one beside the final model, one that is pushed."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from transformers import TrainerCallback

from fe_posttrain.training.announcements import what_changes_the_optimum
from fe_posttrain.training.checkpoints import PREFIX
from fe_posttrain.training.trainer import FreeEnergyTrainer
from fe_posttrain.view.card.model_card import Subject, model_card
from fe_posttrain.view.card.snippet import load_snippet
from fe_posttrain.view.reading import RunData

logger = logging.getLogger(__name__)

README = "README.md"


class Cards(TrainerCallback):
    """Writes cards from the run folder as it is at the moment; main process only.

    Args:
        trainer: whose model they describe; it is told to push these cards instead of TRL's.
        prompt: an example of a prompt of the run, plain or conversational.
        equation: F of the run.
    """

    def __init__(self, trainer: FreeEnergyTrainer, prompt: str | list[dict[str, str]], equation: str):
        self.trainer, self.prompt, self.equation = trainer, prompt, equation
        self.adapted = is_peft_model(trainer.accelerator.unwrap_model(trainer.model))
        self.finished = False
        trainer.model_card = self.for_hub

    def save_checkpoint_files(self, folder: Path) -> None:
        """A card in a checkpoint, before its files are hashed."""
        if self.trainer.accelerator.is_main_process:
            step = int(folder.name.removeprefix(PREFIX))
            (folder / README).write_text(self._card(folder.name, self.adapted, step=step))

    def for_model(self, summary: Mapping[str, Any], *, merged: bool) -> str:
        """The card of the final model, in `model/` of the run folder."""
        self.finished = True
        path = str(Path(self.trainer.args.output_dir) / "model")
        return self._card(path, self.adapted and not merged, summary=summary)

    def for_hub(self) -> str:
        """The card of what is pushed: the run folder, whose weights are those of the last save."""
        summary = RunData(Path(self.trainer.args.output_dir)).summary if self.finished else None
        step = None if self.finished else self.trainer.state.global_step
        return self._card(self.trainer.hub_model_id, self.adapted, summary=summary, step=step, report="report.html")

    def _card(self, path: str, adapter: bool, *, summary: Mapping[str, Any] | None = None, **about: Any) -> str:
        args = self.trainer.args
        tokens = args.max_completion_length if args.generates else 64
        snippet = load_snippet(path, self.prompt, adapter=adapter, tokens=tokens)
        about |= {"biases": what_changes_the_optimum(args), "adapter": adapter, "summary": summary or {}}
        try:
            return model_card(RunData(Path(args.output_dir)), Subject(self.equation, snippet, **about))
        except Exception as error:  # of any kind: the weights are worth more than their card
            logger.warning("the model card of %s has no numbers: %s: %s", path, type(error).__name__, error)
            return f"    {self.equation}\n\n```python\n{snippet}```\n"
