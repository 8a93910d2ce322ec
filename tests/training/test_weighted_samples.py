"""Forward projection through the real trainer: one step's gradient by hand, the bank, resume and refresh."""

import pytest
import small
import torch
from by_hand import BETA, LENGTH, WEIGHT, assert_close, fixed_rollouts, gradients_of, log_probs_with_grad, train

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.training.bank import FOLDER, Bank
from fe_posttrain.training.rollout_events import prompt_key

FORWARD = {"reward_projection": "forward", "reward_energy_weight": WEIGHT}
BANK = {**FORWARD, "forward_sampler": "bank", "bank_draws": 8}


def rows_under(model, trainer):
    return log_probs_with_grad(model, *trainer.drawn)


def weights_by_hand(rewards, log_ratio, group):
    """G w_i / sum_j w_j, w = exp(w_r r / beta) ref/q, one group after the other."""
    found = []
    for start in range(0, len(rewards), group):
        part = range(start, start + group)
        w = [torch.tensor(WEIGHT * rewards[i] / BETA + log_ratio[i]).double().exp() for i in part]
        found += [group * x / sum(w) for x in w]
    return torch.stack(found).float()


def test_two_steps_on_the_policys_draws_by_hand(tmp_path):
    settings = {**FORWARD, "max_steps": 2, "learning_rate": 0.05, "optim": "sgd"}
    record, trainer = train(tmp_path, settings=settings, rollout_func=fixed_rollouts)
    policy, reference = small.model(), small.model()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            p -= record.logs[0]["learning_rate"] * record.gradients[0][name]
    rows = rows_under(policy, trainer)
    with torch.no_grad():
        reference_rows = rows_under(reference, trainer)
    ratio = [(ref.sum() - row.sum()).item() for ref, row in zip(reference_rows, rows, strict=True)]
    rewards = small.length_reward(trainer.drawn[1])
    weights = weights_by_hand(rewards, ratio, 4)
    loss = -sum((w - 1) * row.sum() for w, row in zip(weights, rows, strict=True)) / (len(rows) * LENGTH)
    assert_close(record.gradients[1], gradients_of(loss, policy))
    for row in record.logs:  # logged as a run of the reverse projection is
        assert row["free_energy/total"] == row["free_energy/reward"] + BETA * row["free_energy/kl"]


def test_older_draws_are_weighed_against_the_policy_of_now(tmp_path):
    """Second pass over the same rollouts: w/Z stays, 1 becomes pi/q, and no ratio multiplies it."""
    settings = {**FORWARD, "num_iterations": 2, "max_steps": 2, "learning_rate": 0.05, "optim": "sgd"}
    record, trainer = train(tmp_path, settings=settings, rollout_func=fixed_rollouts)
    sampler, policy = small.model(), small.model()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            p -= record.logs[0]["learning_rate"] * record.gradients[0][name]
        drawn_rows = rows_under(sampler, trainer)  # the first step's policy, which is the reference too
    rows = rows_under(policy, trainer)
    rewards = small.length_reward(trainer.drawn[1])
    weights = weights_by_hand(rewards, [0.0] * len(rewards), 4)
    loss = 0.0
    for weight, row, drawn in zip(weights, rows, drawn_rows, strict=True):
        loss = loss - (weight - (row.sum() - drawn.sum()).exp().detach()) * row.sum()
    assert_close(record.gradients[1], gradients_of(loss / (len(rows) * LENGTH), policy))


