"""Answers in several formats: the testbed's operations, where a verifier accepts each way of writing the result.

A prompt is one operation letter and a list, `R31425`; its result `52413` may be written in three formats, told
apart by their first symbol: *plain* `52413`, *marked* `>52413`, *echoed* `R52413`. Those three strings are correct
and nothing else is.

The base (`fe_posttrain.tasks.formats_base`) writes each format with a share and gets it right with an accuracy of
its own; where it is wrong it copies the list. Result and copy differ in the first digit of every list. Families
differ in which format the base is good at:

* common_best: the format that it writes most often;
* rare_best: the one that it writes least often;
* alike: all three equally, so that nothing in the reward tells them apart.

The world of Zhao et al. 2025, "Echo Chamber", arXiv 2504.07912 (a base pretrained on several datasets, whose
formats differ in share and in accuracy), made small.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fe_posttrain.tasks import digits

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = "1"  # changes when results may change

FORMATS: dict[str, Callable[[str, str], str]] = {  # how a prompt's answer is written, given its list
    "plain": lambda prompt, answer: answer,
    "marked": lambda prompt, answer: digits.SEPARATOR + answer,
    "echoed": lambda prompt, answer: prompt[0] + answer,
}
OPENINGS = {"plain": digits.DIGITS, "marked": digits.SEPARATOR, "echoed": digits.LETTERS}  # first symbols
SHARES = {"plain": 0.5, "marked": 0.3, "echoed": 0.2}  # of the formats in pretraining


@dataclass(frozen=True)
class Family:
    """Prompts of some operations, and the accuracy that pretraining gives to each format there."""

    name: str
    operations: str
    accuracy: dict[str, float]


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("common_best", "R", {"plain": 0.8, "marked": 0.2, "echoed": 0.1}),
        Family("rare_best", "T", {"plain": 0.1, "marked": 0.2, "echoed": 0.8}),
        Family("rivals", "X", {"plain": 0.5, "marked": 0.1, "echoed": 0.9}),
        Family("alike", "L", dict.fromkeys(FORMATS, 0.3)),
    )
}
ROWS = {"train": 2048, "test": 256}  # of a family, as a recipe's dataset


def answers(prompt: str) -> dict[str, str]:
    """Format -> the prompt's correct completion in it.

    Raises:
        ValueError: the prompt is not one operation letter followed by five distinct digits.

    >>> answers("R31425")
    {'plain': '52413', 'marked': '>52413', 'echoed': 'R52413'}
    """
    if len(prompt) != 1 + digits.LIST_LENGTH:
        raise ValueError(f"not a prompt of formats: {prompt!r}; wanted one letter and {digits.LIST_LENGTH} digits")
    (result,) = digits.answers(prompt)
    return {name: write(prompt, result) for name, write in FORMATS.items()}


def correct(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Reward with TRL's signature: 1.0 for the result in any format, else 0.0."""
    return [float(y in answers(x).values()) for x, y in zip(prompts, completions, strict=True)]


def label(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[str | None]:
    """For `support_labels`: the format of each completion, right or wrong, by its first symbol; None for no format."""
    return [next((name for name, symbols in OPENINGS.items() if y and y[0] in symbols), None) for y in completions]


def prompts(family: str, count: int, seed: int, split: digits.Split = "train") -> list[str]:
    """`count` different lists drawn at random, with the family's operations in turn; splits as in `digits.lists`.

    The same arguments give the same prompts everywhere; no global random state is read or written.

    Raises:
        ValueError: unknown family or split, or more prompts than the split has lists.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; wanted one of {', '.join(FAMILIES)}")
    operations, pool = FAMILIES[family].operations, digits.lists(digits.COPY, split)
    if count > len(pool):
        raise ValueError(f"{count} prompts asked of {family}, whose {split} split has {len(pool)}")
    drawn = np.random.default_rng([seed, zlib.crc32(family.encode())]).choice(len(pool), size=count, replace=False)
    return [operations[i % len(operations)] + pool[j] for i, j in enumerate(drawn)]


def load(split: str) -> "Dataset":
    """Rows for a recipe: columns `prompt` and `family`, shuffled.

    Args:
        split: `train` or `test` (held-out lists) for all families, `train_rare_best` and its like for one.

    Raises:
        ValueError: there is no such split.
    """
    from datasets import Dataset  # slow to import, and most callers want only the rules

    part, mark, chosen = split.partition("_")
    if part not in ROWS or (mark and chosen not in FAMILIES):
        raise ValueError(
            f"formats: no split {split}; it has train and test, each also for one family of "
            f"{', '.join(FAMILIES)}; write train, or train_{next(iter(FAMILIES))}"
        )
    families, held_out = [chosen] if chosen else list(FAMILIES), "probe" if part == "test" else "train"
    rows = [{"prompt": x, "family": f} for f in families for x in prompts(f, ROWS[part], 0, held_out)]
    return Dataset.from_list([rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
