"""GSM8K: grade-school word problems whose answer is one number (Cobbe et al. 2021, arXiv 2110.14168).

The rows are those of `openai/gsm8k`, configuration `main`: `question`, and `answer` that ends with `#### NUMBER`.
"""

import logging
import re
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = "1"  # changes when results may change

INSTRUCTION = "Reason step by step, and put the final number in \\boxed{}."
_BOX = "\\boxed{"
_MARK = "####"
_LONGEST = 60  # characters of a boxed number
# What a number is written with. Powers, factorials, sums: a short one can keep exact arithmetic busy for ever.
_COMMANDS = r"[dt]?frac|text\w*|math\w+|cdot|times|div|left|right|quad|[ ,;:!$%]"
_NO_NUMBER = re.compile(rf"\^|(?<!\\)!|\*\*|\\(?!{_COMMANDS})")


def load(split: str) -> "Dataset":
    """The rows of a split (`train`: 7,473, `test`: 1,319): a conversational `prompt` and its `solution`, a number.

    Raises:
        ValueError: the Hub cannot be reached, or there is no such split.
    """
    from fe_posttrain.tasks.files import load_rows

    rows = load_rows("openai/gsm8k", config="main", split=split)
    return rows.map(row, remove_columns=rows.column_names)


def row(published: dict[str, str]) -> dict[str, Any]:
    """One published row as a trainer reads it.

    >>> row({"question": "What is 999 + 1?", "answer": "It is <<999+1=1000>>1000.\\n#### 1,000"})["solution"]
    '1000'
    """
    _, mark, solution = published["answer"].rpartition(_MARK)
    if not mark:
        raise ValueError(f"gsm8k: an answer without {_MARK}: {published['answer']!r}; its number follows that mark")
    content = f"{published['question'].strip()}\n\n{INSTRUCTION}"
    return {"prompt": [{"role": "user", "content": content}], "solution": solution.strip().replace(",", "")}


def correct(completions: list, solution: list[str], **_: Any) -> list[float]:
    """1.0 where the last \\boxed{} of a completion is the solution's number, else 0.0; TRL's signature.

    Numbers are compared by math-verify: 18, 18.0, \\$18, 36/2 and \\frac{36}{2} are equal. A completion without a
    box is wrong, and so is one whose box holds a power, a factorial or any other operator that is no number.

    Raises:
        ModuleNotFoundError: math-verify is not installed.
    """
    return [float(_same(_boxed(_text(y)), truth)) for y, truth in zip(completions, solution, strict=True)]


def _text(completion: str | list[dict[str, str]]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def _boxed(text: str) -> str | None:
    """What the last \\boxed{...} of a text holds; None without one, or where it does not close or is no number."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth, inside = 1, text[start + len(_BOX) :][: _LONGEST + 1]
    for i, character in enumerate(inside):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return None if _NO_NUMBER.search(inside[:i]) else inside[:i]
    return None


def _same(answer: str | None, truth: str) -> bool:
    if answer is None:
        return False
    parse, verify = _math_verify()
    # Its own time limits are signals, which threads and an outer time limit forbid.
    parsed = [parse(f"{_BOX}{number}}}", parsing_timeout=None) for number in (truth, answer)]
    return verify(*parsed, timeout_seconds=None)


@cache
def _math_verify() -> tuple:
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reward_funcs: gsm8k; numbers are compared by math-verify, which is not installed; pip install -e '.[math]'"
        ) from error
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it warns that its time limits are off
    return parse, verify
