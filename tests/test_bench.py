"""scripts/bench.py: its intervals cover as often as it says, and its record is complete."""

import itertools
import json
from fractions import Fraction
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fe_posttrain.tasks import digits

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench

    return bench


@pytest.mark.parametrize("n", range(1, 10))
def test_the_interval_covers_as_often_as_it_says(bench, n):
    # Draws of a law with median 0 lie on either side of it with probability 1/2 each, whatever the law: go through
    # all 2^n ways, each with sizes of its own.
    covered = 0
    for signs in itertools.product((-1, 1), repeat=n):
        low, high, coverage = bench.median_interval([sign * (i + 1) for i, sign in enumerate(signs)])
        covered += low <= 0 <= high
    assert coverage == pytest.approx(float(Fraction(covered, 2**n)), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "ends", "coverage"),
    [
        (2, (1, 2), 1 / 2),
        (5, (1, 5), 15 / 16),  # no pair of ranks reaches .95
        (7, (1, 7), 63 / 64),
        (9, (2, 8), 1 - 2 * (1 + 9) / 512),
    ],
)
def test_the_interval_lies_at_the_ranks_of_the_table(bench, n, ends, coverage):
    shuffled = [float(3 * i % (n + 1)) for i in range(1, n + 1)] if (n + 1) % 3 else [float(i) for i in range(n, 0, -1)]
    assert bench.median_interval(shuffled) == (*ends, pytest.approx(coverage))


def test_a_pair_is_two_runs_of_the_same_round(bench):
    found = bench.compare([2.0, 9.0, 40.0], [1.0, 3.0, 10.0])
    assert (found["ours"], found["trl"], found["ratio"], found["interval"]) == (9.0, 3.0, 3.0, [2.0, 4.0])


def test_a_short_run_gives_a_complete_record(bench, monkeypatch):
    import bench_arms

    few = {"demonstrations": digits.dataset(["barrier", "basin"], 32, seed=0, demonstrations=True)}
    monkeypatch.setattr(bench_arms, "data", lambda: few)
    monkeypatch.setattr(bench_arms, "TIME_BATCH", 8)
    peaks = iter([{"peak_mib": 30.0, "added_peak_mib": 10.0}, {"peak_mib": 33.0, "added_peak_mib": 5.0}])
    monkeypatch.setattr(bench, "peak_in_own_process", lambda name: next(peaks))  # each costs nine seconds
    record = json.loads(json.dumps(bench.measure(["sft"], pairs=2, steps=4, console=Console(file=StringIO()))))
    assert record["comparisons"].keys() == {"sft"}
    found = record["comparisons"]["sft"]
    assert found["time_ms"]["ours"] > 0 and found["time_ms"]["trl"] > 0 and found["time_ms"]["pairs"] == 2
    assert found["time_ms"]["coverage"] == 0.5
    # One round of memory, the second arm first.
    assert found["added_peak_mib"]["ratio"] == 0.5 and found["peak_mib"]["ours"] == 33.0
    assert record["meaning"].keys() >= {"time_ms", "added_peak_mib", "peak_mib", "interval"}
    assert len(record["load"]["before"]) == len(record["load"]["after"]) == 3 and record["load"]["cores"] >= 1
    assert record["settings"]["time"] == {"batch": 8, "steps": 4, "warm_up": 1}
    assert {"python", "torch", "trl", "fe_posttrain"} <= record["versions"].keys()
    shown = Console(file=StringIO(), width=100)
    shown.print(bench.table(record))
    assert "SFTTrainer" in shown.file.getvalue() and "50.0%" in shown.file.getvalue()


def test_peak_memory_is_reported_above_what_was_there(bench, monkeypatch):
    import bench_arms

    peaks = iter([100.0, 160.0, 160.0])
    monkeypatch.setattr(bench_arms, "_peak", lambda: next(peaks))
    monkeypatch.setattr(bench_arms, "PEAK_BATCH", 4)
    assert bench_arms.peak_memory("trl_sft") == {"peak_mib": 160.0, "added_peak_mib": 60.0}
