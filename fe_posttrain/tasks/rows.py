"""Rows of text, checked before any model is loaded, and the system prompt put before them.

A prompt or completion is *plain*, a string, or *conversational*, a list of {role, content} messages; all rows of a
dataset are of one kind. Rows are counted from 1.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

Kind = Literal["plain", "conversational"]

PAIRED = "demonstration"  # beside `prompt`: a completion for that row's prompt, or None
ROLES = ("system", "developer", "user", "assistant", "tool")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_SHOWN = 5
_NAMES = {str: "a plain string", list: "a list", dict: "an object", bool: "true or false", int: "a number"}


_TAKEN = {"prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments"}


def check_prompts(rows: Dataset) -> Kind:
    """Every row has a prompt that a trainer can use, and a paired demonstration, if it has one, of the same kind.

    Raises:
        ValueError: naming the column, the first bad rows, what is wrong with each, and how many there are.
    """
    _check_text_only(rows)
    if taken := sorted(set(rows.column_names) & _TAKEN):
        raise ValueError(f"column {taken[0]}: TRL passes rewards something of its own by this name; rename the column")
    kind = _check_column(rows, "prompt", ends_with=("user",))
    if PAIRED in rows.column_names:
        _check_column(rows, PAIRED, ends_with=("assistant",), kind=kind, optional=True)
    return kind


def check_demonstrations(rows: Dataset, text_field: str = "text") -> Kind:
    """Every row is a demonstration: `prompt` and `completion`, or `messages`, or text in `text_field`.

    Raises:
        ValueError: as `check_prompts`, and for columns that make no demonstration.
    """
    _check_text_only(rows)
    columns = demonstration_columns(rows, text_field)
    if "completion" in columns:
        kind = _check_column(rows, "prompt", ends_with=("user", "tool"))
        return _check_column(rows, "completion", ends_with=("assistant",), kind=kind)
    if "messages" in columns:
        return _check_column(rows, "messages", ends_with=("assistant",), kind="conversational")
    return _check_column(rows, text_field, kind="plain")


def demonstration_columns(rows: Dataset, text_field: str = "text") -> list[str]:
    """The columns that make demonstrations: `prompt` and `completion`, else `messages`, else `text_field`.

    Raises:
        ValueError: there are none.
    """
    columns = rows.column_names
    beside = [name for name in ("tools", "chat_template_kwargs") if name in columns]
    for wanted in (["prompt", "completion"], ["messages"], [text_field]):
        if set(wanted) <= set(columns):
            return wanted + beside
    raise ValueError(
        f"columns {', '.join(columns)}; a demonstration needs `prompt` and `completion`, or `messages`, or "
        f"`{text_field}`; rename them"
    )


def with_system_prompt(rows: Dataset, text: str) -> Dataset:
    """The rows with a system message first; plain prompts, completions and demonstrations become conversations.

    Expects checked rows. `text` rows have no place for a system prompt.

    Raises:
        ValueError: rows that have a system message already, or rows of running text.
    """
    column = "prompt" if "prompt" in rows.column_names else "messages"
    if column not in rows.column_names:
        raise ValueError("system_prompt: rows of running text; they hold no conversation; leave it out")
    if _is_string(values := _arrow(rows, column)):
        rows = _replace(rows, column, _table(column, [_conversations(chunk, text) for chunk in values.chunks]))
        for other in ("completion", PAIRED):
            if other in rows.column_names and _is_string(values := _arrow(rows, other)):
                rows = _replace(rows, other, _table(other, [_messages(chunk) for chunk in values.chunks]))
        return rows
    values = _values(rows, column)
    if bad := [(i, "has one") for i, row in enumerate(values, 1) if row[0]["role"] in ("system", "developer")]:
        raise ValueError(f"system_prompt: {_listed(bad, len(rows))}; a row has one at most; leave system_prompt out")
    system = {"role": "system", "content": text}
    return _replace(rows, column, Dataset.from_dict({column: [[system, *row] for row in values]}))


def _check_text_only(rows: Dataset) -> None:
    media = (datasets.Image, datasets.Video, datasets.Audio)
    found = [name for name, feature in rows.features.items() if name in _MEDIA or isinstance(feature, media)]
    if found:
        raise ValueError(f"{found[0]}: a column of images, video or sound; only text is supported; leave it out")


def _check_column(
    rows: Dataset, column: str, *, ends_with: tuple[str, ...] = (), kind: Kind | None = None, optional: bool = False
) -> Kind:
    """The kind of a column, or one error about all its bad rows. `optional`: a row may have nothing there."""
    if column not in rows.column_names:
        raise ValueError(
            f"{column}: no such column; the rows have {', '.join(rows.column_names)}; rename the one that holds it"
        )
    allowed, strings = kind, _arrow(rows, column)
    if _is_string(strings) and kind != "conversational":
        kind, bad = "plain", [] if optional else list(_bad_strings(strings))
    else:
        values = _values(rows, column)
        kind = kind or ("conversational" if isinstance(next(filter(None, values), ""), list) else "plain")
        fault = _messages_fault(ends_with) if kind == "conversational" else _string_fault
        bad = [(i, why) for i, v in enumerate(values, 1) if (v or not optional) and (why := fault(v))]
    if bad:
        forms = {"plain": "a non-empty string"}
        if ends_with:
            forms["conversational"] = f"a list of {{role, content}} messages that ends with the {ends_with[0]}'s"
        wanted = forms[allowed] if allowed else " or ".join(forms.values())
        raise ValueError(f"{column}: {_listed(bad, len(rows))}; write {wanted}, the same kind in every row")
    return kind


def _listed(bad: list[tuple[int, str]], total: int) -> str:
    """`row 3 is empty, row 7 is missing, ... (12 of 1,000 rows, counted from 1)`."""
    shown = ", ".join(f"row {i} {why}" for i, why in bad[:_SHOWN])
    more = ", ..." if len(bad) > _SHOWN else ""
    return f"{shown}{more} ({len(bad):,} of {total:,} rows, counted from 1)"


def _bad_strings(values: pa.ChunkedArray) -> Iterator[tuple[int, str]]:
    """Missing and empty strings, found column-wise: a million rows take milliseconds."""
    missing, empty = pc.is_null(values), pc.fill_null(pc.equal(values, ""), False)
    for i in pc.indices_nonzero(pc.or_(missing, empty)).to_pylist():
        yield i + 1, "is missing (null)" if missing[i].as_py() else "is empty"


def _string_fault(value: Any) -> str | None:
    if value is None:
        return "is missing (null)"
    if not isinstance(value, str):
        return f"is {_name(value)}"
    return None if value else "is empty"


def _name(value: Any) -> str:
    return _NAMES.get(type(value), f"a {type(value).__name__}")


def _messages_fault(ends_with: tuple[str, ...]) -> Callable[[Any], str | None]:
    def fault(value: Any) -> str | None:
        if value is None:
            return "is missing (null)"
        if not isinstance(value, list):
            return f"is {_name(value)} and no list of messages"
        if not value:
            return "is empty"
        if why := next((why for message in value if (why := _message_fault(message))), None):
            return why
        last = value[-1]["role"]
        return None if last in ends_with else f"ends with a message of role {last}"

    return fault


def _message_fault(message: Any) -> str | None:
    if not isinstance(message, dict) or "role" not in message or "content" not in message:
        return "has a message without role and content"
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"has a message of role {role!r}"
    if isinstance(content, list):
        kinds = {block.get("type") for block in content if isinstance(block, dict)} - {"text"}
        if kinds:
            return f"has content of type {', '.join(sorted(map(str, kinds)))} (only text is supported)"
        return "has content in blocks (write it as one string)"
    if role == "assistant" and message.get("tool_calls"):
        return None
    return None if isinstance(content, str) and content else f"has a {role} message without content"


def _arrow(rows: Dataset, column: str) -> pa.ChunkedArray:
    return rows.select_columns(column).with_format("arrow")[:][column]


def _values(rows: Dataset, column: str) -> list:
    return rows.select_columns(column).with_format(None)[:][column]


def _is_string(values: pa.ChunkedArray) -> bool:
    return pa.types.is_string(values.type) or pa.types.is_large_string(values.type)


def _table(column: str, chunks: list[pa.Array]) -> Dataset:
    return Dataset(pa.table({column: pa.chunked_array(chunks)}))


def _replace(rows: Dataset, column: str, changed: Dataset) -> Dataset:
    """The rows with a column in the place of the one that has its name."""
    order, rest = rows.column_names, rows.remove_columns(column)
    if not rest.column_names:
        return changed
    return datasets.concatenate_datasets([rest.flatten_indices(), changed], axis=1).select_columns(order)


def _structs(roles: pa.Array, contents: pa.Array) -> pa.StructArray:
    return pa.StructArray.from_arrays([roles, contents], ["role", "content"])


def _conversations(prompts: pa.Array, system: str) -> pa.ListArray:
    """[system, user] for each of N plain prompts, without a Python object per row."""
    n = len(prompts)
    contents = pa.concat_arrays([pa.array([system], prompts.type), prompts])
    order = pa.array([0 if i % 2 == 0 else i // 2 + 1 for i in range(2 * n)])
    roles = pa.array(["system", "user"]).take(pa.array([i % 2 for i in range(2 * n)]))
    offsets = pa.array(range(0, 2 * n + 1, 2), pa.int32())
    return pa.ListArray.from_arrays(offsets, _structs(roles, contents.take(order)))


def _messages(completions: pa.Array) -> pa.ListArray:
    """[assistant] for each plain completion; none where there is none."""
    given = completions.drop_null()
    counts = pc.cumulative_sum(pc.cast(pc.is_valid(completions), pa.int32()))
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), counts])
    roles = pa.repeat("assistant", len(given))
    return pa.ListArray.from_arrays(offsets, _structs(roles, given), mask=pc.is_null(completions))
