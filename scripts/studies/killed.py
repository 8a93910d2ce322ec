"""Run scripts/train.py and have it killed (SIGKILL) in a chosen phase: `killed.py PHASE CALL DELAY_MS train words...`

A timer is started when the phase's function is entered for the CALL-th time, and kills the process DELAY_MS later;
with a delay of 0 the function never gets to its first line. `none` kills nothing. `second-rank` raises on rank 1.

Where COUNT_ROWS names a file, the step of every row is appended to it when the trainer hands the row over, before
anything is written: what a killed run should have.
"""

import importlib
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

PHASES = {  # phase: (module, owner in it or "", function)
    "generation": ("fe_posttrain.training.rollouts", "", "sample"),
    "backward": ("accelerate", "Accelerator", "backward"),
    "optimizer": ("accelerate.optimizer", "AcceleratedOptimizer", "step"),
    "save": ("fe_posttrain.training.resuming", "Resumes", "_save_checkpoint"),
    "manifest": ("fe_posttrain.training.checkpoints", "", "write_manifest"),
    "rename": ("fe_posttrain.training.checkpoints", "", "publish"),
    "rotate": ("fe_posttrain.training.checkpoints", "", "rotate"),
    "metrics": ("fe_posttrain.training.recording", "_Rows", "write"),
    "batch": ("transformers", "Trainer", "get_batch_samples"),
}


def arm(phase: str, call: int, delay: float) -> None:
    """Wrap the phase's function so that its `call`-th call starts the timer."""
    module, owner, name = PHASES[phase]
    where = importlib.import_module(module)
    where = getattr(where, owner) if owner else where
    original, calls = getattr(where, name), [0]

    def wrapped(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            if delay == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(*args, **kwargs)

    setattr(where, name, wrapped)


def count_rows(path: str) -> None:
    """Append the step of each logged row to a file, before the recorder is asked to write it."""
    from fe_posttrain.training.recording import RunRecorder

    original = RunRecorder.on_log

    def counted(self, args, state, control, **kwargs):
        with open(path, "a") as file:
            file.write(f"{state.global_step}\n")
        return original(self, args, state, control, **kwargs)

    RunRecorder.on_log = counted


def main() -> None:
    phase, call, delay, *words = sys.argv[1:]
    root = Path(__file__).resolve().parents[2]
    if phase == "second-rank":
        if os.environ.get("RANK") == "1":
            from fe_posttrain.training.rollouts import ShapesRollouts

            def fails(*_):
                raise MemoryError("rank 1 of the study fails")

            ShapesRollouts._compute_loss = fails
    elif phase != "none":
        arm(phase, int(call), float(delay) / 1000)
    if path := os.environ.get("COUNT_ROWS"):
        count_rows(path)
    sys.argv = [str(root / "scripts" / "train.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
