"""Gates in real runs: gradients row by row, the two ends that are RL and demonstrations, and what is logged."""

import itertools

import pytest
import small
import torch
from by_hand import BETA, LENGTH, assert_close, gradients_of, log_probs_with_grad, train
from pairs import SOLVED, Rollouts, by_place, demonstrated, demonstration_rows, rows, step, without_own

from fe_posttrain import FreeEnergyTrainer
from fe_posttrain.theory.advantages import sequence_advantages
from fe_posttrain.theory.gates import GroupOutcomes, failure_rate

W_R, W_D, GROUPS = 1.5, 0.7, 4
SGD = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant"}
OWN = '''
import torch

def half(groups, *, least=0.0):
    """Rows by how many the group solved, demonstrations by the step."""
    return groups.rate[:, None].clamp(min=least), torch.full_like(groups.rate, 0.25 * (1 + groups.step))
'''
# Groups with s = 1, 0, 3, 4 of 4: the factor of each group's rows, and of its demonstration at steps 0 and 1.
FACTORS = {
    "threshold": ("threshold", [1, 0, 1, 1], [[0, 1, 0, 0]] * 2),
    "threshold 2": ({"threshold": {"solved_at_most": 2}}, [0, 0, 1, 1], [[1, 1, 0, 0]] * 2),
    "failure rate": ("failure_rate", [1, 1, 1, 1], [[0.75, 1, 0.25, 0]] * 2),
    "unsolved": ("unsolved", [1, 1, 1, 1], [[0, 1, 0, 0]] * 2),
    "of the user": ({"own.py:half": {"least": 0.1}}, [0.25, 0.1, 0.75, 1], [[0.25] * 4, [0.5] * 4]),
}


def by_hand(policy, reference, drawn, factors, shown, *, w_r=W_R, w_d=W_D, beta=BETA, rewards=SOLVED, phi=None):
    """F's estimate under a gate, every row and every prompt in its divisor, as a scalar with the right gradient."""
    prompt_ids, completion_ids = drawn
    lines = log_probs_with_grad(policy, prompt_ids, completion_ids)
    with torch.no_grad():
        known = log_probs_with_grad(reference, prompt_ids, completion_ids)
    nats = without_own([(a.sum() - b.sum()).item() for a, b in zip(lines, known, strict=True)])
    gains = without_own(list(rewards))
    loss = 0.0
    for i, line in enumerate(lines):
        factor = factors[i] if len(factors) == len(lines) else factors[i // 4]
        loss = loss - (w_r * factor * gains[i] - beta * nats[i]) * line.sum() / len(lines)
    for factor, line in zip(shown, demonstration_rows(policy, prompt_ids[::4]), strict=True):
        cost = -line.sum() if phi is None else phi(line)
        loss = loss + w_d * factor * cost / GROUPS
    return loss


def gated(folder, *, settings, **arguments):
    arguments = {"train_dataset": rows(), "reward_funcs": [by_place], **arguments}
    settings = {**SGD, "reward_energy_weight": W_R, "demonstration_energy_weight": W_D, "max_steps": 2, **settings}
    return train(folder, settings=settings, **arguments)


def assert_two_steps(record, calls, factors, shown):
    """The first step moves the policy off its reference, the second holds a KL that no gate may touch."""
    policy, reference = small.model(), small.model()
    for i in range(2):
        loss = by_hand(policy, reference, calls.drawn[i], factors, shown[i])
        wanted = gradients_of(loss / LENGTH, policy)
        assert_close(record.gradients[i], wanted)
        step(policy, wanted, SGD["learning_rate"])


@pytest.mark.parametrize("name", FACTORS)
def test_gradients_of_two_steps_equal_hand_arithmetic(tmp_path, monkeypatch, name):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    gate, factors, shown = FACTORS[name]
    calls = Rollouts()
    record, _ = gated(tmp_path / "run", settings={"gate": gate}, rollout_func=calls)
    assert_two_steps(record, calls, factors, shown)
    for i, row in enumerate(record.logs):
        assert row["gate/reward"] == pytest.approx(sum(factors) / 4)
        assert row["gate/demonstration"] == pytest.approx(sum(shown[i]) / 4)
        assert row["free_energy/reward"] == pytest.approx(-W_R * sum(SOLVED) / 16)  # of all rows, whatever the gate


@pytest.mark.parametrize("size", [4, 2], ids=["whole groups shuffled", "rows of groups scattered"])
def test_shuffled_rows_in_micro_batches_still_meet_their_demonstration(tmp_path, size):
    calls = Rollouts()
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}
    record, _ = gated(tmp_path, settings={"gate": "failure_rate", **settings}, rollout_func=calls)
    assert_two_steps(record, calls, *FACTORS["failure rate"][1:])


