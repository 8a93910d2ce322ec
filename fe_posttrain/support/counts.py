"""Counts: how often each prompt was answered correctly, from a CSV file or from a probe, and two of them side by side.

A file has the columns `prompt_id,correct,drawn` in any order, and may have one of `family` and `tag`; other columns
are not read. Numbers of draws must have been fixed beforehand.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fe_posttrain.support.intervals import checked

_COLUMNS = ("prompt_id", "correct", "drawn")
_TAGS = ("family", "tag")
_LEAST, _MOST = 2, 10**9  # a verdict halves the draws of a prompt; NumPy's hypergeometric numbers end at 10^9


@dataclass(frozen=True, eq=False)
class Counts:
    """Hits and draws of M prompts.

    prompt_ids: (M,), no two alike; correct, drawn: (M,) whole numbers; tags: (M,) the family of each prompt, None for
    a prompt without one, or None altogether; source: what an error message calls these counts.
    """

    prompt_ids: tuple[str, ...]
    correct: NDArray
    drawn: NDArray
    tags: tuple[str | None, ...] | None = None
    source: str = "counts"

    def __post_init__(self) -> None:
        hits, draws = checked(self.correct, self.drawn)
        lengths = {len(self.prompt_ids), len(hits), len(self.tags) if self.tags is not None else len(hits)}
        if len(lengths) != 1:
            raise ValueError(f"{self.source}: columns of {sorted(lengths)} rows; each prompt needs one value in each")
        if len(set(self.prompt_ids)) < len(self.prompt_ids):
            twice = next(name for i, name in enumerate(self.prompt_ids) if name in self.prompt_ids[:i])
            raise ValueError(f"{self.source}: prompt {twice!r} occurs twice; add its counts up in one row")
        object.__setattr__(self, "correct", hits)
        object.__setattr__(self, "drawn", draws)

    @property
    def prompts(self) -> int:
        return len(self.prompt_ids)

    @property
    def p(self) -> NDArray:
        """Hits per draw, (M,): the plug-in estimate."""
        return self.correct / np.maximum(1, self.drawn)

    def picked(self, rows: ArrayLike) -> "Counts":
        """The prompts with these indices."""
        rows = np.asarray(rows, dtype=np.intp)
        tags = None if self.tags is None else tuple(self.tags[i] for i in rows)
        ids = tuple(self.prompt_ids[i] for i in rows)
        return Counts(ids, self.correct[rows], self.drawn[rows], tags, self.source)

    def evened(self, seed: int = 0) -> "Counts":
        """As many draws of every prompt as the poorest has, the others thinned out at random."""
        least = int(self.drawn.min())
        if (self.drawn == least).all():
            return self
        kept = np.random.default_rng(seed).hypergeometric(self.correct, self.drawn - self.correct, least)
        return Counts(self.prompt_ids, kept, np.full(self.prompts, least), self.tags, self.source)

    def families(self) -> dict[str, NDArray]:
        """Indices of the prompts of each tag, in the order of first appearance; prompts without a tag are in none."""
        names = dict.fromkeys(tag for tag in self.tags or () if tag is not None)
        return {name: np.array([i for i, tag in enumerate(self.tags) if tag == name]) for name in names}


def read_counts(path: str | PathLike) -> Counts:
    """Counts of one side from a CSV file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: anything in it that is not counts, as `file, line: what; why; what to write`.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return _counts(csv.reader(file, strict=True), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no UTF-8 text at byte {error.start}; save it as UTF-8 CSV") from error
    except csv.Error as error:
        raise ValueError(f"{path}: no CSV ({error}); write {','.join(_COLUMNS)} and one prompt a line") from error


def aligned(reference: Counts, trained: Counts) -> tuple[Counts, Counts]:
    """Both sides in the order of `reference`, each with the tags that either has.

    Raises:
        ValueError: a prompt that only one side has, or a prompt with two tags.
    """
    lacks = [_lacks(mine, other) for mine, other in ((trained, reference), (reference, trained))]
    if any(lacks):
        raise ValueError("; ".join(filter(None, lacks)) + "; both sides need the same prompts: add the rows, or take "
                         "them out of the other side")  # fmt: skip
    place = {name: i for i, name in enumerate(trained.prompt_ids)}
    trained = trained.picked([place[name] for name in reference.prompt_ids])
    for name, one, other in zip(reference.prompt_ids, reference.tags or (), trained.tags or (), strict=False):
        if one != other:
            raise ValueError(
                f"prompt {name!r}: tag {one!r} in {reference.source}, {other!r} in {trained.source}; "
                "a prompt has one family; write the same in both, or leave the column out of one"
            )
    tags = trained.tags if reference.tags is None else reference.tags
    return tuple(Counts(side.prompt_ids, side.correct, side.drawn, tags, side.source) for side in (reference, trained))


def _lacks(side: Counts, other: Counts) -> str:
    missing = sorted(set(other.prompt_ids) - set(side.prompt_ids))
    if not missing:
        return ""
    named = ", ".join(repr(name) for name in missing[:3]) + (", ..." if len(missing) > 3 else "")
    return f"{side.source}: {_several(len(missing))} of {other.source} missing ({named})"


def _several(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


def _counts(lines: Iterator[Sequence[str]], source: str) -> Counts:
    columns = [name.strip() for name in next(lines, [])]
    where = _places(columns, source)
    seen: dict[str, int] = {}
    rows = []
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        at = f"{source}, line {lines.line_num}"
        if len(cells) != len(columns):
            raise ValueError(f"{at}: {len(cells)} cells under {len(columns)} columns; mend the commas or quotes of it")
        row = {name: cells[i].strip() for name, i in where.items()}
        if not row["prompt_id"]:
            raise ValueError(f"{at}: prompt_id is empty; write what tells this prompt from the others")
        if row["prompt_id"] in seen:
            raise ValueError(
                f"{at}: prompt {row['prompt_id']!r} is on line {seen[row['prompt_id']]} already; add the counts up in "
                "one row, or write two names for two prompts"
            )
        seen[row["prompt_id"]] = lines.line_num
        rows.append((row["prompt_id"], *_numbers(row, at), row.get("tag") or None))
    if not rows:
        raise ValueError(f"{source}: no prompt; write one `{','.join(_COLUMNS)}` a line, under a line with these names")
    ids, correct, drawn, tags = zip(*rows, strict=True)
    return Counts(ids, np.array(correct), np.array(drawn), tags if "tag" in where else None, source)


def _places(columns: Sequence[str], source: str) -> dict[str, int]:
    """Which cell of a line is which; the column of families is called `tag` here whatever the file calls it."""
    wanted = [name for name in (*_COLUMNS, *_TAGS) if name in columns]
    missing = [name for name in _COLUMNS if name not in columns]
    if missing:
        found = _quoted(columns) if any(columns) else "nothing"
        raise ValueError(
            f"{source}, line 1: no column {_quoted(missing)}, found {found}; the first line names the columns, "
            f"separated by commas: write {','.join(_COLUMNS)}"
        )
    twice = [name for name in wanted if columns.count(name) > 1] or [name for name in _TAGS if set(_TAGS) <= {*columns}]
    if twice:
        raise ValueError(f"{source}, line 1: {_quoted(twice)} say the same twice; keep one of the columns")
    return {"tag" if name in _TAGS else name: columns.index(name) for name in wanted}


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _numbers(row: dict[str, str], at: str) -> tuple[int, int]:
    for name in ("correct", "drawn"):
        if not (row[name].isascii() and row[name].isdigit()):
            raise ValueError(f"{at}: {name} is {row[name]!r}; counts are whole numbers, 0 or more; write one")
    correct, drawn = int(row["correct"]), int(row["drawn"])
    if correct > drawn:
        raise ValueError(f"{at}: {correct} correct of {drawn} drawn; of n draws n can be correct at most; mend the row")
    if not _LEAST <= drawn < _MOST:
        raise ValueError(
            f"{at}: drawn is {drawn}; the draws of a prompt are split in two halves, so {_LEAST} to {_MOST:.0e} are "
            "needed; draw more, or take the prompt out of both files"
        )
    return correct, drawn
