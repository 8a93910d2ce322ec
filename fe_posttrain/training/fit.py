"""Rows that do not fit: prompts without room for a completion, demonstrations longer than what is trained.

Lengths are those that the trainer will see: prompts tokenised as GRPOTrainer does, demonstrations prepared by
SFTTrainer's own code. Rows are counted from 1. Policies: `error`, `drop`, `truncate`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, concatenate_datasets

from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.demonstrations import PAIRED, prepare

POLICIES = ("error", "drop", "truncate")
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
    _require_template(rows, "prompt", tokenizer)
    prompts = rows.select_columns("prompt")
    lengths = np.concatenate(
        [
            [len(ids) for ids in tokenise_prompts(prompts[start : start + _BATCH]["prompt"], tokenizer, args)]
            for start in range(0, len(prompts), _BATCH)
        ]
    )
    over = np.flatnonzero(lengths > limit) if limit is not None else np.array([], int)
    numbers = (over + 1).tolist()
    if not numbers:
        return rows, Fit("prompts", limit, lengths.tolist(), 0, [], [])
    too_long = f"{_longest(lengths, over, numbers, 'prompts')} are longer than {limit} tokens"
    if policy == "error":
        raise ValueError(
            f"overlong_prompts: {too_long}; the model's context is {context} and max_completion_length "
            f"{completion}; write a smaller max_completion_length, or overlong_prompts: drop or truncate"
        )
    if policy == "drop":
        kept = _without(rows, over, f"overlong_prompts: {too_long}")
        return kept, Fit("prompts", limit, np.delete(lengths, over).tolist(), 0, numbers, [])
    values = prompts[:]["prompt"]
    if not isinstance(values[0], str):
        raise ValueError(
            f"overlong_prompts: truncate; {too_long}, and a conversation cannot be truncated; write drop, or shorten "
            "these rows"
        )
    for i in over:
        values[i], lengths[i] = _last_tokens(values[i], tokenizer, limit)
    return _with_values(rows, "prompt", values), Fit("prompts", limit, lengths.tolist(), 0, [], numbers)


def fit_demonstrations(
    rows: Dataset,
    tokenizer,
    args: FreeEnergyConfig,
    context: int | None,
    policy: str,
    numbers: Sequence[int] | None = None,
) -> tuple[Dataset, Fit]:
    """Demonstrations of at most `max_length` tokens and the model's context.

    Truncation is SFTTrainer's own, by `max_length`; a row that would keep no trained token is dropped. Packing
    that splits (bfd_split, wrapped) cuts at `max_length` and loses nothing: only `max_length` must fit.

    Args:
        numbers: row numbers for messages; default 1, 2, ...

    Raises:
        ValueError: too long under `error`, truncation that `max_length` does not bring about, or no row left.
    """
    for column in ("prompt", "messages"):
        if column in rows.column_names:
            _require_template(rows, column, tokenizer)
    splits = args.packing and args.packing_strategy != "bfd"
    limit = min((n for n in (args.max_length, context) if n is not None), default=None)
    if (splits or policy == "truncate") and limit != args.max_length:
        # TRL would cut at max_length, beyond the context.
        lengths, _ = _lengths(rows, tokenizer, args, None)
        if splits or (lengths > limit).any():
            raise ValueError(
                f"max_length: {args.max_length}; demonstrations are cut there, and the model's context is {context}; "
                f"write {context} or less"
            )
    lengths, trained = _lengths(rows, tokenizer, args, limit if policy == "truncate" and not splits else None)
    over = np.flatnonzero(lengths > limit) if limit is not None and not splits else np.array([], int)
    numbers = np.arange(1, len(rows) + 1) if numbers is None else np.asarray(numbers)
    too_long = f"{_longest(lengths, over, numbers[over].tolist(), 'demonstrations')} are longer than {limit} tokens"
    if len(over) and policy == "error":
        raise ValueError(
            f"overlong_demonstrations: {too_long}; max_length is {args.max_length} and the model's context {context}; "
            "write a larger max_length where the context allows it, or overlong_demonstrations: drop or truncate"
        )
    dropped = over if policy == "drop" else over[trained[over] == 0]
    kept = _without(rows, dropped, f"overlong_demonstrations: {too_long}") if len(dropped) else rows
    tokens = np.minimum(lengths, limit) if len(over) else lengths
    return kept, Fit(
        "demonstrations",
        limit,
        np.delete(tokens, dropped).tolist(),
        int(np.delete(trained, dropped).sum()),
        numbers[dropped].tolist(),
        numbers[np.setdiff1d(over, dropped)].tolist(),
    )


def fit_paired(
    rows: Dataset, tokenizer, args: FreeEnergyConfig, context: int | None, policy: str
) -> tuple[Dataset, Fit]:
    """As `fit_demonstrations`, for `demonstration` beside `prompt`: where one is dropped, the prompt stays."""
    values = rows.select_columns(PAIRED)[:][PAIRED]
    has_one = [i for i, completion in enumerate(values) if completion]
    if not has_one:
        raise ValueError("demonstration: empty in every row; give some rows a completion, or leave the column out")
    alone = rows.select(has_one).select_columns(["prompt", PAIRED]).rename_column(PAIRED, "completion")
    _, fit = fit_demonstrations(alone, tokenizer, args, context, policy, [i + 1 for i in has_one])
    if fit.dropped:
        gone = set(fit.dropped)
        rows = _with_values(rows, PAIRED, [None if i in gone else v for i, v in enumerate(values, 1)])
    return rows, fit


def _lengths(rows: Dataset, tokenizer, args: FreeEnergyConfig, cut: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each whole row, and its trained tokens within what truncation to `cut` keeps."""
    whole = copy.copy(args)
    whole.max_length, whole.packing = None, False
    labels = prepare(rows, tokenizer, whole, shuffle=False).select_columns("labels").with_format("arrow")[:]["labels"]
    keep_end = args.truncation_mode == "keep_end" and not args.packing
    lengths, trained = [], []
    for chunk in labels.chunks:  # one at a time: a position and a row per token take memory
        length = pc.list_value_length(chunk).to_numpy()
        row = pc.list_parent_indices(chunk).to_numpy()
        counts = pc.list_flatten(chunk).to_numpy() != -100
        if cut is not None:
            position = np.arange(len(row)) - (length.cumsum() - length)[row]
            counts &= position >= length[row] - cut if keep_end else position < cut
        lengths.append(length)
        trained.append(np.bincount(row[counts], minlength=len(length)))
    return np.concatenate(lengths), np.concatenate(trained)