def test_one_generation_for_two_steps_gives_both_their_prompts(tmp_path):
    """TRL shuffles rows over the steps of a generation: at learning rate 0 the two steps together are one."""
    calls = Rollouts()
    settings = {"per_device_train_batch_size": 8, "steps_per_generation": 2, "learning_rate": 0.0}
    record, _ = gated(tmp_path, settings={"gate": "threshold", **settings}, rollout_func=calls)
    assert len(calls.drawn) == 1
    policy = small.model()
    loss = by_hand(policy, small.model(), calls.drawn[0], [1, 0, 1, 1], [0, 1, 0, 0])
    wanted = gradients_of(2 * loss / LENGTH, policy)  # each step is the mean of 8 rows and 2 prompts
    assert_close({name: g + record.gradients[1][name] for name, g in record.gradients[0].items()}, wanted)


def test_older_rollouts_keep_their_gate(tmp_path):
    """Second pass over the same rollouts: the gated reward part of the first, the KL part of now, token ratios."""
    calls = Rollouts()
    settings = {"num_iterations": 2, "epsilon": 100.0, "gate": {"threshold": {"solved_at_most": 1}}}
    record, _ = gated(tmp_path, settings=settings, rollout_func=calls)
    ((prompt_ids, completion_ids),) = calls.drawn
    old, policy = small.model(), small.model()
    step(policy, record.gradients[0], SGD["learning_rate"])
    with torch.no_grad():
        before = log_probs_with_grad(old, prompt_ids, completion_ids)  # also the reference
    gains, loss = without_own(SOLVED), 0.0
    for i, line in enumerate(log_probs_with_grad(policy, prompt_ids, completion_ids)):
        factor = [0, 0, 1, 1][i // 4]
        coefficient = W_R * factor * gains[i] - BETA * (line - before[i]).detach().sum()
        loss = loss - ((line - before[i]).exp() * coefficient).sum() / 16
    shown = demonstration_rows(policy, prompt_ids[::4])
    loss = loss - W_D * (shown[0].sum() + shown[1].sum()) / GROUPS
    assert_close(record.gradients[1], gradients_of(loss / LENGTH, policy))


def test_luffy_by_an_independent_implementation(tmp_path):
    calls = Rollouts()
    w_r, w_d, gamma = 49 / 64, 7 / 64, 0.1
    settings = {
        "reward_energy_weight": w_r,
        "demonstration_energy_weight": w_d,
        "beta": 0.0,
        "gate": "failure_rate",
        "demonstration_shaping": {"shrinking": {"gamma": gamma}},
    }
    record, _ = gated(tmp_path, settings=settings, rollout_func=calls)
    policy = small.model()
    for i in range(2):
        loss = by_hand(
            policy,
            small.model(),
            calls.drawn[i],
            [1] * 4,
            [0.75, 1, 0.25, 0],
            w_r=w_r,
            w_d=w_d,
            beta=0.0,
            phi=lambda line: -(line.exp() / (line.exp() + gamma)).sum(),  # what LUFFY puts in the place of pi/q
        )
        wanted = gradients_of(loss / LENGTH, policy)
        assert_close(record.gradients[i], wanted)
        lines = demonstration_rows(policy, calls.drawn[i][0][::4])
        nats = -sum(rate * line.sum().item() for rate, line in zip([0.75, 1, 0.25, 0], lines, strict=True))
        assert record.logs[i]["free_energy/demonstration"] == pytest.approx(w_d * nats / 4, rel=1e-5)
        step(policy, wanted, SGD["learning_rate"])


def test_weights_of_luffy_are_what_one_demonstration_in_a_group_of_eight_gives():
    """Every group of 7 draws from 3 completions, enumerated: E of LUFFY's gradient is that of the gated F."""
    logits = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
    pi, rewards, shown = logits.softmax(0), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64), 2
    score = torch.eye(3, dtype=torch.float64) - pi  # row y: gradient of log pi(y) in the logits
    groups = torch.tensor(list(itertools.product(range(3), repeat=7)))
    chances = pi[groups].prod(1)
    assert chances.sum().item() == pytest.approx(1)
    drawn = rewards[groups]
    mean = (drawn.sum(1) + rewards[shown]) / 8
    luffy = ((drawn - mean[:, None])[..., None] * score[groups]).sum(1)
    luffy = (luffy + (rewards[shown] - mean)[:, None] * score[shown]) / 8
    gains, _ = sequence_advantages(
        drawn.flatten(), torch.zeros(drawn.numel(), dtype=torch.float64), group_size=7, reward_energy_weight=1, beta=0
    )
    _, factor = failure_rate(GroupOutcomes(drawn, drawn >= 1, None, 0, 1))
    ours = 49 / 64 * (gains.view(-1, 7)[..., None] * score[groups]).mean(1)
    ours = ours + 7 / 64 * factor[:, None] * score[shown]
    assert (chances @ luffy).abs().max() > 1e-3
    assert torch.allclose(chances @ luffy, chances @ ours, atol=1e-12)
    success = (pi * rewards).sum()
    in_words = 49 / 64 * (pi * rewards) @ score + 7 / 64 * (1 - success) * score[shown]
    assert torch.allclose(chances @ luffy, in_words, atol=1e-12)


