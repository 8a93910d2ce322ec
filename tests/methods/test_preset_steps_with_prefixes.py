"""One step of the presets whose rollouts start inside a demonstration, against their papers' formulas, row by row.

Departures: A is not divided by a deviation and leaves the row itself out of its baseline, hints are summed and not
averaged over tokens, and prefix and continuation share the longest completion, 8 tokens.
"""

import math

import pytest
import small
import torch
from by_hand import LENGTH
from preset_runs import GROUP, demonstrated, laws, less_the_others, log_probs, run, spy_on_sampler, surrogate, taken


def even_tokens(prompts, completion_ids):
    """Graded and small, so that hints of weight .001 count beside it."""
    return [0.02 * sum(token % 2 == 0 for token in ids) for ids in completion_ids]


def starts_of(judged, call) -> list[list[int]]:
    """What each rollout started with: what the sampler was given behind the prompt, the head of the demonstration."""
    token_ids, drawn = call
    starts = [ids[len(prompt) :] for ids, prompt in zip(token_ids, judged.prompt_ids, strict=True)]
    assert judged.completion_ids == [start + ids for start, ids in zip(starts, drawn, strict=True)]
    shown = demonstrated(judged.prompts)[1]
    assert all(ids[:-1][: len(start)] == start for start, ids in zip(starts, shown, strict=True))
    return starts


def test_uft(tmp_path, monkeypatch):
    """Policy gradient and KL (beta .001) on what follows the hint, .001 times -log pi of the hint itself.

    A hint is Binomial(tokens of the demonstration, q) long, q = .95 (1 + cos(pi u)) / 2, u the step over
    .6 of the run, and with none after that."""
    calls = spy_on_sampler(monkeypatch)
    done = run(tmp_path, "uft", {"max_steps": 10, "learning_rate": 0.02}, even_tokens)
    shares = [0.95 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)] + [0.0] * 4
    assert done.record.column("prefix/share") == pytest.approx(shares)
    for step in (3, 9):
        judged, policy, starts = done.judged[step], done.policy(step), starts_of(done.judged[step], calls[step])
        assert starts[::GROUP] == starts[3::GROUP]  # a group's rows start alike
        assert len({len(start) for start in starts}) > 1 if step == 3 else not any(starts)
        rows = log_probs(policy, judged.prompt_ids, judged.completion_ids)
        with torch.no_grad():
            reference = log_probs(small.model(), judged.prompt_ids, judged.completion_ids)
        shaped = []
        for reward, row, ref, start in zip(judged.rewards, rows, reference, starts, strict=True):
            shaped.append(reward - 0.001 * (row.detach() - ref)[len(start) :].sum())
        loss = 0.0
        for advantage, row, start in zip(less_the_others(shaped), rows, starts, strict=True):
            loss = loss - advantage * surrogate(row[len(start) :]) - 0.001 * row[: len(start)].sum()
        done.check(step, loss / len(rows) / LENGTH, policy)


def test_prefix_rft(tmp_path, monkeypatch):
    """The first rollout of a group starts with half of its demonstration in the middle of the run (.95 -> .05); the
    fifth of that start's tokens of which the policy is least certain are trained with the rollout's advantage."""
    calls = spy_on_sampler(monkeypatch)
    done = run(tmp_path, "prefix_rft", {"max_steps": 3, "learning_rate": 0.02}, even_tokens)
    judged, policy, starts = done.judged[1], done.policy(1), starts_of(done.judged[1], calls[1])
    lengths = [len(ids) - 1 for ids in demonstrated(judged.prompts)[1]]  # without the end token
    halves = [math.floor(length / 2 + 0.5) if i % GROUP == 0 else 0 for i, length in enumerate(lengths)]
    assert [len(start) for start in starts] == halves and len(set(halves)) == 3  # worked, direct and none
    assert done.record.logs[1]["prefix/share"] == pytest.approx(0.5)
    drawn, loss = laws(policy, judged.prompt_ids, judged.completion_ids), 0.0
    advantages = less_the_others(judged.rewards)
    for law, row, a, start in zip(drawn, taken(drawn, judged.completion_ids), advantages, starts, strict=True):
        entropies = -(law.exp() * law).sum(1)[: len(start)]
        joined = sorted(range(len(start)), key=lambda t: -entropies[t].item())[: math.ceil(len(start) / 5)]
        loss = loss - a * (surrogate(row[len(start) :]) + surrogate(row[joined]))
    done.check(1, loss / len(drawn) / LENGTH, policy)
