"""Weights of F that move with the step, in real runs: what each step descends, and what it does not touch."""

import math

import pytest
import small
import torch
from by_hand import LENGTH, assert_close, gradients_of, log_probs_with_grad, train
from pairs import Rollouts, by_place, demonstration_rows, rows, step, without_own

from fe_posttrain.sequences import sampling
from fe_posttrain.training import rollouts

SGD = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant"}
NEVER = {"switch": {"final": 1.0, "until": 1000}}  # beyond the run: the weight keeps its value


def f_by_hand(policy, reference, drawn, rewards, w_r: float, w_d: float, beta: float):
    """A scalar whose gradient is that of F's estimate: leave-one-out rows and the demonstrations of the prompts."""
    prompt_ids, completion_ids = drawn
    lines = log_probs_with_grad(policy, prompt_ids, completion_ids)
    with torch.no_grad():
        known = log_probs_with_grad(reference, prompt_ids, completion_ids)
    nats = [(a.sum() - b.sum()).item() for a, b in zip(lines, known, strict=True)]
    shaped = without_own([w_r * r - beta * k for r, k in zip(rewards, nats, strict=True)])
    loss = -sum(a * line.sum() for a, line in zip(shaped, lines, strict=True)) / len(lines)
    shown = demonstration_rows(policy, prompt_ids[::4])
    return loss - w_d * sum(line.sum() for line in shown) / len(shown)


# The weights at steps 0, 1, 2, ..., worked out from the words of the schedule.
MOVING = {
    "warm-up, then linear": (
        {
            "reward_energy_weight": 0.8,
            "reward_energy_schedule": {"linear": {"final": 0.2, "initial": 0.4, "warmup": 2, "until": 4}},
            "demonstration_energy_weight": 0.5,
            "beta": 0.1,
        },
        [(0.4, 0.5, 0.1), (0.6, 0.5, 0.1), (0.8, 0.5, 0.1), (0.5, 0.5, 0.1), (0.2, 0.5, 0.1)],
    ),
    "cosine and switch": (
        {
            "demonstration_energy_weight": 0.9,
            "demonstration_energy_schedule": {"cosine": {"final": 0.1}},  # halfway .5, a quarter .1 + .8 cos^2(pi/8)
            "beta": 0.0,
            "beta_schedule": {"switch": {"final": 0.3, "until": 2}},
        },
        [
            (1.0, 0.9, 0.0),
            (1.0, 0.1 + 0.8 * math.cos(math.pi / 8) ** 2, 0.0),
            (1.0, 0.5, 0.3),
            (1.0, 0.1 + 0.8 * math.sin(math.pi / 8) ** 2, 0.3),
            (1.0, 0.1, 0.3),
        ],
    ),
}


@pytest.mark.parametrize("name", MOVING)
def test_each_step_descends_f_at_the_weights_in_force(tmp_path, name):
    settings, weights = MOVING[name]
    calls = Rollouts()
    record, _ = train(
        tmp_path,
        settings={**SGD, "max_steps": 5, **settings},
        train_dataset=rows(),
        reward_funcs=[by_place],
        rollout_func=calls,
    )
    policy, reference = small.model(), small.model()
    for i, (w_r, w_d, beta) in enumerate(weights):
        rewards = by_place(calls.drawn[i][1])
        wanted = gradients_of(f_by_hand(policy, reference, calls.drawn[i], rewards, w_r, w_d, beta) / LENGTH, policy)
        assert_close(record.gradients[i], wanted)
        row = record.logs[i]
        assert row["free_energy/beta"] == pytest.approx(beta)
        assert row["free_energy/reward"] == pytest.approx(-w_r * 0.5)  # 8 of 16 rows are solved
        terms = row["free_energy/reward"] + row["free_energy/demonstration"] + beta * row["free_energy/kl"]
        assert row["free_energy/total"] == pytest.approx(terms, rel=1e-6)
        step(policy, wanted, SGD["learning_rate"])


