"""A run folder as data. Everything in this room that shows a run reads it here, while it trains or years later."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class RunData:
    """What a run folder holds; a row that a killed process left half is no row.

    Raises:
        ValueError: `path` holds no run.
    """

    path: Path

    def __post_init__(self) -> None:
        if not (self.path / "recipe.yaml").is_file():
            raise ValueError(f"{self.path}: no run folder (recipe.yaml is missing); name the output_dir of a run")

    @property
    def name(self) -> str:
        return self.recipe.get("run_name") or self.path.resolve().name

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return yaml.safe_load((self.path / "recipe.yaml").read_text())

    @cached_property
    def versions(self) -> dict[str, Any]:
        return self._json("versions.json")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Of a finished run; empty before."""
        return self._json("summary.json")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl: `step`, `seconds` and what was logged."""
        return list(_rows(self.path / "metrics.jsonl"))

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Rows of events.jsonl: `step`, `seconds`, `event` and its content."""
        return list(_rows(self.path / "events.jsonl"))

    def events_named(self, *names: str) -> list[dict[str, Any]]:
        return [row for row in self.events if row["event"] in names]

    @property
    def probes(self) -> list[dict[str, Any]]:
        """The events of probe rounds; `report` holds each one's."""
        return self.events_named("probe")

    @property
    def support(self) -> dict[str, Any]:
        """The newest support report; empty where nothing was probed."""
        found = self.summary.get("support") or {}
        return found if "verdict" in found else self.probes[-1]["report"] if self.probes else {}

    @property
    def steps(self) -> int:
        """Optimizer steps that the run was to make."""
        begun = self.events_named("start", "resume")
        return begun[-1]["steps"] if begun else max((row["step"] for row in self.metrics), default=0)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it has one."""
        found = [(row["step"], row[key]) for row in self.metrics if row.get(key) is not None]
        return [step for step, _ in found], [value for _, value in found]

    def last(self) -> dict[str, Any]:
        """Every logged key with its last value."""
        found: dict[str, Any] = {}
        for row in self.metrics:
            found |= {key: value for key, value in row.items() if value is not None}
        return found

    def samples(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """The completions that an event names; empty where it names none or they are gone."""
        name = event.get("samples")
        if name is None or not (self.path / name).is_file():
            return []
        import pyarrow.parquet as pq

        return pq.read_table(self.path / name).to_pylist()

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return json.loads(path.read_text()) if path.is_file() else {}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
