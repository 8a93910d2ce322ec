"""Runs of a comparison: started in turn, left alone when finished, resumed when not, refused when they are others'.

The launched program is a stand-in that writes a summary; tests/test_compare.py launches the real one.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from fake_runs import report, told, write
from rich.console import Console

from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.comparing import RunFailed, print_commands, run_all
from fe_posttrain.recipe.comparison import read_comparison
from fe_posttrain.recipe.opening import resolved
from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.recipe.tuning import trials as trials_of

ROOT = Path(__file__).parents[2]
STAND_IN = """
import json, sys
from pathlib import Path

words = sys.argv[1:]
folder = Path(words[words.index("--output_dir") + 1])
with open(Path(__file__).with_name("calls"), "a") as calls:
    calls.write(f"{folder.parent.name} {folder.name} {'--resume' in words}\\n")
folder.mkdir(parents=True, exist_ok=True)
(folder / "begun").write_text("")
print("step 1/2  F 0.5", flush=True)
if Path(__file__).with_name("fails").exists() and folder.parent.name == "b":
    print("no room", file=sys.stderr)
    sys.exit(3)
if Path(__file__).with_name("waits").exists():
    import signal, time
    def leave(number, frame):
        (folder / "saved").write_text("")
        if Path(__file__).with_name("waits").read_text() == "at the end":
            (folder / "summary.json").write_text("{}")
            sys.exit(0)
        sys.exit(128 + number)
    signal.signal(signal.SIGTERM, leave)
    Path(__file__).with_name("waiting").write_text("")
    time.sleep(60)