def entropy_of(policy, prompt: list[int], completion: list[int]) -> float:
    """Mean over the completion's tokens of the entropy of the next-token law, nats."""
    with torch.no_grad():
        law = policy(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].softmax(-1)
    return torch.special.entr(law).sum(-1).mean().item()


def test_srft_by_hand(tmp_path, monkeypatch):
    """Solved rows by e^H, demonstrations by e^-H; H of our sampler's draws, recomputed from whole forwards."""
    seen, draw = [], FreeEnergyTrainer._rollout

    def watched(prompts, trainer):
        found = draw(prompts, trainer)
        seen.append((found["prompt_ids"], found["completion_ids"]))
        return found

    monkeypatch.setattr(FreeEnergyTrainer, "_rollout", staticmethod(watched))
    settings = {
        "reward_energy_weight": 0.1,
        "demonstration_energy_weight": 1.0,
        "gate": "entropy",
        "demonstration_shaping": {"confidence": {"scale": 0.5}},
        "max_steps": 1,
    }
    record, _ = gated(tmp_path, settings=settings)
    (drawn,) = seen
    policy, prompt_ids = small.model(), drawn[0]
    factors = [r * torch.tensor(entropy_of(policy, x, y)).exp().item() for r, x, y in zip(SOLVED, *drawn, strict=True)]
    assert max(factors) > 2
    certain = [
        0.5 * torch.tensor(-entropy_of(policy, x, y)).exp().item()
        for x, y in zip(prompt_ids[::4], demonstrated(prompt_ids[::4]), strict=True)
    ]
    loss = by_hand(policy, small.model(), drawn, factors, certain, w_r=0.1, w_d=1.0, beta=0.0)
    assert_close(record.gradients[0], gradients_of(loss / LENGTH, policy))
    assert record.logs[0]["gate/reward"] == pytest.approx(sum(factors) / 16, rel=1e-4)


