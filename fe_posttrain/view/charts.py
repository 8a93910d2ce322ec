"""Tables of an event for wandb."""

from collections.abc import Mapping, Sequence
from typing import Any

SAMPLES = "samples"
COLUMNS = ("step", "event", "model", "prompt", "family", "completion", "correct", "energy", "log_ratio", "regime")


def board_objects(event: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What to log for an event: its samples as a table."""
    if not samples:
        return {}
    import wandb

    rows = [[event.get(name) if name in ("step", "event") else row.get(name) for name in COLUMNS] for row in samples]
    return {SAMPLES: wandb.Table(columns=list(COLUMNS), data=rows)}
