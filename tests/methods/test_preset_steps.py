"""One step of each preset with rollouts alone: loss and gradient against its paper's formula, row by row.

Where a preset departs from its paper (`departures` in fe_posttrain/methods/presets.py), the arithmetic here follows
the preset, and says so.
"""

from pathlib import Path

import pytest
import small
import torch
from by_hand import LENGTH
from datasets import Dataset
from preset_runs import (
    GROUP,
    PROMPTS,
    Judged,
    less_the_others,
    log_probs,
    policy_gradient,
    run,
    spy_on_sampler,
    surrogate,
)
from trl import GRPOConfig, GRPOTrainer

from fe_posttrain.methods.presets import METHODS

MOVES = {"max_steps": 2, "learning_rate": 0.02}
EVEN = (4, 2, 0, 1)  # of four prompts: how many of their four rollouts are solved


def test_every_preset_has_a_step_here():
    words = "".join(path.read_text() for path in Path(__file__).parent.glob("test_preset_steps*.py"))
    assert [name for name in METHODS if f'"{name}"' not in words] == []


def first_ones(prompts, completion_ids):
    """1 for the first rollouts of each group, as `EVEN` says, 0 for the others."""
    return [float(i % GROUP < EVEN[i // GROUP]) for i in range(len(prompts))]


def even_first(prompts, completion_ids):
    """A verifier that a random model meets in half of its draws, but for the first prompt, which nobody solves."""
    return [float(ids[0] % 2 == 0 and x != PROMPTS[0]) for x, ids in zip(prompts, completion_ids, strict=True)]


def even_tokens(prompts, completion_ids):
    """Graded, and small beside beta = .05, so that Gibbs weights differ and none vanishes."""
    return [0.02 * sum(token % 2 == 0 for token in ids) for ids in completion_ids]


def test_rl(tmp_path):
    """RLOO: A = s - mean of the others' s, s = r - beta sum log(pi/ref), at a step where pi has left ref."""
    done = run(tmp_path, "rl", MOVES, even_tokens)
    judged, policy = done.judged[1], done.policy(1)
    rows = log_probs(policy, judged.prompt_ids, judged.completion_ids)
    with torch.no_grad():
        reference = log_probs(small.model(), judged.prompt_ids, judged.completion_ids)
    charged = [0.05 * (row.detach() - ref).sum() for row, ref in zip(rows, reference, strict=True)]
    assert max(charged) - min(charged) > 0.02  # as large as the rewards
    shaped = [r - cost for r, cost in zip(judged.rewards, charged, strict=True)]
    done.check(1, policy_gradient(rows, less_the_others(shaped)), policy)


def test_dr_grpo(tmp_path):
    """Its A is r less the mean of the whole group; the preset's leaves the row itself out: G/(G-1) as large."""
    done = run(tmp_path, "dr_grpo", MOVES, first_ones)
    judged, policy = done.judged[1], done.policy(1)
    advantages = []
    for i, reward in enumerate(judged.rewards):
        group = judged.rewards[i // GROUP * GROUP :][:GROUP]
        advantages.append((reward - sum(group) / GROUP) * GROUP / (GROUP - 1))
    rows = log_probs(policy, judged.prompt_ids, judged.completion_ids)
    done.check(1, policy_gradient(rows, advantages), policy)


def test_grpo_is_trls_grpo_trainer(tmp_path):
    """Bit for bit, over three steps, clipping at the default norm included."""
    keys = {"max_steps": 3, "max_grad_norm": 1.0}
    ours = run(tmp_path, "grpo", keys, even_tokens)
    record, theirs = small.run(
        GRPOTrainer,
        GRPOConfig,
        tmp_path,
        settings={**keys, **small.ROLLOUTS},
        model=small.model(),
        reward_funcs=[lambda prompts, completion_ids, **_: even_tokens(prompts, completion_ids)],
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    assert small.same_weights(ours.trainer.model, theirs.model)
    for key in ("loss", "grad_norm", "reward", "learning_rate"):
        assert ours.record.column(key) == record.column(key), key
    for mine, other in zip(ours.record.gradients, record.gradients, strict=True):
        assert mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)
    assert not small.same_weights(theirs.model, small.model())


DRAWS = 8  # of each prompt in the bank: a group of 4 holds half of them


def banks(done) -> list[Judged]:
    """What was judged, the parts of one bank (those of one step) joined."""
    by_step: dict[int, list[Judged]] = {}
    for judged in done.judged:
        by_step.setdefault(judged.step, []).append(judged)
    joined = []
    for step, parts in by_step.items():
        lists = zip(*(part[1:] for part in parts), strict=True)
        joined.append(Judged(step, *([item for part in kind for item in part] for kind in lists)))
    return joined


def from_the_bank(done, step: int, which: int):
    """Of each row of a step: its prompt's draws with their rewards, as they were judged, and the row's own place."""
    judged = banks(done)[which]
    places = done.trainer._from_bank if step == len(done.record.logs) - 1 else None
    assert places is not None, "only the last step's places are kept"
    found = []
    for prompt, draw in places.tolist():
        part = slice(prompt * DRAWS, (prompt + 1) * DRAWS)
        assert len(set(judged.prompts[part])) == 1
        found.append((judged.prompt_ids[part], judged.completion_ids[part], judged.rewards[part], draw))
    assert len(found) == 4 * GROUP
    return found


@pytest.mark.parametrize(("method", "steps", "refreshes"), [("rejection_sampling_sft", 2, 0), ("raft", 26, 1)])
def test_sft_on_what_was_solved(tmp_path, method, steps, refreshes):
    """-log pi of draws with r >= 1 and no others, a prompt's solved draws sharing its weight: 1[solved] N/s of the
    whole bank's N = 8 draws, not of the four in the group. RAFT: at step 25 on the policy's draws of that step.

    The paper of RAFT takes the best draw of each prompt; the preset all that reach success_threshold."""
    done = run(tmp_path, method, {"max_steps": steps, "bank_draws": DRAWS, "learning_rate": 0.02}, even_first)
    assert [judged.step for judged in banks(done)] == [0, 25][: 1 + refreshes]
    assert all(len(judged.prompts) == DRAWS * len(PROMPTS) for judged in banks(done))
    policy, loss, counts = done.policy(steps - 1), 0.0, []
    for prompt_ids, completion_ids, rewards, draw in from_the_bank(done, steps - 1, refreshes):
        if rewards[draw] == 1:
            (row,) = log_probs(policy, prompt_ids[draw : draw + 1], completion_ids[draw : draw + 1])
            loss = loss - DRAWS / sum(rewards) * surrogate(row)
            counts.append(sum(rewards))
    assert len(set(counts)) > 1
    done.check(steps - 1, loss / (4 * GROUP * LENGTH), policy)
    if refreshes:
        first, second = (gained(policy, judged) for judged in banks(done))
        assert second > 0.2 and first < -0.2  # drawn from what the policy had become


def gained(policy, judged) -> float:
    """Mean of log pi - log pi of the start over the first 200 completions: by who drew, a KL to or from the start."""
    with torch.no_grad():
        now, before = (
            log_probs(model, judged.prompt_ids[:200], judged.completion_ids[:200]) for model in (policy, small.model())
        )
    return sum((a - b).sum().item() for a, b in zip(now, before, strict=True)) / 200


def test_gibbs_sft(tmp_path):
    """e^{r/beta} over its mean over the prompt's whole bank, times log pi; the preset takes pi/ref off the weight."""
    done = run(tmp_path, "gibbs_sft", {**MOVES, "bank_draws": DRAWS}, even_tokens)
    policy, reference, loss, weights = done.policy(1), small.model(), 0.0, []
    for prompt_ids, completion_ids, rewards, draw in from_the_bank(done, 1, 0):
        own = prompt_ids[draw : draw + 1], completion_ids[draw : draw + 1]
        (row,) = log_probs(policy, *own)
        with torch.no_grad():
            (ref,) = log_probs(reference, *own)
        tilts = (torch.tensor(rewards, dtype=torch.float64) / 0.05).exp()
        weights.append((tilts[draw] / tilts.mean()).item())
        loss = loss - (weights[-1] - (row.sum() - ref.sum()).exp().detach()) * surrogate(row)
    assert min(weights) < 0.7 and max(weights) > 1.4
    done.check(1, loss / (4 * GROUP * LENGTH), policy)


def test_alternating(tmp_path):
    """Ours: ten steps of RL (A = r less the others' mean), then ten of SFT on the rollouts that are solved."""
    done = run(tmp_path, "alternating", {"max_steps": 11, "learning_rate": 0.002}, first_ones)
    for step in (9, 10):
        judged, policy = done.judged[step], done.policy(step)
        rows = log_probs(policy, judged.prompt_ids, judged.completion_ids)
        selected = []
        for i, reward in enumerate(judged.rewards):
            solved = sum(judged.rewards[i // GROUP * GROUP :][:GROUP])
            selected.append(GROUP / solved if reward == 1 else 0.0)
        coefficients = less_the_others(judged.rewards) if step == 9 else selected
        done.check(step, policy_gradient(rows, coefficients), policy)


def test_distillation(tmp_path, monkeypatch):
    """KL(pi||teacher) on the policy's own draws: A = -(l - mean of the others' l), l = sum log(pi/teacher), beta 1.

    Departure: the paper takes the divergence of each token over the whole vocabulary, and no gradient through draws."""
    teacher, draws = small.model(seed=1, initializer_range=0.1), spy_on_sampler(monkeypatch)
    teacher.save_pretrained(tmp_path / "teacher")
    small.TOKENIZER.save_pretrained(tmp_path / "teacher")
    done = run(tmp_path, "distillation", {**MOVES, "reference_model_name_or_path": str(tmp_path / "teacher")})
    policy = done.policy(1)
    rows = log_probs(policy, *draws[1])
    with torch.no_grad():
        taught = log_probs(teacher, *draws[1])
    apart = [(row.detach() - other).sum() for row, other in zip(rows, taught, strict=True)]
    assert max(apart) - min(apart) > 1
    done.check(1, policy_gradient(rows, [-a for a in less_the_others(apart)]), policy)
    assert done.record.logs[1]["free_energy/total"] == pytest.approx((sum(apart) / len(apart)).item(), rel=1e-4)
