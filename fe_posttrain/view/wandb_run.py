"""A wandb run beside the training, which it never disturbs: what fails here is said once and the run goes on.

TRL and transformers call wandb unguarded in the middle of a step. Here it is one callback. A server that cannot be
reached, or no login, turns the run into an offline one in the run folder; `wandb sync` uploads it later.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from transformers import TrainerCallback
from transformers.integrations.integration_utils import rewrite_logs

from fe_posttrain.view.wandb_login import logged_in

PATIENCE = 15  # seconds to wait for a server


class WandbCallback(TrainerCallback):
    """Logs what the trainer logs, by transformers' names (`train/...`, `eval/...`), over `train/global_step`.

    Args:
        folder: the run folder; wandb's files lie in its folder `wandb`.
        config: the resolved recipe, without secrets.
        say: takes one line for the person at the terminal.
    """

    def __init__(self, folder: Path, config: dict[str, Any], say: Callable[[str], None]):
        self.say = say
        self._run = self._start(folder, config)

    def _start(self, folder: Path, config: dict[str, Any]):
        os.environ.setdefault("WANDB_SILENT", "true")  # what there is to say is said here
        mode = os.environ.get("WANDB_MODE") or "online"
        if mode == "online" and not logged_in():
            self.say("wandb: no login on this machine; the run is kept offline (wandb login, then wandb sync)")
            mode = "offline"
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                run = wandb.init(
                    project=os.environ.get("WANDB_PROJECT", "fe_posttrain"),
                    name=config.get("run_name") or folder.name,
                    dir=str(folder),
                    config=config,
                    mode=attempt,
                    settings=wandb.Settings(init_timeout=PATIENCE, console="off", silent=True),
                )
                run.define_metric("train/global_step")
                run.define_metric("*", step_metric="train/global_step", step_sync=True)
                return run
            except Exception as error:  # of any kind: a dashboard is no reason to stop a training
                self.say(f"wandb: {attempt} run not started: {_first_line(error)}; training is not affected")
        return None

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if self._run is None or not state.is_world_process_zero:
            return
        try:
            self._run.log({**rewrite_logs(logs), "train/global_step": state.global_step})
        except Exception as error:
            self._run = None
            with suppress(Exception):  # or its dead service is called once more when Python ends
                wandb.teardown()
            self.say(f"wandb: died at step {state.global_step}: {_first_line(error)}; training goes on without it")

    def __enter__(self) -> "WandbCallback":
        return self

    def __exit__(self, kind, *_) -> None:
        """End the wandb run, as failed if training raised."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=int(kind is not None))
        except Exception as error:
            self.say(f"wandb: not finished: {_first_line(error)}; `wandb sync` uploads what was written")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
