"""Fewer points of a long series, each of them a row that was logged: nothing is averaged."""

from collections.abc import Sequence

import numpy as np

POINTS = 500  # of a line
ROWS = 60  # of the table behind a figure


def outline(values: Sequence[float], most: int = POINTS) -> list[int]:
    """Indices of at most `most` values that keep the outline of a line: both ends, and the least and the greatest of
    each of equal stretches."""
    count = len(values)
    if count <= most:
        return list(range(count))
    kept = {0, count - 1}
    array = np.asarray(values, dtype=float)
    for part in np.array_split(np.arange(count), (most - 2) // 2):
        kept |= {int(part[array[part].argmin()]), int(part[array[part].argmax()])}
    return sorted(kept)


def evenly(count: int, most: int = ROWS) -> list[int]:
    """Indices of at most `most` of `count` rows at equal distances, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()