def even_first(completion_ids, **_) -> list[float]:
    """0/1, and different within groups of a random model."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


def test_selection_is_sft_on_the_selected(tmp_path):
    settings = {**FORWARD, "beta": 0.0, "loss_divisor": 1.0}
    record, trainer = train(tmp_path, settings=settings, rollout_func=fixed_rollouts, reward_funcs=[even_first])
    policy = small.model()
    rewards = even_first(trainer.drawn[1])
    loss = 0.0
    for i, row in enumerate(rows_under(policy, trainer)):
        group = rewards[i // 4 * 4 : i // 4 * 4 + 4]
        if rewards[i]:
            loss = loss - 4 / sum(group) * row.sum()
    assert 0 < sum(rewards) < len(rewards)
    assert_close(record.gradients[0], gradients_of(loss / len(rewards), policy))


def test_a_group_without_success_is_dropped(tmp_path):
    def never(completion_ids, **_):
        return [0.0] * len(completion_ids)

    settings = {**FORWARD, "beta": 0.0, "learning_rate": 0.05, "optim": "sgd"}
    record, _ = train(tmp_path, settings=settings, rollout_func=fixed_rollouts, reward_funcs=[never])
    assert all((g == 0).all() for g in record.gradients[0].values())


class Banked(FreeEnergyTrainer):
    """Keeps the draws that each generation took from the bank."""

    def _rollout_from_bank(self, prompts):
        output = super()._rollout_from_bank(prompts)
        self.taken = [*getattr(self, "taken", []), (output["prompt_ids"], output["completion_ids"], self._from_bank)]
        return output


def banked(folder, *, rows=6, calls=None, reward=small.length_reward, **settings):
    def counted(completion_ids, **columns):
        if calls is not None:
            calls.append(len(completion_ids))
        return reward(completion_ids)

    return small.run(
        Banked,
        FreeEnergyConfig,
        folder,
        settings={"max_grad_norm": 0.0, "beta": BETA, **small.ROLLOUTS, **BANK, **settings},
        model=small.model(),
        reward_funcs=[counted],
        train_dataset=small.prompts(rows),
    )


def test_a_step_on_the_bank_by_hand(tmp_path):
    """w over the mean of all draws of the prompt, less pi/ref; judged once."""
    calls = []
    record, trainer = banked(tmp_path, calls=calls, max_steps=2, learning_rate=0.05, optim="sgd")
    assert sum(calls) == 6 * 8
    bank = Bank.load(tmp_path / FOLDER / "step-000000.safetensors", 0)
    every = [bank.completion(i, j) for i in range(6) for j in range(8)]
    rewards = torch.tensor(small.length_reward(every)).double().view(6, 8)
    assert torch.allclose(bank.rewards[..., 0], rewards)
    w = (WEIGHT * rewards / BETA).exp()
    weights = w / w.mean(1, keepdim=True)
    prompt_ids, completion_ids, place = trainer.taken[1]
    policy, reference = small.model(), small.model()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            p -= record.logs[0]["learning_rate"] * record.gradients[0][name]
        reference_rows = log_probs_with_grad(reference, prompt_ids, completion_ids)
    loss = 0.0
    for row, ref, (i, j) in zip(
        log_probs_with_grad(policy, prompt_ids, completion_ids), reference_rows, place.tolist(), strict=True
    ):
        loss = loss - (weights[i, j].float() - (row.sum() - ref.sum()).exp().detach()) * row.sum()
    assert_close(record.gradients[1], gradients_of(loss / (len(place) * LENGTH), policy))
    groups = place.view(4, 4, 2)
    assert all(len({tuple(x) for x in group.tolist()}) == 4 for group in groups)  # without replacement
    assert trainer._account.total()["generated_tokens"] == len(bank.tokens)
    assert trainer._account.total()["verifier_calls"] == 48


def test_terms_of_f_on_the_bank_are_those_of_the_policy(tmp_path):
    """At the first step policy and reference agree: the mean reward of the draws taken, and no KL."""
    record, trainer = banked(tmp_path, max_steps=1)
    _, completions, _ = trainer.taken[0]
    rewards = small.length_reward(completions)
    assert abs(record.logs[0]["free_energy/reward"] + WEIGHT * sum(rewards) / len(rewards)) < 1e-4
    assert abs(record.logs[0]["free_energy/kl"]) < 1e-5


def test_a_refreshed_bank_is_corrected_by_ref_over_q(tmp_path):
    record, trainer = banked(tmp_path, max_steps=5, bank_refresh_steps=2, learning_rate=0.02, optim="sgd")
    bank = trainer._bank
    assert bank.step == 4
    q = small.model()
    with torch.no_grad():
        for name, p in q.named_parameters():
            p -= sum(record.logs[step]["learning_rate"] * record.gradients[step][name] for step in range(4))
    prompts = dict(zip(bank.prompts.tolist(), range(6), strict=True))
    rows = small.prompts(6)["prompt"]
    for text in rows[:2]:
        i = prompts[prompt_key(text)]
        ids = [bank.completion(i, j) for j in range(8)]
        prompt_ids = [small.TOKENIZER(text)["input_ids"]] * 8
        with torch.no_grad():
            log_q = torch.stack([row.sum() for row in log_probs_with_grad(q, prompt_ids, ids)])
            log_ref = torch.stack([row.sum() for row in log_probs_with_grad(small.model(), prompt_ids, ids)])
        assert torch.allclose(bank.log_sampler[i].float(), log_q, atol=1e-4)
        assert torch.allclose(bank.log_reference[i].float(), log_ref, atol=1e-4)
        rewards = torch.tensor(small.length_reward(ids))
        w = (WEIGHT * rewards / BETA + log_ref - log_q).exp()
        assert torch.allclose(trainer._bank_weights[i].float(), w / w.mean(), rtol=1e-3)
    assert len(list((tmp_path / FOLDER).glob("*.safetensors"))) == 1  # no checkpoint needs the older ones


@pytest.mark.parametrize(("step", "projection"), [(1, "forward"), (2, "reverse")])
def test_alternating_projections_take_turns(tmp_path, step, projection):
    settings = {"reward_projection": "alternating", "projection_period": 1, "max_steps": step + 1, "beta": 0.0}
    settings |= {"learning_rate": 0.0, "loss_divisor": 1.0}
    record, trainer = train(tmp_path, settings=settings, rollout_func=fixed_rollouts, reward_funcs=[even_first])
    policy, rewards = small.model(), even_first(trainer.drawn[1])
    loss = 0.0
    for i, row in enumerate(rows_under(policy, trainer)):
        group = rewards[i // 4 * 4 : i // 4 * 4 + 4]
        selected = 4 * rewards[i] / max(1.0, sum(group))
        advantage = rewards[i] - (sum(group) - rewards[i]) / 3
        loss = loss - (selected if projection == "forward" else advantage) * row.sum()
    assert_close(record.gradients[step], gradients_of(loss / len(rewards), policy))
