"""Free-energy post-training: one objective for SFT and RL, with an optimum that is written down.

The names below are imported on first use, so that `import fe_posttrain` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_WHERE = {
    "Alarms": "fe_posttrain.training.alarms",
    "FreeEnergyConfig": "fe_posttrain.training.config",
    "FreeEnergyTrainer": "fe_posttrain.training.trainer",
    "SupportCallback": "fe_posttrain.tracking.callback",
    "SupportSettings": "fe_posttrain.tracking.settings",
}

__all__ = ["Alarms", "FreeEnergyConfig", "FreeEnergyTrainer", "SupportCallback", "SupportSettings"]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
