"""SupportCallback on real runs: invisible to training, exact across a resume, and never in the way."""

import math
import shutil

import numpy as np
import pytest
import short_runs
import torch
from transformers import AutoModelForCausalLM

from fe_posttrain import SupportCallback
from fe_posttrain.sequences.scoring import score
from fe_posttrain.support.ledger import Ledger
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.exact import exact_probabilities
from fe_posttrain.tasks.pretraining import reference_model


def finite(found: dict) -> dict:
    """Of a report, what can be compared with ==."""
    return {key: value for key, value in found.items() if key != "labels"}


@pytest.mark.parametrize("kind", short_runs.KINDS)
def test_training_is_bit_for_bit_what_it_is_without_the_tracker(tmp_path, kind):
    alone = short_runs.trainer(tmp_path / "alone", kind)
    alone.train()
    support = short_runs.support(tmp_path / "cache", support_steps=3, support_displacement_steps=3)
    tracked = short_runs.trainer(tmp_path / "tracked", kind, support)
    tracked.train()
    assert support.off is None and [r.step for r in support.probes.rounds] == [3, 6, 8]
    if kind != "sft":
        assert len(support.displacements.windows) >= 2
        assert support.riding.ledger.drawn.sum() == 8 * 16
    mine = short_runs.weights(tracked)
    assert all(torch.equal(value, mine[name]) for name, value in short_runs.weights(alone).items())


@pytest.mark.parametrize("kind", ["rl", "sft"])
def test_a_resumed_run_says_what_the_uninterrupted_one_says(tmp_path, kind):
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 5}
    tracking = {"support_steps": 4, "support_displacement_steps": 3}  # the checkpoint lies inside both
    found = []
    for folder in ("whole", "resumed"):
        rows, support = short_runs.Rows(), short_runs.support(tmp_path / "cache", **tracking)
        made = short_runs.trainer(tmp_path / folder, kind, support, rows, **settings)
        if folder == "resumed":
            shutil.rmtree(tmp_path / "cache")  # the bank is drawn again, and is the same
            shutil.copytree(tmp_path / "whole" / "checkpoint-5", tmp_path / folder / "checkpoint-5")
            made.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-5"))
        else:
            made.train()
        found.append((rows.rows, support.summary(), short_runs.weights(made), support.probes.ledger.state()))
    (rows, summary, weights, ledger), (rows_, summary_, weights_, ledger_) = found
    assert [row for row in rows if row["step"] > 5] == [row for row in rows_ if row["step"] > 5]
    assert summary == summary_
    assert all(torch.equal(value, weights_[name]) for name, value in weights.items())
    assert all((value == ledger_[name]).all() for name, value in ledger.items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": short_runs.probe_rows(3)}, "prompts"),
        ({"signal": short_runs.jittered, "support_threshold": 0.5}, "verifier"),
        ({"support_budget": 64}, "budget"),
    ],
)
def test_claims_are_not_carried_over_to_another_key(tmp_path, change, named):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    short_runs.trainer(tmp_path / "run", "rl", short_runs.support(tmp_path / "cache"), **settings).train()
    made = short_runs.trainer(tmp_path / "run", "rl", short_runs.support(tmp_path / "cache", **change), **settings)
    with pytest.raises(ValueError, match=f"support: {named} is .* and was"):
        made.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_the_ledger_holds_every_rollout_and_failed_rewards_as_wrong_ones(tmp_path):
    class Recorder(short_runs.Rows):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_rollouts(self, args, state, control, rollouts):
            self.seen.append(rollouts)

    def fails_on_some(prompts, completions, **columns):
        values = digits.correct(prompts, completions)
        return [float("nan") if i == 5 else value for i, value in enumerate(values)]

    support, recorder = short_runs.support(tmp_path / "cache", fails_on_some), Recorder()
    made = short_runs.trainer(
        tmp_path / "run", "rl", support, recorder, reward=fails_on_some, reward_fault_policy="mask", logging_steps=3
    )
    made.train()
    support.riding.flush()
    again = Ledger(len(support.riding.keys), 16)
    for start in range(0, 8, 3):  # rows are entered when somebody looks: here at every log
        some = recorder.seen[start : start + 3]
        prompt = np.searchsorted(support.riding.keys, np.concatenate([r.prompt for r in some]))
        correct = np.concatenate([r.rewards[:, 0] for r in some])
        again.update(prompt, correct, np.concatenate([r.log_reference - r.log_sampler for r in some]))
        assert np.isnan(correct).sum() == len(some)
    assert (again.drawn == support.riding.ledger.drawn).all() and again.drawn.sum() == 8 * 16
    assert np.allclose(again.log_wealth, support.riding.ledger.log_wealth, atol=1e-5)


