"""The testbed's task: operations on lists of five distinct digits, with a verifier that knows every answer.

A prompt is one or more operation letters and a list, `R31425`; letters apply from left to right. The *direct*
answer is the final list, `52413`. A prompt of two letters or more also has one *worked* answer, every
intermediate list in order, `RL31425` -> `52413>24135`. Those two strings are correct and nothing else is.

Families are what the pretrained reference makes of them (`fe_posttrain.tasks.pretraining`):

* basin: one known operation, p near 1;
* tail_*: a letter whose hidden rule is a known operation; the reference follows it with probability q and
  copies the list otherwise. Copy and rule differ in the first digit of every list, so one token decides;
* barrier: two known operations, composed. The reference has never seen two letters or a `>`. The pairs are ones
  whose composition is no single operation and whose p(x) stays below 1e-4 on every probe list, over seeds 0 to 4.

depth_1 to depth_5 are of another base (`fe_posttrain.tasks.depths`): so many operations, none undoing the one before
it; in the strings of a depth each letter stands twice at each place.
"""

import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = "1"  # changes when results may change

Split = Literal["train", "probe"]

DIGITS = "0123456789"
LIST_LENGTH = 5
SEPARATOR = ">"
COPY = "C"

PRIMITIVES: dict[str, Callable[[str], str]] = {
    COPY: lambda x: x,
    "R": lambda x: x[::-1],  # reverse
    "S": lambda x: "".join(sorted(x)),  # sort, ascending
    "D": lambda x: "".join(sorted(x, reverse=True)),  # sort, descending
    "L": lambda x: x[1:] + x[:1],  # rotate left
    "T": lambda x: x[-1:] + x[:-1],  # rotate right
    "X": lambda x: x[-1] + x[1:-1] + x[0],  # exchange the ends
    "P": lambda x: x[1] + x[0] + x[3] + x[2] + x[4],  # swap neighbours, pair by pair
}
HIDDEN_RULES = {"U": "R", "V": "L", "W": "T"}  # tail letter -> the primitive that it stands for
LETTERS = "".join(PRIMITIVES) + "".join(HIDDEN_RULES)


@dataclass(frozen=True)
class Family:
    """Prompts that share what the reference makes of them.

    `operations` are strings of letters, dealt to prompts in turn. `q` is the probability that pretraining gives
    to the hidden rule of a tail letter; None where nothing is hidden. A family that is not `pretrained` never
    appears in pretraining. `base` is the model that the family is about, a name of `tasks.bases`.
    """

    name: str
    operations: tuple[str, ...]
    q: float | None = None
    pretrained: bool = True
    base: str = "testbed"


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("basin", tuple(PRIMITIVES)),
        Family("tail_10", ("U",), q=0.10),
        Family("tail_03", ("V",), q=0.03),
        Family("tail_005", ("W",), q=0.005),
        Family("barrier", ("RT", "RX", "XT"), pretrained=False),
        *(
            Family(f"depth_{len(strings[0])}", tuple(strings), pretrained=len(strings[0]) <= 3, base="testbed_depths")
            for strings in (
                "R L T X P".split(),
                "RL RT LP LX TR TP XR XL PX PT".split(),
                "RPR RPX LXT LLL TXT TTR XRP XLX PRL PTP".split(),
                "RTRL RPLX LRTR LLPR TXRP TPLX XLXT XTXL PRTP PXPT".split(),
                "RPRLL RXLXL LRXTR LLRPT TPXPX TTPXT XLLRP XTTRX PRPLP PXTTR".split(),
            )
        ),
    )
}


def measured(named: Iterable[str], base: str = "testbed") -> list[str]:
    """The families that a run is measured on: all of the bases of those that it names, of `base` if it names none."""
    bases = {FAMILIES[name].base for name in named} or {base}
    return [name for name, family in FAMILIES.items() if family.base in bases]


def apply(letter: str, digits: str) -> str:
    """The list after one operation; a tail letter applies its hidden rule. KeyError for an unknown letter."""
    return PRIMITIVES[HIDDEN_RULES.get(letter, letter)](digits)


def compose(letters: str, digits: str) -> tuple[str, ...]:
    """The list after each operation in turn, the last one being the direct answer."""
    return tuple(itertools.accumulate(letters, lambda x, letter: apply(letter, x), initial=digits))[1:]


def answers(prompt: str) -> tuple[str, ...]:
    """Every correct completion: the direct answer first, then the worked one if there is any.

    Raises:
        ValueError: the prompt is not operation letters followed by five distinct digits.

    >>> answers("RL31425")
    ('24135', '52413>24135')
    """
    letters, digits = prompt[:-LIST_LENGTH], prompt[-LIST_LENGTH:]
    well_formed = len(set(digits)) == LIST_LENGTH and set(digits) <= set(DIGITS)
    if not (letters and set(letters) <= set(LETTERS) and well_formed):
        raise ValueError(f"not a digits prompt: {prompt!r}; wanted letters of {LETTERS} and 5 distinct digits")
    lists = compose(letters, digits)
    return lists if len(lists) == 1 else (lists[-1], SEPARATOR.join(lists))


