"""Real wandb runs, offline: what is logged arrives row by row; whatever happens to wandb does training no harm."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import wandb

from fe_posttrain.view.board import mirror
from fe_posttrain.view.board.mirror import WandbCallback, kind_of, offline_runs
from fe_posttrain.view.board.replay import NotOnline, replay
from fe_posttrain.view.board.server import answers

CONFIG = {"beta": 0.25, "hub_token": "<hidden>", "wandb_run_group": "a comparison", "wandb_job_type": "arm 1"}


def inspected(run: Path, *words: str) -> str:
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", *words, str(run)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def history(run: Path) -> list[dict]:
    """Rows of numbers in a wandb run, without tables and wandb's own."""
    records = [json.loads(line) for line in inspected(run).splitlines()]
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{k: v for k, v in item.items() if k.startswith(("train/", "eval/"))} for item in items]


def a_run(folder: Path, rows: list[dict], events: list[dict] = (), torn: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text("beta: 0.25\nreward_energy_weight: 1.0\n")
    lines = [json.dumps({"seconds": float(row["step"])} | row) + "\n" for row in rows]
    (folder / "metrics.jsonl").write_text("".join(lines) + torn)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def state(step: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, is_world_process_zero=True)


def begun(folder: Path, said: list, kept: dict | None = None, config: dict = CONFIG) -> WandbCallback:
    board = WandbCallback(folder, config, said.append)
    if kept:
        board.load_checkpoint_state(kept)
    board.on_train_begin(None, state(0), None)
    return board


def log(board: WandbCallback, step: int, **logs) -> None:
    board.on_log(None, state(step), None, logs=logs)


def test_rows_tables_recipe_and_arm_arrive_in_an_offline_run(tmp_path):
    said, sample = [], {"model": "policy", "prompt": "x", "completion": "y", "energy": -1.0}
    with begun(a_run(tmp_path, []), said) as board:
        log(board, 1, loss=2.0, broken=float("nan"), **{"free_energy/total": -0.5})
        board.on_event(None, state(1), None, event="rollouts", content={"samples": [sample]})
        log(board, 2, loss=1.0, eval_loss=3.0)
    (run,) = offline_runs(tmp_path)
    assert history(run) == [
        {"train/loss": 2.0, "train/free_energy/total": -0.5, "train/global_step": 1},
        {"train/loss": 1.0, "eval/loss": 3.0, "train/global_step": 2},
    ]
    found = json.loads(inspected(run, "--summary"))
    assert found["project"] == "fe_posttrain" and found["config"]["beta"] == 0.25
    assert found["config"]["hub_token"] == "<hidden>"
    assert '"run_group":"a comparison"' in inspected(run) and '"job_type":"arm 1"' in inspected(run)
    assert list((run / "files" / "media" / "table").rglob("samples*.table.json"))
    assert said == []


def test_a_service_that_dies_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "PAUSE", 0)
    said = []
    with begun(a_run(tmp_path, []), said) as board:
        log(board, 1, loss=2.0)
        for child in psutil.Process().children(recursive=True):
            if "wandb" in child.name():
                os.kill(child.pid, signal.SIGKILL)
                child.wait(10)
        for step in range(2, 6):
            log(board, step, loss=1.0)
    assert len(said) == 1 and said[0].startswith("wandb: died at step") and "training goes on" in said[0]


def test_settings_that_wandb_refuses_cost_the_mirror_and_not_the_training(tmp_path, monkeypatch):
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    said = []
    with begun(a_run(tmp_path, []), said) as board:
        log(board, 1, loss=1.0)
    assert said and all(line.startswith("wandb: not started: ") for line in said)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()


