"""Declared channels: augmented samplers (more turns, a tool, a hint, search) that may reach what plain ones do not.

A channel is a function `f(prompts, sample, **columns) -> completions`: `sample(prompts)` draws one completion of the
reference for each of any prompts it is given, texts or messages as they are; what `f` returns, one for each of
`prompts`, is judged by the same signal on the original prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fe_posttrain.support.budgets import threshold
from fe_posttrain.support.evidence import e_bh, log_e_above
from fe_posttrain.tracking.drawing import Drawing
from fe_posttrain.tracking.signal import Signal, source_hash

DEMONSTRATION = "demonstration"
_ANSWERS = ("demonstration", "completion")  # columns that may hold a known answer


@dataclass(frozen=True)
class Channel:
    """A named augmented sampler."""

    name: str
    function: Callable

    @property
    def identity(self) -> str:
        return f"{self.name}:{source_hash(self.function)}"

    def correct(self, model, drawing: Drawing, rows: Sequence[dict], draws: int, signal: Signal) -> np.ndarray:
        """Hits (n, draws) of the reference through this channel for each of `rows`.

        Raises:
            ValueError: the channel returns something else than one completion for each prompt.
        """
        repeated = [row for row in rows for _ in range(draws)]
        calls = iter(range(1_000_000))

        def sample(prompts: list) -> list:
            asked = Drawing(
                prompts,
                drawing.decoding,
                drawing.tokenize,
                drawing.decode,
                eos_token_ids=drawing.eos_token_ids,
                pad_token_id=drawing.pad_token_id,
                batch_size=drawing.batch_size,
            )
            return asked.draw(model, range(len(prompts)), "channel", self.name, next(calls)).completions

        columns = {key: [row[key] for row in repeated] for key in rows[0] if key != "prompt"}
        found = self.function([row["prompt"] for row in repeated], sample, **columns)
        if not hasattr(found, "__len__") or len(found) != len(repeated):
            raise ValueError(
                f"support_channels: {self.name} returned {found!r:.60} for {len(repeated)} prompts; it is to return "
                "one completion for each"
            )
        return signal(repeated, list(found)).reshape(len(rows), draws)


def opened_by(
    channels: dict[str, tuple[np.ndarray, np.ndarray]],
    demonstrated: np.ndarray,
    budget: int,
    delta: float,
    alpha: float,
) -> list[str | None]:
    """The first declared channel that reaches each prompt: certified at p*_B by e-BH, or a verified demonstration.

    Args:
        channels: name -> (correct, drawn), (M,) each; 0 drawn where it was not tried.
        demonstrated: (M,) whether a known answer passes the verifier.
    """
    opened: list[str | None] = [None] * len(demonstrated)
    for name, (correct, drawn) in channels.items():
        tried = np.flatnonzero(drawn)
        log_e = log_e_above(correct[tried], drawn[tried], float(threshold(budget, delta)))
        for i in tried[e_bh(np.exp(np.minimum(log_e, 700)), alpha)]:
            opened[i] = opened[i] or name
    return [name or (DEMONSTRATION if shown else None) for name, shown in zip(opened, demonstrated, strict=True)]


def known_answers(rows: Sequence[dict]) -> list:
    """The answer that each row brings with it, in the form of the prompt, text or messages; None without one."""
    found = [next((row[key] for key in _ANSWERS if row.get(key) is not None), None) for row in rows]
    return [
        [{"role": "assistant", "content": answer}]
        if isinstance(answer, str) and not isinstance(row["prompt"], str)
        else answer
        for row, answer in zip(rows, found, strict=True)
    ]


def text_of(answer: str | list) -> str | None:
    """What the model would have to write; None for an answer of several messages."""
    if isinstance(answer, str):
        return answer
    return answer[0]["content"] if len(answer) == 1 else None
