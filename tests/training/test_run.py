"""The run folder: whole files or none, plain values, one folder a run; metrics without room; signals."""

import json
import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fe_posttrain.training.recording import RunRecorder
from fe_posttrain.training.rewards import find_reward
from fe_posttrain.training.run import RunFolder, StopSignals


def test_files_are_replaced_whole_and_leave_nothing_behind(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_json("summary.json", {"a": 1})
    folder.write_json("summary.json", {"a": [float("nan"), 2.5, None], "b": {"c": tmp_path}})
    read = json.loads((folder.path / "summary.json").read_text())
    assert read == {"a": [None, 2.5, None], "b": {"c": str(tmp_path)}}
    assert [path.name for path in folder.path.iterdir()] == ["summary.json"]


def test_a_folder_in_use_is_refused_unless_shared(tmp_path):
    RunFolder(tmp_path / "run").write("a", "x")
    with pytest.raises(ValueError, match=r"output_dir: .* is not empty"):
        RunFolder(tmp_path / "run")
    RunFolder(tmp_path / "run", shared=True).write("b", "y")
    assert (tmp_path / "run" / "a").read_text() == "x"


def test_rewards_are_found_by_name_and_by_path():
    assert find_reward("digits")(["R31425"], ["52413"]) == [1.0]
    assert find_reward("math:sqrt")(4) == 2.0
    for name in ("digit", "math:square", "no_such_module:f"):
        with pytest.raises(ValueError, match="reward_funcs"):
            find_reward(name)


def test_arguments_of_a_reward_are_bound_by_name_and_checked(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def over(n, *, base): return n**base\nclass Grader:\n    def __init__(self, k): self.k = k\n"
                    "    def __call__(self, n): return n + self.k\n")  # fmt: skip
    assert find_reward({f"{file}:over": {"base": 3}})(2) == 8
    assert find_reward({f"{file}:Grader": {"k": 5}})(2) == 7
    with pytest.raises(ValueError, match=r"reward_funcs: .*mine\.py:over: .*'power'"):
        find_reward({f"{file}:over": {"power": 3}})
    with pytest.raises(ValueError, match=r"has no 'ower'; did you mean over\?"):
        find_reward(f"{file}:ower")
    file.write_text("import nothing_of_this_name\n")
    with pytest.raises(ValueError, match="nothing_of_this_name"):
        find_reward(f"{file}:over")


def test_rows_wait_in_memory_while_the_disk_is_full_and_none_is_cut(tmp_path, caplog):
    folder = RunFolder(tmp_path / "run")
    recorder = RunRecorder(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for step in range(1, 9):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100 if 3 <= step <= 6 else before[0], before[1]))
            state = SimpleNamespace(is_world_process_zero=True, global_step=step)
            recorder.on_log(None, state, None, logs={"loss": 1 / step})
            written = folder.metrics.read_text()
            assert written.endswith("\n") and [json.loads(line) for line in written.splitlines()]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == list(range(1, 9))
    assert caplog.text.count("rows wait in memory") == 1


def test_metrics_are_cut_to_where_the_checkpoint_saw_them(tmp_path):
    folder = RunFolder(tmp_path / "run")
    recorder = RunRecorder(folder)
    state = SimpleNamespace(is_world_process_zero=True, global_step=1)
    recorder.on_log(None, state, None, logs={"loss": 1.0})
    kept, seen = folder.metrics.read_bytes(), recorder.checkpoint_state()
    recorder.on_log(None, state, None, logs={"loss": 2.0})
    RunRecorder(folder).load_checkpoint_state(json.loads(json.dumps(seen)))
    assert folder.metrics.read_bytes() == kept


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_handlers_are_put_back(number):
    before, said = signal.getsignal(number), []
    with StopSignals(said.append) as signals:
        assert not signals.requested()
        os.kill(os.getpid(), number)
        assert signals.requested() and signals.received == number
    assert signal.getsignal(number) is before
    assert len(said) == 1 and said[0].startswith(number.name)


def test_the_second_signal_leaves_at_once():
    code = (
        "import os, signal, time; from fe_posttrain.training.run import StopSignals\n"
        "with StopSignals(print):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=50, check=False).returncode == -signal.SIGTERM