@pytest.mark.parametrize("server", ["no login", "does not answer", "not started"])
def test_no_login_and_no_server_turn_the_run_into_an_offline_one(tmp_path, monkeypatch, server):
    wandb.teardown()  # it keeps what it once read of the environment
    monkeypatch.setattr(mirror, "START", 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE")
    if server != "no login":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    if server == "not started":  # one that answers, and then does not take the run
        monkeypatch.setattr(mirror, "answers", lambda url: True)
    said, started = [], time.time()
    with begun(a_run(tmp_path / "run", []), said) as board:
        assert time.time() - started < 8
        log(board, 1, loss=1.0)
    assert len(said) == 1 and server in said[0]
    assert server != "does not answer" or "http://127.0.0.1:9 does not answer" in said[0]
    assert history(offline_runs(tmp_path / "run")[0]) == [{"train/loss": 1.0, "train/global_step": 1}]
    wandb.teardown()


def test_a_server_that_says_nothing_is_given_up_in_time(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.time()
        assert not answers(f"http://127.0.0.1:{silent.getsockname()[1]}", patience=0.5)
        assert time.time() - started < 2
    assert not answers("http://127.0.0.1:9")


def test_a_file_named_wandb_is_left_alone(tmp_path):
    folder, said = a_run(tmp_path / "run", []), []
    (folder / "wandb").write_text("mine")
    with begun(folder, said) as board:
        log(board, 1, loss=1.0)
    assert history(offline_runs(folder)[0]) == [{"train/loss": 1.0, "train/global_step": 1}]
    assert (folder / "wandb").read_text() == "mine" and said == []


def test_a_resumed_offline_run_is_whole_under_its_id_and_the_first_half_is_put_aside(tmp_path):
    folder, said = a_run(tmp_path / "run", []), []
    with begun(folder, said) as board:
        for step in (1, 2, 3):
            log(board, step, loss=1 / step)
        kept = board.checkpoint_state()
    time.sleep(1)  # the folder's name is a second and the id
    a_run(folder, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1 / 2}])  # as cut to the checkpoint of step 2
    with begun(folder, said, kept) as again:
        log(again, 3, loss=1 / 3)
        log(again, 4, loss=1 / 4)
    (run,) = offline_runs(folder)
    assert again.id == kept["id"] and run.name.endswith(kept["id"])
    assert history(run) == [{"train/loss": 1 / step, "train/global_step": step} for step in (1, 2, 3, 4)]
    assert len(list((folder / "wandb" / mirror.ASIDE).iterdir())) == 1 and said == []


def test_rows_that_the_server_has_are_not_logged_again(monkeypatch):
    monkeypatch.setattr(mirror, "PAUSE", 0)
    logged = []
    there = SimpleNamespace(
        resumed=True, summary={"train/global_step": 2}, define_metric=lambda *_, **__: None, log=logged.append
    )
    board = mirror.Board(there)
    for step in (1, 2, 3):
        board.row(step, {"loss": 1.0})
    assert [row["train/global_step"] for row in logged] == [3]


def test_a_replayed_run_is_the_run_folder_row_by_row(tmp_path):
    rows = [{"step": step, "seconds": 1.5 * step, "loss": 1 / step, "entropy": None} for step in range(1, 6)]
    events = [
        {"step": 0, "seconds": 0.5, "event": "start", "steps": 9, "time": 1e9},
        {"step": 2, "seconds": 3.2, "event": "resume", "steps": 9, "time": 2e9},
    ]
    folder = a_run(tmp_path / "run", rows, events, torn='{"step": 6, "sec')
    made = replay(folder)
    assert (made.rows, made.events) == (5, 2) and Path(made.place).parent == folder / "wandb"
    assert history(Path(made.place)) == [{"train/loss": 1 / i, "train/global_step": i} for i in range(1, 6)]
    records = [json.loads(line) for line in inspected(Path(made.place)).splitlines()]
    times = [r["history"]["item"]["_timestamp"] for r in records if r["type"] == "history"]
    assert times == pytest.approx([1e9 + 1, 1e9 + 2.5, 2e9 + 1.3, 2e9 + 2.8, 2e9 + 4.3])
    time.sleep(1)
    again = replay(folder)
    assert again.id == made.id and offline_runs(folder) == [Path(again.place)]


def test_replay_says_what_it_cannot_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no run folder"):
        replay(tmp_path)
    monkeypatch.setattr("fe_posttrain.view.board.replay.logged_in", lambda: False)
    with pytest.raises(NotOnline, match="no login"):
        replay(a_run(tmp_path / "run", []), online=True)
    monkeypatch.setattr("fe_posttrain.view.board.replay.logged_in", lambda: True)
    monkeypatch.setattr("fe_posttrain.view.board.replay.answers", lambda url: False)
    with pytest.raises(NotOnline, match="does not answer"):
        replay(tmp_path / "run", online=True)


def test_the_default_job_type_is_what_the_objective_is():
    assert kind_of({"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}) == "sft"
    assert kind_of({"reward_energy_weight": 1.0, "demonstration_energy_weight": 0.5}) == "mixture"
    assert kind_of({"reward_energy_weight": 0.0, "beta": 0.0, "beta_schedule": {"linear": {"final": 0.1}}}) == "rl"
    on_demonstrations = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.1}
    assert kind_of({**on_demonstrations, "kl_sampler": "demonstrations"}) == "sft"
    assert kind_of({**on_demonstrations, "kl_sampler": "policy"}) == "mixture"
