"""Alarms on series made by hand, whose firing row is derived in the test's words; on a run; in a recipe."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import small
from transformers import PrinterCallback

from fe_posttrain import Alarms, FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.training.alarms import BLIND_AFTER, KINDS
from fe_posttrain.view.catalogue import find

ROOT = Path(__file__).parents[2]
MAIN = SimpleNamespace(is_world_process_zero=True)


def fires(name: str, rows: list[dict]) -> list[int]:
    """Rows, counted from 1, at which an episode of this alarm begins."""
    alarms = Alarms(say=lambda line: None)
    found = []
    for step, row in enumerate(rows, 1):
        before = alarms.metrics_to_log().get(f"alarms/{name}", 0)
        log(alarms, step, row)
        found += [step] * int(alarms.metrics_to_log().get(f"alarms/{name}", 0) - before)
    return found


def log(alarms: Alarms, step: int, row: dict) -> None:
    MAIN.global_step = step
    alarms.on_log(None, MAIN, None, {"loss": 0.0} | row)


def then(*stretches: tuple[int, dict]) -> list[dict]:
    return [row for count, row in stretches for _ in range(count)]


def kl(value: float, reward: float = 0.5, beta: float = 0.01) -> dict:
    return {"free_energy/kl": value, "free_energy/reward": -reward, "free_energy/beta": beta}


def test_kl_that_jumps_for_nothing_fires_when_most_of_the_window_has_jumped():
    """A share s of the 16 rows at 30 nats: mean 30 s, standard error 30 sqrt(s (1 - s) / 15), five of which are below
    the mean from s / (1 - s) > 25 / 15 on, that is from 11 rows of 16 (10 are .625 exactly). The drift by then is at
    most the sum of the means over 64, 2.2 nats: 20.6 - 2.2 > 18.0."""
    assert fires("kl_runaway", then((8, kl(0.0)), (92, kl(30.0)))) == [8 + 11]


def test_a_policy_that_breaks_at_once_fires_with_the_eighth_row():
    assert fires("kl_runaway", then((40, kl(40.0)))) == [8]


def test_kl_that_the_reward_pays_for_or_that_creeps_is_no_runaway():
    """Paid: .6 of reward for 30 nats at .01 a nat is .3. Creeping: one nat in 10 rows settles 6.4 above its anchor,
    which drifts by 1/64 of the distance a row."""
    assert fires("kl_runaway", then((8, kl(0.0, 0.2)), (92, kl(30.0, 0.8)))) == []
    assert fires("kl_runaway", [kl(n / 10) for n in range(400)]) == []
    assert fires("kl_runaway", then((8, kl(0.0, 0.2, beta=0.5)), (92, kl(30.0, 0.8, beta=0.5)))) == [19]  # too dear


def rollouts(reward: float, entropy: float = 0.1, zero_std: float = 0.0, std: float = 0.5, **more) -> dict:
    row = {"reward": reward, "reward_std": std, "entropy": entropy, "frac_reward_zero_std": zero_std}
    return row | {key.replace("__", "/"): value for key, value in more.items()}


def test_entropy_that_is_gone_while_the_reward_is_below_its_start_fires():
    """Windows are compared with the first 8 rows once they hold none of them: row 32."""
    assert fires("entropy_collapse", then((8, rollouts(0.5)), (60, rollouts(0.3, 0.005)))) == [32]
    assert fires("entropy_collapse", then((8, rollouts(0.5)), (60, rollouts(0.3, 0.011)))) == []  # a tenth is .01


@pytest.mark.parametrize(
    ("start", "end"),
    [(0.5, 1.0), (0.3, 0.75), (1.0, 1.0)],
    ids=["solved", "what can be solved is", "nothing was left to learn"],
)
def test_entropy_that_bought_something_is_convergence(start, end):
    rows = then((8, rollouts(start)), (1, rollouts(1.0)), (60, rollouts(end, 0.001, zero_std=1.0, std=0.0)))
    assert fires("entropy_collapse", rows) == fires("zero_signal", rows) == []


def test_entropy_is_judged_by_what_is_correct_where_that_is_known():
    rows = then((8, rollouts(0.5, support__correct=0.5)), (60, rollouts(1.0, 0.001, support__correct=0.1)))
    assert fires("entropy_collapse", rows) == [32]


def test_groups_without_signal_fire_below_the_ceiling_only():
    nothing = rollouts(0.0, zero_std=1.0, std=0.0)
    assert fires("zero_signal", then((60, nothing))) == [32]
    assert fires("zero_signal", then((60, rollouts(1.0, zero_std=1.0, std=0.0)))) == []
    assert fires("zero_signal", then((60, rollouts(0.0, zero_std=0.95, std=0.1)))) == []
    assert fires("zero_signal", then((60, nothing | {"free_energy/demonstration": 3.0}))) == []
    lost = then((32, rollouts(0.6)), (60, nothing))
    assert fires("zero_signal", lost) == [32 + 24]  # the first window of which .98 are without signal


def test_an_episode_fires_once_and_again_after_it_was_over():
    """Two rows with signal among 24 bring the mean to .917, below .93: over. The window holds none of them 24 rows
    after the second."""
    nothing, some = rollouts(0.0, zero_std=1.0, std=0.0), rollouts(0.0, zero_std=0.0, std=0.0)
    assert fires("zero_signal", then((40, nothing), (1, some), (40, nothing))) == [32]  # .958: not over
    assert fires("zero_signal", then((40, nothing), (2, some), (40, nothing))) == [32, 42 + 24]


def test_prompts_that_lose_their_hits_fire():
    """A share s of 24 rows at 1 and the rest at .25: .75 s above the best, against 6 x .75 sqrt(s (1 - s) / 23):
    s / (1 - s) > 36 / 23 from 15 rows of 24 on."""
    row = "support/zero_hit_prompts"
    assert fires("support_collapse", then((24, {row: 0.25}), (40, {row: 1.0}))) == [24 + 15]
    assert fires("support_collapse", then((24, {row: 0.25}), (40, {row: 0.5}))) == []  # a quarter is not more than one
    assert fires("support_collapse", then((24, {row: 1.0}), (40, {row: 0.25}))) == []


def test_certified_losses_fire_at_ten_points_and_end_below_five():
    lost = [{"support/lost_low": value} for value in (3.4, 9.9, 10.0, 12.0, 6.0, 11.0, 4.0, 10.5)]
    assert fires("support_collapse", lost) == [3, 8]


def paid(reward: float, **more: float) -> dict:
    return {"reward": reward, "reward_std": 0.5} | more


def test_a_reward_that_rises_while_nothing_more_is_correct_fires():
    """d = (1 - 0) / .5 = 2, so 10 points are wanted; clear from row 32 on, and for 24 rows running in row 55."""

    def rows(correct: float) -> list[dict]:
        return then((8, paid(0.0, **{"support/correct": 0.2})), (60, paid(1.0, **{"support/correct": correct})))

    assert fires("verifier_exploitation", rows(0.2)) == [55]
    assert fires("verifier_exploitation", rows(0.29)) == [55]
    assert fires("verifier_exploitation", rows(0.31)) == []
    assert fires("verifier_exploitation", rows(1.0)) == []


@pytest.mark.parametrize(
    ("at_probes", "expected"),
    [
        ({"support/gain": 3.0}, [50]),
        ({"support/gain": 12.0}, []),
        ({"testbed/p/basin": 0.55, "testbed/p/barrier": 0.05}, [50]),  # from .25 to .30 on average
        ({"testbed/p/basin": 0.9, "testbed/p/barrier": 0.0}, []),
        ({"support/guess_floor": 0.9, "support/correct": 1.0}, [50]),
        ({"support/guess_floor": 0.5, "support/correct": 1.0}, []),
    ],
)
def test_held_out_prompts_that_stand_still_fire_at_the_second_probe(at_probes, expected):
    rows = then((8, paid(0.0)), (60, paid(1.0)))
    if "support/correct" in at_probes:
        rows = [row | {"support/correct": row["reward"]} for row in rows]
    rows[0] |= {key: value for key, value in (("testbed/p/basin", 0.5), ("testbed/p/barrier", 0.0)) if key in at_probes}
    for step in (40, 50):
        rows[step - 1] = rows[step - 1] | at_probes
    assert fires("verifier_exploitation", rows) == expected


def test_a_probe_that_cannot_tell_is_no_reason():
    """The gain's upper end, told by the probe's event, counts: 3 points that may be 14 are not below 10."""
    for high, count in ((14.0, 0), (9.0, 1)):
        alarms = Alarms(say=lambda line: None)
        for step, row in enumerate(then((8, paid(0.0)), (60, paid(1.0))), 1):
            if step in (40, 50):
                verdict = {"gain": {"value": 3.0, "low": -8.0, "high": high}}
                alarms.on_event(None, MAIN, None, "probe", {"report": {"verdict": verdict}})
                row = row | {"support/gain": 3.0}
            log(alarms, step, row)
        assert alarms.metrics_to_log() == {"alarms/verifier_exploitation": count}


def everything(step: int) -> dict:
    """A run that goes wrong in every way after step 60, with a probe every ten."""
    good = step <= 60
    row = kl(1.0 if good else 60.0, 0.5) | rollouts(0.5 if good else 0.1, 0.1 if good else 0.001, 0.2 if good else 1.0)
    row |= {"support/correct": 0.5 if good else 0.1, "support/zero_hit_prompts": 0.1 if good else 0.9}
    return row | ({"support/gain": 20.0, "support/lost_low": 0.0} if step % 10 == 0 else {})


@pytest.mark.parametrize("cut", [5, 70, 90, 120], ids=["first rows", "no episode", "some", "all"])
def test_resumed_alarms_are_those_that_were_never_interrupted(cut):
    whole, broken = Alarms(say=lambda line: None), Alarms(say=lambda line: None)
    for step in range(1, 150):
        log(whole, step, everything(step))
        if step <= cut:
            log(broken, step, everything(step))
    resumed = Alarms(say=lambda line: None)
    resumed.load_checkpoint_state(json.loads(json.dumps(broken.checkpoint_state())))
    for step in range(cut + 1, 150):
        log(resumed, step, everything(step))
    assert resumed.checkpoint_state() == whole.checkpoint_state()
    counts = {name: count for name, count in whole.metrics_to_log().items() if count}
    assert counts == dict.fromkeys(
        [f"alarms/{name}" for name in KINDS if name != "verifier_exploitation"], 1.0
    )  # the reward fell
    assert all(find(name).group == "alarms" for name in counts)


def test_memory_does_not_grow_and_numbers_that_are_none_are_left_out():
    alarms = Alarms(say=lambda line: None)
    sizes = []
    for step in range(1, 400):
        row = everything(step)
        log(alarms, step, row | {"free_energy/kl": float("nan"), "reward": float("inf")} if step % 7 == 0 else row)
        sizes.append(len(json.dumps(alarms.checkpoint_state(), allow_nan=False)))
    assert max(sizes[-100:]) < 1.2 * max(sizes[:100])


def test_what_an_alarm_cannot_see_is_said_once():
    said = []
    alarms = Alarms(say=said.append)
    for step in range(1, 3 * BLIND_AFTER):
        log(alarms, step, {"entropy": 0.1, "free_energy/demonstration": 3.0})  # as SFT logs
    (line,) = said
    assert all(name in line for name in KINDS) and "support_steps" in line
    assert alarms.metrics_to_log() == {}


def unpaid(completions, **_) -> list[float]:
    return [0.0] * len(completions)


def trained(folder: Path, alarms: Alarms, resume=None) -> FreeEnergyTrainer:
    words = small.SETTINGS | small.ROLLOUTS | {"save_strategy": "steps", "save_steps": 100, "max_steps": 45}
    args = FreeEnergyConfig(str(folder), **words | {"beta": 0.1, "max_completion_length": 4})
    trainer = FreeEnergyTrainer(
        small.model(), unpaid, args, small.prompts(20), processing_class=small.TOKENIZER, callbacks=[alarms]
    )
    trainer.remove_callback(PrinterCallback)
    trainer.stop_requested = lambda: alarms.stopping is not None
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class Listening(Alarms):
    """Alarms that keep the events, and what is logged."""

    def __init__(self, **words):
        super().__init__(say=lambda line: None, **words)
        self.events, self.rows = [], []

    def on_event(self, args, state, control, event, content):
        self.events.append((event, state.global_step, content))

    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs, **kwargs)
        self.rows.append(dict(logs))


def test_an_alarm_stops_a_run_with_a_checkpoint_that_goes_on(tmp_path, caplog):
    alarms = Listening(stop_on=["zero_signal"])
    with caplog.at_level(logging.WARNING, "fe_posttrain.training.alarms"):
        trainer = trained(tmp_path, alarms)
    assert trainer.stopped_early and trainer.state.global_step == 33  # the row of step 32 is logged when it is over
    assert (tmp_path / "checkpoint-33").is_dir()
    ((event, step, content), *later) = alarms.events
    assert (event, step, content["alarm"]) == ("alarm", 32, "zero_signal")
    assert [name for name, _, _ in later] == ["checkpoint"]
    assert (content["value"], content["threshold"], content["since"]) == (1.0, 0.98, 9)
    assert content["message"] == alarms.stopping
    for part in ("zero_signal since step 9", "100% of the groups", "reward 0.00", "give easier prompts"):
        assert part in content["message"]
    assert [r.message for r in caplog.records] == [f"alarm {content['message']}"]
    assert [row["alarms/zero_signal"] for row in alarms.rows[32:33]] == [1.0]

    again = Listening(stop_on=["zero_signal"])
    assert trained(tmp_path, again, resume=True).state.global_step == 45
    assert again.stopping is None and not [event for event in again.events if event[0] == "alarm"]
    assert again.rows[0]["alarms/zero_signal"] == 1.0


def test_a_stop_that_was_not_agreed_on_yet_is_still_asked_for_after_a_resume():
    alarms = Alarms(["zero_signal"])
    alarms.trainer = SimpleNamespace(
        stopped_early=False,
        accelerator=SimpleNamespace(is_main_process=True),
        callback_handler=SimpleNamespace(callbacks=[]),
    )
    for step in range(1, 40):
        log(alarms, step, rollouts(0.0, zero_std=1.0, std=0.0))
    for stopped in (False, True):
        alarms.trainer.stopped_early = stopped
        other = Alarms(["zero_signal"])
        other.load_checkpoint_state(json.loads(json.dumps(alarms.checkpoint_state())))
        assert (other.stopping is None) == stopped


def test_the_door_leaves_with_code_3_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    words = {"output_dir": folder, "prompts": "{barrier: 1}", "stop_on_alarm": "[zero_signal]"}
    words |= {
        "support": "false",
        "support_batch_size": "null",
        "max_steps": 40,
        "per_device_train_batch_size": 16,
        "prompt_rows": 64,
        "probe_rows": 4,
    }
    options = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    done = subprocess.run(
        [sys.executable, "scripts/train.py", "--config", "recipes/rl.yaml", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 3, done.stderr[-3000:]
    assert "The run was stopped:\nzero_signal since step 9" in done.stderr and "Traceback" not in done.stderr
    assert f"stopped after step 33 of 40; to continue: --config recipes/rl.yaml --output_dir {folder}" in done.stderr
    assert (folder / "checkpoint-33").is_dir()
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in told if row["event"] == "alarm"] == [32]
    assert told[-1]["event"] == "end" and told[-1]["status"] == "stopped"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"stop_on_alarm": "[kl_runawy]"}, "stop_on_alarm: 'kl_runawy'; unknown; did you mean kl_runaway?"),
        ({"alarms": "false", "stop_on_alarm": "[kl_runaway]"}, "stop_on_alarm: written without alarms"),
        ({"alarm": "false"}, "alarm: unknown key; did you mean alarms?"),
    ],
)
def test_a_recipe_that_names_no_alarm_is_refused(written, message):
    options = [word for key, value in written.items() for word in (f"--{key}", value)]
    with pytest.raises(RecipeError) as error:
        resolve(ROOT / "recipes" / "rl.yaml", options)
    assert message in str(error.value)
    with pytest.raises(ValueError, match="'kl_runawy'; no alarm is called so; write some of kl_runaway, "):
        Alarms(["kl_runawy"])