def _require_template(rows: Dataset, column: str, tokenizer) -> None:
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
        text = tokenizer.decode(ids[excess:], clean_up_tokenization_spaces=False)
        length = len(tokenizer(text=text)["input_ids"])  # text may be split in another way at its new start
    return text, length


def _with_values(rows: Dataset, column: str, values: list) -> Dataset:
    """The rows with other values in a column, its feature kept."""
    changed = Dataset.from_dict({column: values}, features=Features({column: rows.features[column]}))
    rest = rows.remove_columns(column)
    return concatenate_datasets([rest.flatten_indices(), changed], axis=1) if rest.column_names else changed


def _without(rows: Dataset, dropped: np.ndarray, why: str) -> Dataset:
    if len(dropped) == len(rows):
        raise ValueError(f"{why}; nothing would be left; write larger limits or shorter rows")
    return rows.select(np.setdiff1d(np.arange(len(rows)), dropped))


def _longest(lengths: np.ndarray, over: np.ndarray, numbers: list[int], what: str) -> str:
    shown = ", ".join(f"{n}: {lengths[i]}" for i, n in list(zip(over, numbers, strict=True))[:_SHOWN])
    return f"{len(over):,} of {len(lengths):,} {what} (row: tokens {shown}{', ...' if len(over) > _SHOWN else ''})"


def _rows(numbers: list[int]) -> str:
    more = ", ..." if len(numbers) > _SHOWN else ""
    return f"row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_SHOWN]))}{more}"
