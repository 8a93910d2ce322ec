"""Demonstrations that do not fit `max_length` or the model's context, by SFTTrainer's own preparation."""

import copy
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.demonstrations import PAIRED, prepare
from fe_posttrain.training.fit import Fit, longest, require_template, with_values, without


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
            require_template(rows, column, tokenizer)
    splits = args.packing and args.packing_strategy != "bfd"
    limit = min((n for n in (args.max_length, context) if n is not None), default=None)
    lengths, trained = _lengths(rows, tokenizer, args, limit if policy == "truncate" and not splits else None)
    over = np.flatnonzero(lengths > limit) if limit is not None and not splits else np.array([], int)
    if limit != args.max_length and _is_cut_beyond(context, lengths, args, policy):
        raise ValueError(
            f"max_length: {args.max_length}; demonstrations are cut there, and the model's context is {context}; "
            f"write {context} or less"
        )
    numbers = np.arange(1, len(rows) + 1) if numbers is None else np.asarray(numbers)
    too_long = f"{longest(lengths, over, numbers[over].tolist(), 'demonstrations')} are longer than {limit} tokens"
    if len(over) and policy == "error":
        raise ValueError(
            f"overlong_demonstrations: {too_long}; max_length is {args.max_length} and the model's context {context}; "
            "write a larger max_length where the context allows it, or overlong_demonstrations: drop or truncate"
        )
    dropped = over if policy == "drop" else over[trained[over] == 0]
    kept = without(rows, dropped, f"overlong_demonstrations: {too_long}") if len(dropped) else rows
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
    rows: Dataset,
    tokenizer,
    args: FreeEnergyConfig,
    context: int | None,
    policy: str,
    numbers: Sequence[int] | None = None,
) -> tuple[Dataset, Fit]:
    """As `fit_demonstrations`, for `demonstration` beside `prompt`: where one is dropped, the prompt stays."""
    numbers = range(1, len(rows) + 1) if numbers is None else numbers
    values = rows.select_columns(PAIRED)[:][PAIRED]
    has_one = [i for i, completion in enumerate(values) if completion]
    if not has_one:
        raise ValueError("demonstration: empty in every row; give some rows a completion, or leave the column out")
    numbers_there = [numbers[i] for i in has_one]
    _, fit = fit_demonstrations(as_completions(rows), tokenizer, args, context, policy, numbers_there)
    if fit.dropped:
        gone = set(fit.dropped)
        rows = with_values(rows, PAIRED, [None if i in gone else v for i, v in zip(numbers, values, strict=True)])
    return rows, fit


def as_completions(rows: Dataset) -> Dataset:
    """Rows of `prompt` and `completion` from those with a `demonstration` beside `prompt`."""
    has_one = [i for i, completion in enumerate(rows.select_columns(PAIRED)[:][PAIRED]) if completion]
    return rows.select(has_one).select_columns(["prompt", PAIRED]).rename_column(PAIRED, "completion")


def tokenise_demonstrations(rows: Dataset, tokenizer, args: FreeEnergyConfig) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each demonstration as it is read, before packing, and which of them are trained."""
    apart = copy.copy(args)
    apart.packing = False
    prepared = prepare(rows, tokenizer, apart, shuffle=False)
    return [(row["input_ids"], [label != -100 for label in row["labels"]]) for row in prepared]


def _is_cut_beyond(context: int | None, lengths: np.ndarray, args: FreeEnergyConfig, policy: str) -> bool:
    """Whether TRL would cut at `max_length` rows that reach beyond the model's context."""
    if context is None:
        return False
    beyond = bool((lengths > context).any())
    if args.packing and args.packing_strategy == "wrapped":  # one row of max_length tokens, whatever it is made of
        return True
    return beyond and (policy == "truncate" or (args.packing and args.packing_strategy == "bfd_split"))


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