ENDS = {**SGD, "max_steps": 4, "beta": 0.0, "optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0}


def graded(completion_ids, **_) -> list[float]:
    return [float(len(set(ids)) % 2) for ids in completion_ids]


def test_a_gate_that_is_always_open_is_rl_bit_for_bit(tmp_path):
    settings = {**ENDS, "gate": {"threshold": {"solved_at_most": -1}}}
    record, trainer = gated(tmp_path, settings=settings, reward_funcs=[graded])
    alone = {**ENDS, "reward_energy_weight": W_R}
    other, another = train(tmp_path, settings=alone, reward_funcs=[graded])
    assert small.same_weights(trainer.model, another.model)
    for key in ("loss", "grad_norm", "reward", "entropy", "free_energy/total"):
        assert record.column(key) == other.column(key), key
    assert set(record.column("gate/reward")) == {1.0} and set(record.column("gate/demonstration")) == {0.0}
    assert not small.same_weights(trainer.model, small.model())


def test_a_gate_that_is_always_shut_is_demonstrations_alone_bit_for_bit(tmp_path):
    settings = {**ENDS, "gate": {"threshold": {"solved_at_most": 4}}}
    record, trainer = gated(tmp_path, settings=settings, reward_funcs=[graded])
    never = {"reward_energy_weight": 0.0, "reward_energy_schedule": {"switch": {"final": 1.0, "until": 1000}}}
    other, another = gated(tmp_path, settings={**ENDS, **never}, reward_funcs=[graded])
    assert another._account.total()["generated_tokens"] == 0
    assert small.same_weights(trainer.model, another.model)
    for key in ("grad_norm", "free_energy/demonstration", "loss"):
        assert record.column(key) == other.column(key), key
    assert not small.same_weights(trainer.model, small.model())


def test_steps_without_rollouts_forget_the_gate_of_earlier_ones(tmp_path):
    """RL under a gate first, then demonstrations alone: nothing was judged, and every one of them counts."""
    settings = {
        "beta": 0.0,
        "gate": {"threshold": {"solved_at_most": -1}},
        "reward_energy_schedule": {"switch": {"final": 0.0, "until": 1}},
    }
    calls = Rollouts()
    record, _ = gated(tmp_path, settings=settings, rollout_func=calls)
    assert len(calls.drawn) == 1
    assert record.logs[0]["free_energy/demonstration"] == 0.0 < record.logs[1]["free_energy/demonstration"]


@pytest.mark.parametrize("gate", [None, "threshold"])
def test_no_gap_is_shown_under_a_gate(tmp_path, gate):
    known = rows().add_column("reference_p", [0.1] * 40)
    settings = {"gate": gate, "max_steps": 1, "demonstration_energy_weight": 0.0}
    record, trainer = gated(
        tmp_path, settings=settings, train_dataset=known.remove_columns("demonstration"), reward_funcs=[graded]
    )
    assert ("free_energy/gap" in record.logs[0]) == (gate is None) == trainer.args.has_gibbs_optimum


def test_unscorable_rows_are_neither_success_nor_failure(tmp_path):
    """Under `mask`, a row without a reward takes no part: its group's rate is that of the other three."""

    def broken(completions, **_):
        return [float("nan") if i in (0, 9) else reward for i, reward in enumerate(by_place(completions))]

    calls = Rollouts()
    settings = {"gate": "failure_rate", "reward_fault_policy": "mask", "reward_fault_limit": 0.5, "max_steps": 1}
    record, _ = gated(tmp_path, settings={**settings, "beta": 0.0}, reward_funcs=[broken], rollout_func=calls)
    prompt_ids, completion_ids = calls.drawn[0]
    policy = small.model()
    lines = log_probs_with_grad(policy, prompt_ids, completion_ids)
    gains = [0.0] * 16  # group 0: 0 0 0 are left of 1 0 0 0; group 2: 1 1 0 of 1 1 1 0
    gains[8], gains[10], gains[11] = 0.5, 0.5, -1.0
    loss = -W_R * sum(a * line.sum() for a, line in zip(gains, lines, strict=True)) / 16
    rates = [1.0, 1.0, 1 / 3, 0.0]
    for factor, line in zip(rates, demonstration_rows(policy, prompt_ids[::4]), strict=True):
        loss = loss - W_D * factor * line.sum() / 4
    assert_close(record.gradients[0], gradients_of(loss / LENGTH, policy))
