"""One step of each preset with demonstrations: loss and gradient against its paper's formula, row by row.

Where a preset departs from its paper (`departures` in fe_posttrain/methods/presets.py), the arithmetic here follows
the preset, and says so. The papers divide their terms by token or sequence counts of their own; under the presets
with rollouts, -log pi of a demonstration is summed over its tokens, averaged over the step's demonstrations and
divided by 8, the longest completion.
"""

import math

import pytest
import small
import torch
from by_hand import LENGTH, assert_close, gradients_of
from datasets import Dataset
from preset_runs import (
    GROUP,
    SHOWN,
    demonstrated,
    entropy,
    laws,
    less_the_others,
    log_probs,
    policy_gradient,
    run,
    surrogate,
    taken,
)
from trl import SFTConfig, SFTTrainer

from fe_posttrain.tasks import digits

SFT = {"per_device_train_batch_size": len(SHOWN), "max_steps": 2, "learning_rate": 0.02}
MOVES = {"max_steps": 2, "learning_rate": 0.02}
# What four rollouts of four prompts are worth. One row that is no success is no failure's 0 either: .5 is unsolved.
WORTH = [0.0, 0.5, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.5, 0.0]


def as_listed(prompts, completion_ids):
    return WORTH


def groups_of(judged, group: int = GROUP) -> list[tuple[str, int]]:
    """Each group's prompt and how many of its rollouts are solved."""
    starts = range(0, len(judged.prompts), group)
    return [(judged.prompts[i], sum(r == 1 for r in judged.rewards[i : i + group])) for i in starts]


def shown_rows(policy, prompts) -> list[torch.Tensor]:
    return log_probs(policy, *demonstrated(prompts))


def stream_term(policy, weight: float, phi=None) -> torch.Tensor:
    """w mean over the stream's six rows of -sum_t phi log pi, / 8."""
    rows = shown_rows(policy, SHOWN)
    return -weight * sum(((1.0 if phi is None else phi(row.detach().exp())) * row).sum() for row in rows) / 6 / LENGTH


def test_sft(tmp_path):
    """-log pi, a mean over all demonstrated tokens of the step: TRL's loss, divided by nothing of ours."""
    done = run(tmp_path, "sft", SFT)
    policy = done.policy(1)
    rows = shown_rows(policy, SHOWN)
    assert len({len(row) for row in rows}) > 1  # a mean over sequences would be another number
    done.check(1, -sum(row.sum() for row in rows) / sum(map(len, rows)), policy)


def test_sft_then_rl(tmp_path):
    """Six steps: three of SFT, then three of RL with beta .02, whose reference is the model that SFT left (KL 0 in the
    first of them) and whose optimizer is fresh: its first step is AdamW's first.

    Departure: the SFT half is a sum over tokens, a mean over demonstrations, over 8, and not TRL's token mean."""
    done = run(tmp_path, "sft_then_rl", {"max_steps": 6, "learning_rate": 0.02}, as_listed)
    policy = done.policy(2)
    done.check(2, stream_term(policy, 1.0), policy)
    assert "free_energy/kl" not in done.record.logs[2] and len(done.judged) == 3

    for step in (3, 4):
        judged, policy = done.judged[step - 3], done.policy(step)
        rows = log_probs(policy, judged.prompt_ids, judged.completion_ids)
        with torch.no_grad():
            reference = log_probs(done.policy(3), judged.prompt_ids, judged.completion_ids)
        ratios = [(row.detach() - ref).sum() for row, ref in zip(rows, reference, strict=True)]
        shaped = [r - 0.02 * ratio for r, ratio in zip(judged.rewards, ratios, strict=True)]
        done.check(step, policy_gradient(rows, less_the_others(shaped)), policy)
        kl = sum(ratios).item() / len(ratios)
        assert done.record.logs[step]["free_energy/kl"] == pytest.approx(kl, rel=1e-3, abs=1e-5)
        assert (abs(kl) < 1e-6) == (step == 3)

    model = done.policy(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=done.record.logs[3]["learning_rate"], weight_decay=0.0)
    for name, weight in model.named_parameters():
        weight.grad = done.record.gradients[3][name]
    optimizer.step()
    for found, wanted in zip(done.policy(4).parameters(), model.parameters(), strict=True):
        assert (found - wanted).abs().max() <= 1e-6