class _FailsLater:
    """A signal that breaks after the reference has been drawn."""

    __name__ = "fails_later"

    def __init__(self):
        self.broken = False

    def __call__(self, prompts, completions, **columns):
        if self.broken:
            raise RuntimeError("the judge went home")
        return digits.correct(prompts, completions)


def test_a_tracker_that_fails_is_switched_off_with_its_reason_and_training_ends_well(tmp_path, caplog):
    signal, rows = _FailsLater(), short_runs.Rows()
    support = short_runs.support(tmp_path / "cache", signal, support_steps=4)
    made = short_runs.trainer(tmp_path / "run", "rl", support, rows, reward=digits.correct)
    support._prepare()
    signal.broken = True
    made.train()
    assert made.state.global_step == 8 and [row["step"] for row in rows.rows if "loss" in row] == list(range(1, 9))
    assert "the judge went home" in support.summary()["off"]
    assert "tracking is switched off, training goes on" in caplog.text
    alone = short_runs.trainer(tmp_path / "alone", "rl")
    alone.train()
    mine = short_runs.weights(made)
    assert all(torch.equal(value, mine[name]) for name, value in short_runs.weights(alone).items())


def test_what_a_person_can_mend_is_raised_before_training(tmp_path):
    def graded(prompts, completions, **columns):
        return [0.37] * len(prompts)

    with pytest.raises(ValueError, match="support_dataset_name: no probe prompts"):
        SupportCallback([], digits.correct)
    with pytest.raises(ValueError, match=r"support_threshold: graded is graded, it gave 0\.37"):
        short_runs.trainer(tmp_path / "a", "rl", short_runs.support(tmp_path / "cache", graded)).train()
    with pytest.raises(ValueError, match="support_signal: the run has no reward function"):
        short_runs.trainer(tmp_path / "b", "sft", short_runs.support(tmp_path / "cache", None)).train()
    with pytest.raises(ValueError, match="the reference moves"):
        short_runs.trainer(tmp_path / "c", "rl", short_runs.support(tmp_path / "cache"), sync_ref_model=True)


def test_the_optimum_of_the_probe_prompts_lies_between_its_ends(tmp_path):
    rows = short_runs.probe_rows(8)
    support = short_runs.support(tmp_path / "cache", rows=rows, support_draws=64, support_reference_draws=64)
    made = short_runs.trainer(tmp_path / "run", "rl", support, max_steps=6)
    reference = exact_probabilities(made.model, made.processing_class, [row["prompt"] for row in rows])
    made.train()
    found, terms = support.summary()["objective"], support.summary()["verdict"]
    optimum = float((-0.05 * torch.log1p(reference * math.expm1(1 / 0.05))).mean())
    assert found["optimum_low"] < optimum < found["optimum_high"] < 0
    p = sum(support.probes.rounds[-1].totals[0]) / (64 * len(rows))
    assert found["free_energy"] == pytest.approx(-p + 0.05 * support.summary()["kl"])
    assert terms["gain"]["value"] > 0 and found["free_energy"] > found["optimum_low"]


