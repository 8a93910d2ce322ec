"""Sums and differences of two or three digits: `chain_sum` of the reasoning-gym package, its rows and its scorer.

A prompt is the gym's expression without spaces, `7+4-9=`, and the answer is its value, `2`. Needs the package
(`pip install -e '.[tasks]'`) when rows are drawn or completions scored, not before. Numbers of two digits
stay out: a model small enough for a CPU learns too little of them in a minute.
"""

import zlib
from collections.abc import Iterator, Sequence
from itertools import count as count_up
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from reasoning_gym.arithmetic.chain_sum import ChainSumDataset

VERSION = "1"  # changes when results may change

Split = Literal["train", "test"]

SYMBOLS = (*"0123456789", "+", "-", "=")
TERMS = (2, 3)  # how many digits a prompt adds and subtracts, from and to: 200 + 4,000 prompts
STREAM = 10**8  # the gym draws entry i from seed + i: seeds of ours that are so far apart share no entry
PATIENCE = 10_000  # repetitions in a row after which a split has nothing new


def rows(split: Split, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` different prompts of a split, in the gym's order: columns `prompt`, `answer` and `terms`.

    A fixed eighth of all prompts is "test", whatever the seed, so that no seed's training shows another's test.

    Raises:
        ImportError: reasoning-gym is not installed.
        ValueError: the split is unknown, or has fewer prompts than that.
    """
    found: dict[str, dict[str, Any]] = {}
    repeated = 0
    for row in stream(split, seed):
        if len(found) == count:
            return list(found.values())
        repeated = repeated + 1 if row["prompt"] in found else 0
        if repeated == PATIENCE:
            raise ValueError(f"{count} rows asked of chain_sum, whose {split} split has {len(found)}")
        found[row["prompt"]] = row


def stream(split: Split, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of a split without end, with repetitions, as the gym deals them. Errors as in `rows`."""
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; wanted 'train' or 'test'")
    gym = _gym(seed * STREAM)
    for i in count_up():
        entry = gym[i]
        prompt = entry["metadata"]["expression"].replace(" ", "") + "="
        if (zlib.crc32(prompt.encode()) % 8 == 0) == (split == "test"):
            yield {"prompt": prompt, "answer": entry["answer"], "terms": entry["metadata"]["num_terms"]}


def correct(prompts: Sequence, completions: Sequence, answer: Sequence[str], **_: Any) -> list[float]:
    """Reward with TRL's signature: 1.0 where the gym's scorer gives full marks to a completion, else 0.0.

    The gym compares values, so `+012` is 12; it also gives part of a point to a text that merely contains the
    answer, and that part is not ours. Of a conversation the last message counts.

    Args:
        answer: the dataset's column, text.

    Raises:
        ImportError: reasoning-gym is not installed.
    """
    score = _gym(0).score_answer
    texts = [y if isinstance(y, str) else y[-1]["content"] for y in completions]
    return [float(score(text, {"answer": right}) == 1.0) for text, right in zip(texts, answer, strict=True)]


def _gym(seed: int) -> "ChainSumDataset":
    try:
        from reasoning_gym.arithmetic.chain_sum import ChainSumConfig, ChainSumDataset  # an optional extra
    except ImportError as error:
        raise ImportError(
            "chain_sum: reasoning-gym is not installed; its rows and its scorer come from there; "
            "write pip install -e '.[tasks]'"
        ) from error
    fewest, most = TERMS
    return ChainSumDataset(ChainSumConfig(min_terms=fewest, max_terms=most, min_digits=1, max_digits=1, seed=seed))
