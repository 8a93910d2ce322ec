"""Rows that do not fit the model: what is known of them, and prompts that leave no room for a completion.

Lengths are those that the trainer will see: prompts are tokenised here as GRPOTrainer does. Rows are counted from 1.
"""

from dataclasses import dataclass

import numpy as np
from datasets import Dataset, Features, concatenate_datasets

from fe_posttrain.training.config import FreeEnergyConfig

POLICIES = ("error", "drop", "truncate")  # what becomes of rows that are too long
_BATCH = 1000
_SHOWN = 5


@dataclass(frozen=True)
class Fit:
    """How the rows of a dataset fit.

    `what` they are; `limit` in tokens (None: none); `tokens` of every row that is kept, as it will be read;
    `trained` tokens among them (0 for prompts); `dropped` and `truncated` rows.
    """

    what: str
    limit: int | None
    tokens: list[int]
    trained: int
    dropped: list[int]
    truncated: list[int]

    def lines(self) -> list[str]:
        """What a person should know: `3 of 1,000 prompts dropped: longer than 500 tokens (rows 4, 17, 203)`."""
        total = len(self.tokens) + len(self.dropped)
        return [
            f"{len(rows):,} of {total:,} {self.what} {done} {self.limit:,} tokens ({_rows(rows)})"
            for rows, done in ((self.dropped, "dropped: longer than"), (self.truncated, "truncated to"))
            if rows
        ]


def tokenise_prompts(prompts: list, tokenizer, args: FreeEnergyConfig) -> list[list[int]]:
    """Token ids of prompts as GRPOTrainer hands them to the model."""
    if isinstance(prompts[0], str):
        return tokenizer(text=prompts)["input_ids"]
    settings = args.chat_template_kwargs or {}
    return tokenizer.apply_chat_template(
        conversation=prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **settings
    )["input_ids"]


def fit_prompts(
    rows: Dataset, tokenizer, args: FreeEnergyConfig, context: int | None, policy: str
) -> tuple[Dataset, Fit]:
    """Prompts that leave `max_completion_length` tokens of the model's context.

    Args:
        context: tokens that the model can attend to; None: no limit.
        policy: what becomes of the others. `truncate` keeps the last tokens of a plain prompt; a conversation
            cannot be truncated.

    Raises:
        ValueError: prompts too long under `error`, conversations under `truncate`, or no row left.
    """
    completion = args.max_completion_length or 0
    limit = None if context is None else context - completion
    if limit is not None and limit < 1:
        raise ValueError(
            f"max_completion_length: {completion}; the model's context of {context} tokens leaves no room for a "
            f"prompt; write less than {context}"
        )
    require_template(rows, "prompt", tokenizer)
    prompts = rows.select_columns("prompt")
    lengths = np.concatenate(
        [
            [len(ids) for ids in tokenise_prompts(prompts[start : start + _BATCH]["prompt"], tokenizer, args)]
            for start in range(0, len(prompts), _BATCH)
        ]
    )
    if not lengths.all():
        raise ValueError(f"prompt: row {lengths.argmin() + 1} is tokenised to nothing; leave it out")
    over = np.flatnonzero(lengths > limit) if limit is not None else np.array([], int)
    numbers = (over + 1).tolist()
    if not numbers:
        return rows, Fit("prompts", limit, lengths.tolist(), 0, [], [])
    too_long = f"{longest(lengths, over, numbers, 'prompts')} are longer than {limit} tokens"
    if policy == "error":
        raise ValueError(
            f"overlong_prompts: {too_long}; the model's context is {context} and max_completion_length "
            f"{completion}; write a smaller max_completion_length, or overlong_prompts: drop or truncate"
        )
    if policy == "drop":
        kept = without(rows, over, f"overlong_prompts: {too_long}")
        return kept, Fit("prompts", limit, np.delete(lengths, over).tolist(), 0, numbers, [])
    values = prompts[:]["prompt"]
    if not isinstance(values[0], str):
        raise ValueError(
            f"overlong_prompts: truncate; {too_long}, and a conversation cannot be truncated; write drop, or shorten "
            "these rows"
        )
    for i in over:
        values[i], lengths[i] = _last_tokens(values[i], tokenizer, limit)
    return with_values(rows, "prompt", values), Fit("prompts", limit, lengths.tolist(), 0, [], numbers)


def require_template(rows: Dataset, column: str, tokenizer) -> None:
    """Raise for conversations when the tokenizer has no chat template."""
    if not isinstance(rows[0][column], str) and not tokenizer.chat_template:
        raise ValueError(
            "chat_template_path: missing; the rows are conversations and the tokenizer has no chat template; write "
            "the path of a .jinja file, or plain strings as rows"
        )


def _last_tokens(text: str, tokenizer, limit: int) -> tuple[str, int]:
    """The longest end of `text` that is at most `limit` tokens, cut between tokens; and its number of tokens."""
    length = limit + 1
    while length > limit:
        ids = tokenizer(text=text, add_special_tokens=False)["input_ids"]
        excess = max(1, len(tokenizer(text=text)["input_ids"]) - limit)
        text = tokenizer.decode(ids[excess:], clean_up_tokenization_spaces=False).lstrip("\ufffd")  # half a character
        length = len(tokenizer(text=text)["input_ids"])  # text may be split in another way at its new start
    return text, length


def with_values(rows: Dataset, column: str, values: list) -> Dataset:
    """The rows with other values in a column, its feature kept."""
    changed = Dataset.from_dict({column: values}, features=Features({column: rows.features[column]}))
    rest = rows.remove_columns(column)
    return concatenate_datasets([rest.flatten_indices(), changed], axis=1) if rest.column_names else changed


def without(rows: Dataset, dropped: np.ndarray, why: str) -> Dataset:
    """The rows but those at positions `dropped`; `why` they are, for the error when none is left."""
    if len(dropped) == len(rows):
        raise ValueError(f"{why}; nothing would be left; write larger limits or shorter rows")
    return rows.select(np.setdiff1d(np.arange(len(rows)), dropped))


def longest(lengths: np.ndarray, over: np.ndarray, numbers: list[int], what: str) -> str:
    """`3 of 1,000 prompts (row: tokens 4: 612, ...)`, from lengths, positions and row numbers."""
    shown = ", ".join(f"{n}: {lengths[i]}" for i, n in list(zip(over, numbers, strict=True))[:_SHOWN])
    return f"{len(over):,} of {len(lengths):,} {what} (row: tokens {shown}{', ...' if len(over) > _SHOWN else ''})"


def _rows(numbers: list[int]) -> str:
    more = ", ..." if len(numbers) > _SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_SHOWN]))}{more}"