def test_dft(tmp_path):
    """The gradient of sum_t stop(pi) log pi over the tokens' number: TRL's loss_type dft.

    What is logged is the energy that has this gradient, -pi, where TRL logs -pi log pi."""
    done = run(tmp_path, "dft", SFT)
    policy = done.policy(1)
    rows = shown_rows(policy, SHOWN)
    tokens = sum(map(len, rows))
    done.check(1, -sum(row.exp().sum() for row in rows) / tokens, policy)
    record, _ = small.run(
        SFTTrainer,
        SFTConfig,
        tmp_path,
        settings={**SFT, "max_steps": 1, "max_grad_norm": 0.0, "loss_type": "dft", "data_seed": small.SETTINGS["seed"]},
        model=small.model(),
        train_dataset=Dataset.from_dict({"prompt": SHOWN, "completion": [digits.demonstration(x) for x in SHOWN]}),
    )
    assert_close(done.record.gradients[0], record.gradients[0])
    first = [row.detach() for row in shown_rows(small.model(), SHOWN)]
    assert record.logs[0]["loss"] == pytest.approx(-sum((row.exp() * row).sum() for row in first).item() / tokens)


def test_gift(tmp_path):
    """Cross-entropy to softmax(log ref + 20 1[y*]), a mean over tokens, when pi has left ref: a model so certain
    that the tilt leaves mass elsewhere."""
    done = run(tmp_path, "gift", SFT, initializer_range=1.0)
    policy, (prompt_ids, ids) = done.policy(1), demonstrated(SHOWN)
    with torch.no_grad():
        references = laws(done.start(), prompt_ids, ids)
    loss, kept = 0.0, []
    for law, ref, tokens in zip(laws(policy, prompt_ids, ids), references, ids, strict=True):
        lifted = ref.clone()
        lifted[range(len(tokens)), tokens] += 20.0
        loss = loss - (lifted.softmax(1) * law).sum()
        kept += lifted.softmax(1)[range(len(tokens)), tokens].tolist()
    assert sum(share < 0.95 for share in kept) >= 8
    done.check(1, loss / sum(map(len, ids)), policy, tolerance=5e-5)