def demonstration(prompt: str, worked: bool = True) -> str:
    """A correct completion: the worked answer where there is one and `worked` asks for it, else the direct one."""
    return answers(prompt)[-1 if worked else 0]


def verify(prompt: str, completion: str) -> bool:
    """Whether `completion` is exactly one of the prompt's answers."""
    return completion in answers(prompt)


def in_turns(prompts: Sequence[str], sample: Callable[[list[str]], list[str]], **kwargs: Any) -> list[str]:
    """A channel for `support_channels`: ask for one operation at a time and feed each answer into the next."""
    operations = [prompt[:-LIST_LENGTH] for prompt in prompts]
    states = [prompt[-LIST_LENGTH:] for prompt in prompts]
    for turn in range(max(map(len, operations))):
        asked = [i for i, letters in enumerate(operations) if turn < len(letters)]
        for i, state in zip(asked, sample([operations[i][turn] + states[i] for i in asked]), strict=True):
            states[i] = state
    return states


def correct(prompts: Sequence[str], completions: Sequence[str], **kwargs: Any) -> list[float]:
    """The verifier as a reward function with TRL's signature: 1.0 for a correct completion, else 0.0."""
    return [float(verify(x, y)) for x, y in zip(prompts, completions, strict=True)]


@cache
def lists(letters: str, split: Split) -> tuple[str, ...]:
    """Every list that `letters` may be asked about, in a fixed order; the two splits share none.

    A fixed eighth of the 30,240 lists is held out as "probe". A composition is asked only where its direct
    answer differs from every single operation's: elsewhere a reference that obeys one letter would be right.
    """
    if split not in ("train", "probe"):
        raise ValueError(f"split is {split!r}; wanted 'train' or 'probe'")
    every = map("".join, itertools.permutations(DIGITS, LIST_LENGTH))
    kept = (x for x in every if (zlib.crc32(x.encode()) % 8 == 0) == (split == "probe"))
    if len(letters) == 1:
        return tuple(kept)
    return tuple(x for x in kept if compose(letters, x)[-1] not in {rule(x) for rule in PRIMITIVES.values()})


def prompts(family: str, count: int, seed: int, split: Split = "train") -> list[str]:
    """`count` different prompts of a family, its operations in turn, the lists drawn at random.

    The same arguments give the same prompts everywhere; no global random state is read or written.

    Raises:
        ValueError: unknown family or split, or more prompts than the split has.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; wanted one of {', '.join(FAMILIES)}")
    operations = FAMILIES[family].operations
    rng = np.random.default_rng([seed, zlib.crc32(family.encode())])
    columns = []
    for i, letters in enumerate(operations):
        pool, wanted = lists(letters, split), len(range(i, count, len(operations)))
        if wanted > len(pool):
            raise ValueError(f"{wanted} prompts {letters}.. asked of {family}, whose {split} split has {len(pool)}")
        columns.append([letters + pool[j] for j in rng.choice(len(pool), size=wanted, replace=False)])
    return [columns[i % len(operations)][i // len(operations)] for i in range(count)]


def _shares(weights: dict[str, float], rows: int) -> dict[str, int]:
    """Whole numbers of rows in proportion to `weights`, by largest remainder; they add up to `rows`."""
    total = sum(weights.values())
    if not total > 0 or min(weights.values()) < 0:
        raise ValueError(f"family weights must be nonnegative with a positive sum, not {weights}")
    exact = {name: rows * weight / total for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: rows - sum(counts.values())]:
        counts[name] += 1
    return counts


def dataset(
    families: dict[str, float] | list[str],
    rows: int,
    seed: int,
    split: Split = "train",
    demonstrations: bool = False,
    worked: bool = True,
) -> "Dataset":
    """A shuffled dataset of `rows` prompts: columns `prompt` and `family`, and `completion` if demonstrated.

    Args:
        families: names with relative weights, or names alone for equal ones.
        demonstrations: add a correct completion, without an end token (SFT preparation appends it).
        worked: demonstrate the worked answer where there is one.

    Raises:
        ValueError: as `prompts`, and for weights that are no mixture.
    """
    from datasets import Dataset  # slow to import, and most callers want only the rules

    weights = families if isinstance(families, dict) else dict.fromkeys(families, 1.0)
    counts = _shares(weights, rows)
    drawn = [(x, name) for name, count in counts.items() for x in prompts(name, count, seed, split)]
    drawn = [drawn[i] for i in np.random.default_rng(seed).permutation(rows)]
    columns = {"prompt": [x for x, _ in drawn], "family": [name for _, name in drawn]}
    if demonstrations:
        columns["completion"] = [demonstration(x, worked) for x, _ in drawn]
    return Dataset.from_dict(columns)