class Seen:
    """The optimizer steps at which the reward was asked, and at which the sampler drew."""

    def __init__(self, monkeypatch):
        self.trainer, self.rewarded, self.sampled = None, [], []
        draw = sampling.sample

        def watched(*words, **named):
            self.sampled.append(self.trainer.state.global_step)
            return draw(*words, **named)

        monkeypatch.setattr(rollouts, "sample", watched)

    def bind(self, trainer):  # as a callback is given its trainer
        self.trainer = trainer

    def reward(self, completion_ids, trainer_state, **_):
        self.rewarded.append(trainer_state.global_step)
        return small.length_reward(completion_ids)


SFT_THEN_RL = {
    "max_steps": 6,
    "reward_energy_weight": 0.0,
    "reward_energy_schedule": {"switch": {"final": 1.0, "until": 3}},
    "demonstration_energy_weight": 1.0,
    "demonstration_energy_schedule": {"switch": {"final": 0.0, "until": 3}},
    "beta": 0.0,
    "beta_schedule": {"switch": {"final": 0.1, "until": 3}},
}


def run_sft_then_rl(tmp_path, seen, **own):
    from transformers import TrainerCallback

    binds = type("Binds", (TrainerCallback,), {"bind": lambda self, trainer: seen.bind(trainer)})()
    return train(
        tmp_path,
        settings={**SFT_THEN_RL, **own},
        reward_funcs=[seen.reward],
        demo_dataset=small.demonstrations(),
        callbacks=[binds],
    )


def test_no_rollout_is_made_while_nothing_is_taken_on_rollouts(tmp_path, monkeypatch):
    seen = Seen(monkeypatch)
    record, trainer = run_sft_then_rl(tmp_path, seen)
    assert seen.rewarded == seen.sampled == [3, 4, 5]
    spent = trainer._account.total()
    assert spent["verifier_calls"] == 3 * 16
    assert all(math.isfinite(row["free_energy/total"]) for row in record.logs) and len(record.logs) == 6
    assert record.column("free_energy/beta") == [0.0] * 3 + [0.1] * 3
    for row in record.logs[:3]:
        assert row["free_energy/total"] == row["free_energy/demonstration"] > 0 and "free_energy/kl" not in row
    for row in record.logs[3:]:
        assert row["free_energy/demonstration"] == 0.0
        terms = row["free_energy/reward"] + 0.1 * row["free_energy/kl"]
        assert row["free_energy/total"] == pytest.approx(terms, rel=1e-6)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_row_over_several_steps_is_the_mean_of_their_rows(tmp_path, monkeypatch, accumulation):
    """Three steps of demonstrations and three of rollouts in one logged row."""
    own = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 16 // accumulation}
    own["per_device_demonstration_batch_size"] = 16 // accumulation
    single, _ = run_sft_then_rl(tmp_path, Seen(monkeypatch), **own)
    whole, _ = run_sft_then_rl(tmp_path, Seen(monkeypatch), **own, logging_steps=6)
    for key in ("free_energy/total", "free_energy/reward", "free_energy/demonstration", "free_energy/beta"):
        assert whole.logs[0][key] == pytest.approx(sum(single.column(key)) / 6, rel=1e-5), key


def test_rollouts_stop_where_their_weights_do(tmp_path, monkeypatch):
    """RL, then SFT: beta in force is 0 there, and nothing is drawn."""
    seen = Seen(monkeypatch)
    record, _ = run_sft_then_rl(
        tmp_path,
        seen,
        reward_energy_weight=1.0,
        reward_energy_schedule={"switch": {"final": 0.0, "until": 2}},
        demonstration_energy_schedule=None,
        beta=0.2,
        beta_schedule={"switch": {"final": 0.0, "until": 2}},
    )
    assert seen.rewarded == [0, 1]
    assert record.column("free_energy/beta") == [0.2, 0.2, 0.0, 0.0, 0.0, 0.0]


def test_until_may_be_a_share_of_the_run(tmp_path):
    record, _ = train(
        tmp_path, settings={"max_steps": 4, "beta": 0.4, "beta_schedule": {"switch": {"final": 0.1, "until": 0.25}}}
    )
    assert record.column("free_energy/beta") == [0.4, 0.1, 0.1, 0.1]


