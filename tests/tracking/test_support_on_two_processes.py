"""Two real processes (gloo) against one: the same bank, probes and verdict; a failure on one ends tracking on both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[list[dict], dict]:
    where = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(str(HERE / "two_tracked_processes.py"), str(where)),
        ],
        capture_output=True,
        text=True,
        timeout=150,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(HERE)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads((where / f"found_{rank}.json").read_text()) for rank in (0, 1)]
    code = "import json, sys; from pathlib import Path; import two_tracked_processes as t; " \
        "print(json.dumps(t.tracked(Path(sys.argv[1]), 1)))"  # fmt: skip
    alone = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path_factory.mktemp("one"))],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    assert alone.returncode == 0, alone.stderr[-3000:]
    return both, json.loads(alone.stdout.splitlines()[-1])


def test_two_processes_say_what_one_says(found):
    both, alone = found
    assert alone["off"] is None
    for name in ("bank", "rounds", "probe_ledger", "verdict", "windows"):
        assert both[0]["tracked"][name] == alone[name], name
        assert both[1]["tracked"][name] == alone[name], name


def test_the_rows_of_all_processes_are_entered_once_and_on_one_of_them(found):
    both, alone = found
    assert both[0]["tracked"]["training_rows"] == alone["training_rows"] == 4 * 16
    assert both[1]["tracked"]["training_rows"] is None


def test_a_tracker_that_fails_on_one_process_is_off_on_both_and_training_ends(found):
    first, second = (one["failing"] for one in found[0])
    assert first["step"] == second["step"] == 4
    assert first["off"] == second["off"] == "everywhere"
    assert "another process" in first["why"] and "TypeError" in second["why"]
