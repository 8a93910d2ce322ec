"""The run folder: whole files or none, plain values, one folder a run."""

import json

import pytest

from fe_posttrain.training.rewards import find_reward
from fe_posttrain.training.run import RunFolder


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