def test_a_probe_shows_completions_of_both_sides_as_they_were_judged_and_scored(tmp_path):
    told = []

    class Listener(short_runs.Rows):
        def on_event(self, args, state, control, event, content):
            told.append((event, content))

    support = short_runs.support(tmp_path / "cache", support_draws=8)
    made = short_runs.trainer(tmp_path / "run", "rl", support, Listener(), max_steps=4)
    reference = AutoModelForCausalLM.from_pretrained(reference_model())
    made.train()
    (content,) = [content for event, content in told if event == "probe"]
    samples, points = content["samples"], content["report"]["points"]
    assert {sample["model"] for sample in samples} == {"reference", "policy"}
    seen = {(s["model"], s["prompt"], s["correct"]) for s in samples}
    assert len(seen) == len(samples)  # of each side and prompt one correct and one wrong at most
    tokenizer = made.processing_class
    for sample in samples:
        prompt, completion = sample["prompt"], sample["completion"]
        assert sample["correct"] == bool(digits.correct([prompt], [completion])[0])
        assert sample["energy"] == (-1.0 if sample["correct"] else 0.0)
        row = points["prompt"].index(prompt)
        side = {"reference": "reference", "policy": "trained"}[sample["model"]]
        assert sample["regime"] == points["regime"][side][row] and sample["family"] == points["family"][row]
        ids = [tokenizer(completion)["input_ids"] + [tokenizer.eos_token_id]]
        logs = [score(m, tokenizer([prompt])["input_ids"], ids, pad_token_id=0)[0] for m in (made.model, reference)]
        if len(ids[0]) <= 12:  # else it was cut off without an end
            assert sample["log_ratio"] == pytest.approx(float(logs[0].sum() - logs[1].sum()), abs=1e-3)
    assert points["correct"]["trained"] == support.probes.rounds[-1].totals[0].tolist()


@pytest.mark.parametrize("kind", ["sft", "mixture"])
def test_where_the_optimum_does_not_follow_from_p_ref_none_is_given(tmp_path, kind):
    support = short_runs.support(tmp_path / "cache")
    short_runs.trainer(tmp_path / "run", kind, support, max_steps=2).train()
    assert "objective" not in support.summary()


def test_without_a_kl_there_is_no_ledger_but_a_verdict(tmp_path):
    support = short_runs.support(tmp_path / "cache")
    short_runs.trainer(tmp_path / "run", "rl", support, beta=0.0, max_steps=4).train()
    found = support.summary()
    assert found["checks"]["bar"]["verdict"] in ("passed", "not checked")
    assert found["ledger"]["training_prompts_drawn"] == 0
    assert set(found["families"]) == {"basin", "tail_10", "barrier"}


def test_a_displacement_is_the_log_ratio_of_exact_probabilities(tmp_path):
    from fe_posttrain.sequences.models import evaluating

    p = {}

    class Exact(short_runs.Rows):
        def on_rollouts(self, args, state, control, rollouts):
            with evaluating(made.model):
                prompts = [row["prompt"] for row in rollouts.inputs]
                now = exact_probabilities(made.model, made.processing_class, prompts).mean().item()
                before = windows.kept
                then = now
                if before is not None:
                    with before.swapped_in(made.model):
                        then = exact_probabilities(made.model, made.processing_class, prompts).mean().item()
            p[state.global_step] = (now, then)

    support = short_runs.support(tmp_path / "cache", support_displacement_steps=2, support_displacement_rows=64)
    made = short_runs.trainer(
        tmp_path / "run", "rl", Exact(), support, per_device_train_batch_size=128, num_generations=16, max_steps=7
    )
    support._prepare()
    windows = support.displacements
    made.train()
    assert [w.step for w in windows.windows] == [2, 4, 6, 7]
    for found in windows.windows[:3]:
        now, then = p[found.step]
        assert found.value == pytest.approx(np.log(now / then), abs=max(0.05, 4 * found.se))
    assert max(abs(w.value) for w in windows.windows) > 0.1  # something moved


def test_rollouts_that_start_inside_a_demonstration_are_in_no_ledger_and_no_closure(tmp_path):
    """They begin to count at step 4, when a quarter of the updates is made."""
    rows = digits.dataset(["tail_10", "basin"], 32, seed=0)
    rows = rows.add_column("demonstration", [digits.demonstration(x) for x in rows["prompt"]])
    support = short_runs.support(tmp_path / "cache", support_displacement_steps=2)
    settings = {"prefix_share": 0.4, "prefix_schedule": {"switch": {"final": 0.0, "until": 4}}, "max_steps": 8}
    short_runs.trainer(tmp_path / "run", "rl", support, rows=rows, **settings).train()
    assert support.riding.ledger.drawn.sum() == 4 * 16
    windows = support.displacements.windows
    assert windows[0].step - windows[0].updates == 4 and windows[-1].step == 8
    assert "closure" not in support.summary()["displacement"] and "closure" not in support.summary()["checks"]
