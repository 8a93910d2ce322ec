"""What a run spent: tokens generated, completions judged, tokens trained on. Runs are compared at equal spending."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from accelerate.utils import gather_object


@dataclass
class Account:
    """Counts of one process since the start of its run; `total` adds the processes up.

    Args:
        generated_tokens: completion tokens sampled for training, drawn banks included; not those of probes and
            evaluation, nor the tracker's bank of the reference.
        verifier_calls: completions that the reward functions were asked about for training.
        gradient_tokens: tokens whose log-prob had a coefficient other than zero in an update: completions with an
            advantage, and demonstrations with a weight.
        forward_tokens: completion tokens scored without gradient, under policy or reference.
        demonstrations: sequences demonstrated, each as often as it was read with a weight.
    """

    generated_tokens: int = 0
    verifier_calls: int = 0
    gradient_tokens: int = 0
    forward_tokens: int = 0
    demonstrations: int = 0

    def add(self, **counts: float) -> None:
        """Raise the counts of these names."""
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + int(count))

    def total(self) -> dict[str, int]:
        """Sums over all processes, which all call this."""
        found = gather_object([asdict(self)])
        return {field.name: sum(counts[field.name] for counts in found) for field in fields(self)}

    def state(self) -> dict[str, Any]:
        return asdict(self)

    def load_state(self, kept: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, count in kept.items():
            setattr(self, name, count)
