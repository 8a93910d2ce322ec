"""What a run writes down: events in order, samples as Parquet, both cut when a run resumes."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from fe_posttrain.training.recording import RolloutSamples, RunRecorder, as_text, tell
from fe_posttrain.training.run import RunFolder

SAMPLE = {"model": "policy", "prompt": "x", "completion": "y", "energy": -1.0, "log_ratio": float("nan")}


def at(step: int, steps: int = 50) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, max_steps=steps, is_world_process_zero=True)


def a_trainer(*callbacks, step: int = 0, main: bool = True) -> SimpleNamespace:
    return SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=main),
        callback_handler=SimpleNamespace(callbacks=list(callbacks)),
        args=SimpleNamespace(reward_energy_weight=2.0),
        state=at(step),
        control=None,
        stopped_early=False,
        reward_weights=SimpleNamespace(cpu=lambda: SimpleNamespace(numpy=lambda: np.array([1.0, 0.5]))),
    )


def events(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in folder.events.read_text().splitlines()]


def test_an_event_is_a_row_and_its_samples_a_file(tmp_path):
    recorder = RunRecorder(folder := RunFolder(tmp_path / "run"))
    tell(a_trainer(recorder, step=7), "probe", report={"gain": 1.5}, samples=[SAMPLE])
    (row,) = events(folder)
    assert (row["step"], row["event"], row["report"]) == (7, "probe", {"gain": 1.5})
    assert row["samples"] == "samples/probe-000007.parquet"
    (kept,) = pq.read_table(folder.path / row["samples"]).to_pylist()
    assert kept == {
        "step": 7,
        "event": "probe",
        "family": None,
        "correct": None,
        "regime": None,
        **SAMPLE,
        "log_ratio": None,  # no number
    }


def test_other_processes_than_the_main_one_tell_nothing(tmp_path):
    recorder = RunRecorder(folder := RunFolder(tmp_path / "run"))
    tell(a_trainer(recorder, main=False), "probe", report={})
    assert not folder.events.exists()


def test_samples_that_find_no_room_cost_a_warning(tmp_path, caplog):
    recorder = RunRecorder(folder := RunFolder(tmp_path / "run"))
    (folder.path / "samples").write_text("a file in the way")
    with caplog.at_level(logging.WARNING):
        tell(a_trainer(recorder), "rollouts", samples=[SAMPLE])
    assert events(folder)[0]["samples"] is None and "was not written" in caplog.text


def test_a_resumed_run_goes_on_after_the_events_of_its_checkpoint(tmp_path):
    recorder = RunRecorder(folder := RunFolder(tmp_path / "run"))
    trainer = a_trainer(recorder)
    recorder.on_train_begin(None, at(0), None)
    kept = json.loads(json.dumps(recorder.checkpoint_state()))
    tell(trainer, "fault", message="of a step that is done again")
    again = RunRecorder(folder)
    again.load_checkpoint_state(kept)
    again.on_train_begin(None, at(3), None)
    rows = events(folder)
    assert [row["event"] for row in rows] == ["start", "resume"] and rows[1]["seconds"] >= rows[0]["seconds"]


@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_how_a_run_ended_is_its_last_event(tmp_path, status):
    recorder = RunRecorder(folder := RunFolder(tmp_path / "run"))
    trainer = a_trainer(recorder, step=9)
    trainer.stopped_early = status == "stopped"
    recorder.bind(trainer)
    try:
        with recorder:
            if status == "failed":
                raise FloatingPointError("the loss is no number")
    except FloatingPointError:
        pass
    error = "FloatingPointError: the loss is no number" if status == "failed" else None
    assert [(row["step"], row["status"], row["error"]) for row in events(folder)] == [(9, status, error)]


def test_rollouts_are_told_with_their_energy_and_log_ratio():
    told = []
    listener = SimpleNamespace(on_event=lambda *_, event, content: told.extend(content["samples"]))
    sampler = RolloutSamples(count=2)
    sampler.bind(trainer := a_trainer(listener))
    rollouts = SimpleNamespace(
        inputs=[{"prompt": f"x{i}", "family": "tail"} for i in range(3)],
        completions=["a", "b", [{"role": "assistant", "content": "c"}]],
        mine=slice(3, 6),  # of six rows of two processes
        rewards=np.array([[9.0, 9.0]] * 3 + [[1.0, 0.0], [0.0, 0.0], [1.0, np.nan]]),
        log_policy=np.array([0.0, 0.0, 0.0, -1.0, -2.0, -3.0]),
        log_reference=np.array([0.0, 0.0, 0.0, -4.0, -2.0, -2.5]),
    )
    sampler.on_rollouts(trainer.args, trainer.state, None, rollouts)
    # energy: -w_r (reward 1 + half of reward 2), w_r = 2; the first and the last of this process's three rows
    assert [(s["prompt"], s["completion"], s["energy"], s["log_ratio"]) for s in told] == [
        ("x0", "a", -2.0, 3.0),
        ("x2", "c", -2.0, -0.5),
    ]
    assert [step for step in range(50) if sampler.wants_rollouts(at(step))] == [0, 10, 20, 30, 40]


def test_messages_are_read_as_text():
    assert as_text("x") == "x" and as_text([{"role": "user", "content": "x"}]) == "x"
    assert as_text([{"role": "system", "content": "s"}, {"role": "user", "content": None}]) == "[system] s\n[user] "