@pytest.mark.parametrize("when", ["before", "after"])
def test_evaluation_takes_the_weights_in_force(tmp_path, when):
    settings = {
        "max_steps": 2,
        "beta": 0.0,
        "reward_energy_weight": 0.5,
        "reward_energy_schedule": {"switch": {"final": 0.25, "until": 0.5}},
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_on_start": when == "before",
        "per_device_eval_batch_size": 16,
    }
    _, trainer = train(
        tmp_path,
        settings=settings,
        reward_funcs=[lambda completions, **_: [1.0] * len(completions)],
        eval_dataset=small.prompts(4),
    )
    found = [row["eval_free_energy/reward"] for row in trainer.state.log_history if "eval_free_energy/reward" in row]
    assert found == pytest.approx([-0.5, -0.25] if when == "before" else [-0.25])


def test_demonstrations_under_a_schedule_and_a_penalty_weigh_what_the_step_says(tmp_path, monkeypatch):
    """Pure demonstrations with beta: the schedule of w_d holds there as well."""
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    settings = {
        **SGD,
        "learning_rate": 0.0,
        "max_steps": 3,
        "reward_energy_weight": 0.0,
        "demonstration_energy_weight": 1.0,
        "demonstration_energy_schedule": {"linear": {"final": 0.5}},
        "kl_sampler": "demonstrations",
        "per_device_train_batch_size": 8,
        "num_generations": 2,
    }
    record, _ = train(
        tmp_path, settings=settings, reward_funcs=None, train_dataset=None, demo_dataset=small.demonstrations(8)
    )
    first, scale = record.gradients[0], max(g.abs().max() for g in record.gradients[0].values())
    for gradients, weight in zip(record.gradients, (1.0, 0.75, 0.5), strict=True):
        for name, gradient in gradients.items():
            assert (gradient - weight * first[name]).abs().max() <= 1e-5 * scale
    shown = record.column("free_energy/demonstration")
    assert shown == pytest.approx([shown[0], 0.75 * shown[0], 0.5 * shown[0]], rel=1e-5)


CHORD = {"max_steps": 4, "beta": 0.0, "max_grad_norm": 1.0}


def test_chord_without_imitation_is_rl_bit_for_bit(tmp_path):
    """mu = 0: w_r = 1 and w_d = 0 at every step of the run, the demonstrations at hand."""
    mixed, trainer = train(
        tmp_path,
        settings={**CHORD, "demonstration_energy_weight": 0.0, "demonstration_energy_schedule": NEVER},
        demo_dataset=small.demonstrations(),
    )
    alone, other = train(tmp_path, settings=CHORD)
    assert small.same_weights(trainer.model, other.model)
    for key in ("loss", "grad_norm", "reward", "free_energy/reward", "free_energy/total", "entropy"):
        assert mixed.column(key) == alone.column(key), key


def test_chord_without_reward_is_demonstrations_alone_bit_for_bit(tmp_path):
    """mu = 1, against two other ways to have w_d alone: no reward in the recipe, and rollouts without a signal."""
    weights = {**CHORD, "demonstration_energy_weight": 1.0}
    silent = {**weights, "reward_energy_weight": 0.0}
    ways = {
        "mu": {"settings": {**silent, "reward_energy_schedule": NEVER}},
        "no reward": {"settings": {**silent, "beta_schedule": NEVER}, "reward_funcs": None},
        "no signal": {"settings": weights, "reward_funcs": [lambda completions, **_: [1.0] * len(completions)]},
    }
    demos = small.demonstrations()
    runs = {name: train(tmp_path, demo_dataset=demos, **arguments) for name, arguments in ways.items()}
    record, trainer = runs.pop("mu")
    for other, another in runs.values():
        assert small.same_weights(trainer.model, another.model)
        assert record.column("free_energy/demonstration") == other.column("free_energy/demonstration")
        assert record.column("grad_norm") == other.column("grad_norm")
    assert not small.same_weights(trainer.model, small.model())