(folder / "summary.json").write_text("{}")
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    content = {
        "name": "two",
        "seeds": [0, 1],
        "base": str(ROOT / "recipes" / "rl.yaml"),
        "arms": {"a": None, "b": {"settings": {"beta": 0.1}}},
        "launch": "python",
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def start(place: Path) -> str:
    """Run the comparison there; what was printed."""
    comparison = read_comparison(str(place / "c.yaml"), with_recipes=False)
    with open(place / "printed", "w+") as file:
        try:
            run_all(comparison, str(place / "out"), str(place / "stand_in.py"), Console(file=file, width=200))
        finally:
            file.seek(0)
            printed = file.read()
    return printed


def calls(place: Path) -> list[str]:
    return (place / "calls").read_text().splitlines()


def test_every_run_once_seed_by_seed_and_nothing_the_second_time(place):
    printed = start(place)
    assert calls(place) == [f"{arm} seed-{seed} False" for seed in (0, 1) for arm in "ab"]
    assert "[4/4] b seed 1: finished in 0:0" in printed
    assert (place / "out/a/seed-0.log").read_text().startswith("step 1/2")
    assert start(place).count("finished before") == 4
    assert len(calls(place)) == 4


def test_a_failed_run_stops_with_its_words_and_is_resumed(place):
    (place / "fails").write_text("")
    with pytest.raises(RunFailed) as error:
        start(place)
    assert error.value.code == 3
    assert "[2/4] b seed 0: exit code 3" in str(error.value) and "  no room" in str(error.value)
    assert calls(place) == ["a seed-0 False", "b seed-0 False"]
    (place / "fails").unlink()
    start(place)
    assert calls(place)[2:] == ["b seed-0 True", "a seed-1 False", "b seed-1 False"]


def test_a_run_that_ends_well_without_a_summary_has_failed(place):
    (place / "stand_in.py").write_text("print('done')")
    with pytest.raises(RunFailed, match="exit code 0"):
        start(place)


@pytest.mark.parametrize("when", ["in the middle", "at the end"])
def test_a_signal_reaches_the_run_which_saves_and_nothing_else_is_started(place, when):
    (place / "waits").write_text(when)
    code = (
        "import sys; from rich.console import Console; from fe_posttrain.recipe.comparing import RunFailed, run_all\n"
        "from fe_posttrain.recipe.comparison import read_comparison\n"
        "comparison = read_comparison(sys.argv[1], with_recipes=False)\n"
        "try:\n    run_all(comparison, sys.argv[2], sys.argv[3], Console())\n"
        "except RunFailed as failed:\n    print(failed); sys.exit(failed.code)"
    )
    words = [place / "c.yaml", place / "out", place / "stand_in.py"]
    child = subprocess.Popen([sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (place / "waiting").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGTERM)
    said, _ = child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGTERM, said
    assert (place / "out/a/seed-0/saved").exists()
    assert calls(place) == ["a seed-0 False"]


def described(folder: Path, arm: str, place: Path, **changed) -> None:
    """A finished run in `folder` whose recipe.yaml is that of an arm, with keys changed."""
    comparison = read_comparison(str(place / "c.yaml"), with_recipes=False)
    run = next(run for run in comparison.runs(str(place / "out")) if run.arm.label == arm)
    settings, args, model = resolve(run.arm.recipe, run.words[2:])
    tokens = {"eos_token": None, "pad_token": None}
    recipe = resolved([vars(settings), vars(model), args.to_dict(), tokens], [place / "stand_in.py"]) | changed
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "summary.json").write_text("{}")


def test_a_finished_run_of_the_same_recipe_stays(place):
    described(place / "out/a/seed-0", "a", place)
    assert "[1/4] a seed 0: finished before" in start(place)
    assert len(calls(place)) == 3


@pytest.mark.parametrize(
    ("changed", "told"), [({"beta": 0.7}, "beta: 0.7 there, 0.05 now"), ({"max_grad_norm": 9.0}, "max_grad_norm: 9.0")]
)
def test_a_run_of_another_recipe_is_refused_before_anything_starts(place, changed, told):
    described(place / "out/a/seed-0", "a", place, **changed)
    with pytest.raises(RecipeError) as error:
        start(place)
    assert told in str(error.value) and "write another --output_dir" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (place / "calls").exists()


def test_a_file_that_changed_since_is_told(place):
    described(place / "out/a/seed-0", "a", place)
    (place / "stand_in.py").write_text(STAND_IN + "# changed\n")
    with pytest.raises(RecipeError, match=r"content of .*stand_in\.py"):
        start(place)


def test_printed_commands_are_those_of_unfinished_runs(place, capsys):
    (place / "out/a/seed-0").mkdir(parents=True)
    (place / "out/a/seed-0/summary.json").write_text("{}")
    (place / "out/b/seed-0").mkdir(parents=True)
    (place / "out/b/seed-0/metrics.jsonl").write_text("")
    comparison = read_comparison(str(place / "c.yaml"), with_recipes=False)
    print_commands(comparison, str(place / "out"), "scripts/train.py")
    lines = capsys.readouterr().out.splitlines()
    recipe = ROOT / "recipes" / "rl.yaml"
    assert lines[0] == (
        f"python scripts/train.py --config {recipe} --output_dir {place}/out/b/seed-0 --beta 0.1 --seed 0 "
        "--run_name b-seed-0 --wandb_run_group two --wandb_job_type b --resume"
    )
    assert len(lines) == 3 and not any("--resume" in line for line in lines[1:])
    assert not (place / "calls").exists()


TRIES = """
import json, sys
from pathlib import Path

words = sys.argv[1:]
folder = Path(words[words.index("--output_dir") + 1])
rate = words[words.index("--learning_rate") + 1]
with open(Path(__file__).with_name("calls"), "a") as calls:
    calls.write(f"{folder.parent.name} {folder.name} {rate}\\n")
sys.path.insert(0, METHODS)
from fake_runs import report, told, write
reached = {("a", "0.001"): 3, ("a", "0.01"): 6, ("b", "0.001"): 5, ("b", "0.01"): 5}[folder.parent.name, rate]
write(folder, told(report(5, 0.4, [reached, reached], screened=[1, 1])))
"""


@pytest.fixture
def tried(place):
    (place / "stand_in.py").write_text(TRIES.replace("METHODS", repr(str(ROOT / "tests" / "methods"))))
    content = yaml.safe_load((place / "c.yaml").read_text())
    content |= {"tune": {"learning_rate": [1e-3, 1e-2]}, "tuning_seed": 7, "seeds": [0]}
    (place / "c.yaml").write_text(yaml.safe_dump(content))
    return place


def test_trials_come_first_and_the_best_value_of_each_arm_is_run(tried, monkeypatch):
    monkeypatch.setattr("fe_posttrain.recipe.comparing._differences", lambda run: [])
    printed = start(tried)
    trials = [f"{arm} trial-{i} {rate}" for arm in "ab" for i, rate in ((1, "0.001"), (2, "0.01"))]
    # b reaches the same with both: the first is taken
    assert calls(tried) == [*trials, "a seed-0 0.01", "b seed-0 0.001"]
    assert "[2/4] a trial 2: finished" in printed and "[2/2] b seed 0: finished" in printed
    comparison = read_comparison(str(tried / "c.yaml"), with_recipes=False)
    found = trials_of(comparison, str(tried / "out"))
    assert [(one["pass_1"], one["chosen"]) for one in found["a"]] == [(0.375, False), (0.75, True)]
    assert [(one["pass_1"], one["chosen"]) for one in found["b"]] == [(0.625, True), (0.625, False)]
    start(tried)
    assert len(calls(tried)) == 6


def test_what_is_not_tried_out_is_not_chosen(tried, capsys):
    comparison = read_comparison(str(tried / "c.yaml"), with_recipes=False)
    write(tried / "out/a/trial-1", told(report(5, 0.4, [3, 3], screened=[1, 1])))
    print_commands(comparison, str(tried / "out"), str(tried / "stand_in.py"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("--run_name ")[1].split()[0] for line in lines[:-1]] == ["a-trial-2", "b-trial-1", "b-trial-2"]
    assert lines[-1].startswith("# trials: ")
    assert trials_of(comparison, str(tried / "out"))["a"][0]["chosen"] is False
