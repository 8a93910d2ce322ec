"""A real wandb run, offline: what is logged arrives; a service that dies and a server that is not there do no harm."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import wandb

from fe_posttrain.view import wandb_run
from fe_posttrain.view.wandb_run import WandbCallback

STATE = {"is_world_process_zero": True}


def log(board: WandbCallback, step: int, **logs) -> None:
    board.on_log(None, SimpleNamespace(global_step=step, **STATE), None, logs=logs)


def test_logged_rows_and_the_recipe_arrive_in_an_offline_run(tmp_path):
    said = []
    with WandbCallback(tmp_path, {"beta": 0.25, "hub_token": "<hidden>"}, said.append) as board:
        log(board, 1, loss=2.0, **{"free_energy/total": -0.5})
        log(board, 2, loss=1.0, eval_loss=3.0)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    command = Path(sys.executable).parent / "wandb"
    shown = subprocess.run(
        [str(command), "leet", "inspect", "--summary", "--json", str(run)], capture_output=True, text=True, timeout=60
    )
    assert shown.returncode == 0, shown.stderr
    text = json.dumps(json.loads(shown.stdout))
    for wanted in ("train/free_energy/total", "train/loss", "eval/loss", "train/global_step"):
        assert wanted in text
    assert said == []


def test_a_service_that_dies_is_said_once_and_training_goes_on(tmp_path):
    said = []
    with WandbCallback(tmp_path, {}, said.append) as board:
        log(board, 1, loss=2.0)
        for child in psutil.Process().children(recursive=True):
            if "wandb" in child.name():
                os.kill(child.pid, signal.SIGKILL)
                child.wait(10)
        for step in range(2, 6):
            log(board, step, loss=1.0)
    assert len(said) == 1 and said[0].startswith("wandb: died at step") and "training goes on" in said[0]


@pytest.mark.parametrize("server", ["no login", "not started"])
def test_no_login_and_no_server_turn_the_run_into_an_offline_one(tmp_path, monkeypatch, server):
    wandb.teardown()  # it keeps what it once read of the environment
    monkeypatch.setattr(wandb_run, "PATIENCE", 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE")
    if server == "not started":
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    said = []
    with WandbCallback(tmp_path, {}, said.append) as board:
        log(board, 1, loss=1.0)
    assert len(said) == 1 and server in said[0]
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    wandb.teardown()