@pytest.mark.parametrize("accumulation", [1, 2], ids=["one batch", "two micro-batches"])
def test_luffy(tmp_path, accumulation):
    """Groups of eight: seven rollouts and the demonstration, which has reward 1. A of the demonstration is 1 less the
    group's mean; its term is A sum_t pi/(pi + .1), an eighth of it, of which the gradient is checked; what is logged
    is -phi log pi with phi = .1 pi/(pi + .1)^2, which has that gradient.

    Departure: a rollout's baseline is the mean of the other six, times 49/64, which is what the group's eighths of
    (r - mean) come to on average over draws."""
    solved, group = (0, 3, 7, 1), 7
    keys = {**MOVES, "per_device_train_batch_size": 28 // accumulation, "gradient_accumulation_steps": accumulation}

    def worth(prompts, completion_ids):
        return [float(i % group < solved[i // group]) for i in range(28)]

    done = run(tmp_path, "luffy", keys, worth)
    judged, policy = done.judged[1], done.policy(1)
    rows = log_probs(policy, judged.prompt_ids, judged.completion_ids)
    drawn = 49 / 64 * policy_gradient(rows, less_the_others(judged.rewards, group))
    off_policy = logged = 0.0
    for (prompt, successes), wanted in zip(groups_of(judged, group), solved, strict=True):
        assert successes == wanted
        advantage = 1.0 - (successes + 1.0) / 8
        (row,) = shown_rows(policy, [prompt])
        probs = row.exp()
        off_policy = off_policy - advantage / 8 * (probs / (probs + 0.1)).sum()
        phi = (0.1 * probs / (probs + 0.1) ** 2).detach()
        logged -= advantage / 8 * (phi * row).sum().item()
    assert done.record.logs[1]["loss"] == pytest.approx(drawn.item() + logged / 4 / LENGTH, rel=1e-4)
    assert_close(done.record.gradients[1], gradients_of(drawn + off_policy / 4 / LENGTH, policy))


def test_hpt(tmp_path):
    """A prompt without a success: -log pi of its demonstration and nothing of its rollouts; the others: RL alone.

    Departures: no deviation in A, and both terms over the same constant, all four prompts counting in it."""
    done = run(tmp_path, "hpt", MOVES, as_listed)
    judged, policy = done.judged[1], done.policy(1)
    advantages = less_the_others(judged.rewards)
    assert [s for _, s in groups_of(judged)] == [0, 2, 4, 1] and advantages[1] > 0
    advantages[:GROUP] = [0.0] * GROUP
    rows = log_probs(policy, judged.prompt_ids, judged.completion_ids)
    (shown,) = shown_rows(policy, [judged.prompts[0]])
    done.check(1, policy_gradient(rows, advantages) - shown.sum() / 4 / LENGTH, policy)


def test_chord_mu(tmp_path):
    """(1 - mu) RL + mu SFT; of 21 steps mu rises over two from 0 to .9 and falls as a cosine to .05 in the last.

    Departures: no deviation in A, both terms over the same constant, and these shares of the run."""
    done = run(tmp_path, "chord_mu", {"max_steps": 21, "learning_rate": 0.002}, as_listed)
    mus = [0.0, 0.45] + [0.05 + 0.85 * (1 + math.cos(math.pi * (step - 2) / 18)) / 2 for step in range(2, 21)]
    assert mus[2] == pytest.approx(0.9) and mus[11] == pytest.approx(0.475) and mus[20] == pytest.approx(0.05)
    for step in (0, 1, 2, 8, 20):
        judged, policy = done.judged[step], done.policy(step)
        rows = log_probs(policy, judged.prompt_ids, judged.completion_ids)
        reward_term = policy_gradient(rows, less_the_others(judged.rewards))
        done.check(step, (1 - mus[step]) * reward_term + stream_term(policy, mus[step]), policy)


def test_chord_phi(tmp_path):
    """.9 RL + .1 SFT with each demonstrated token's -log pi times p (1 - p), a constant to the gradient."""
    done = run(tmp_path, "chord_phi", MOVES, as_listed)
    judged, policy = done.judged[1], done.policy(1)
    rows = log_probs(policy, judged.prompt_ids, judged.completion_ids)
    reward_term = policy_gradient(rows, less_the_others(judged.rewards))
    done.check(1, 0.9 * reward_term + stream_term(policy, 0.1, lambda p: p * (1 - p)), policy)


def test_srft(tmp_path):
    """.5 e^-H of a demonstration times its -log pi, .1 e^H of a solved rollout times its advantage, H the mean entropy
    per token of the policy on that very sequence.

    Departures: A = r less the others' mean of the four rollouts, the demonstration being no member; rollouts that are
    not solved have no term."""
    done = run(tmp_path, "srft", MOVES, as_listed)
    judged, policy = done.judged[1], done.policy(1)
    drawn = laws(policy, judged.prompt_ids, judged.completion_ids)
    advantages = less_the_others(judged.rewards)
    factors = [entropy(law).exp() if r == 1 else 0.0 for law, r in zip(drawn, judged.rewards, strict=True)]
    advantages = [0.1 * factor * a for factor, a in zip(factors, advantages, strict=True)]
    loss = policy_gradient(taken(drawn, judged.completion_ids), advantages)
    prompt_ids, ids = demonstrated([prompt for prompt, _ in groups_of(judged)])
    shown = laws(policy, prompt_ids, ids)
    for law, row in zip(shown, taken(shown, ids), strict=True):
        loss = loss - 0.5 * (-entropy(law)).exp() * row.sum() / 4 / LENGTH
    assert len({round(entropy(law).item(), 3) for law in [*drawn, *shown]}) > 8  # H differs from row to row
    done.check(1, loss, policy)


def test_relift(tmp_path):
    """RL (clip .7) until 128 prompts have failed as whole groups; then one epoch of -log pi on their demonstrations by
    an AdamW of its own (clip 1), here two steps of 64 after step 8's RL step; the sixteenth prompt is solved once, by
    a reward large enough that the clip of RL bites. What is compared is the gradient after clipping.

    Departure: SFT steps over the constant, at which the clip spares the first of them and bites the second."""
    keys = {"per_device_train_batch_size": 64, "max_steps": 9, "optim": "sgd", "loss_divisor": 8.5}
    keys |= {"failure_buffer_learning_rate": 0.01, "adam_epsilon": 1e-4}

    def worth(prompts, completion_ids):
        return [0.5] * 60 + [0.0, 30.0, 0.0, 0.0]

    done = run(tmp_path, "relift", keys, worth)
    judged, policy = done.judged[8], done.policy(8)
    waiting = [prompt for judged in done.judged for prompt in judged.prompts[:60:GROUP]]
    assert len(waiting) == 135 and done.record.column("failure_buffer/size") == [15 * k for k in range(1, 9)] + [7]

    rows = log_probs(policy, judged.prompt_ids[60:], judged.completion_ids[60:])
    loss = -sum(a * surrogate(row) for a, row in zip((-10, 30, -10, -10), rows, strict=True)) / 64 / 8.5
    assert done.record.logs[8]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert clipped(gradients_of(loss, policy), 0.7)
    assert_close(done.record.gradients[8], {name: p.grad for name, p in policy.named_parameters()})

    model = done.policy(8)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight -= done.record.logs[8]["learning_rate"] * done.record.gradients[8][name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-4, weight_decay=0.0)
    for start, bites in ((0, False), (64, True)):
        loss = -sum(row.sum() for row in shown_rows(model, waiting[start : start + 64])) / 64 / 8.5
        assert clipped(gradients_of(loss, model), 1.0) == bites
        optimizer.step()
    for found, wanted in zip(done.trainer.model.parameters(), model.parameters(), strict=True):
        assert (found - wanted).abs().max() <= 2e-6


def clipped(gradients: dict[str, torch.Tensor], most: float) -> bool:
    """Scale gradients, in place, down to a norm of `most`; whether that was needed."""
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
    for gradient in gradients.values():
        gradient *= min(1.0, most / (norm + 1e-6))
    return norm > most
