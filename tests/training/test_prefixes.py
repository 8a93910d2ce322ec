"""Rollouts that start inside a demonstration: one step against hand arithmetic, what starts how, and resuming."""

import logging
import math

import numpy as np
import pytest
import small
import torch
from by_hand import assert_close, gradients_of, log_probs_with_grad
from transformers import TrainerCallback

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.sequences.sampling import Drawn
from fe_posttrain.sequences.scoring import score
from fe_posttrain.tasks import digits
from fe_posttrain.training import rollouts
from fe_posttrain.training.prefixes import most_uncertain, prefix_length

TOKENIZER = small.TOKENIZER
WEIGHT, BETA, LENGTH, GROUP = 1.5, 0.2, 16, 4
SETTINGS = {
    "per_device_train_batch_size": 16,
    "num_generations": GROUP,
    "max_completion_length": LENGTH,
    "beta": BETA,
    "reward_energy_weight": WEIGHT,
    "max_grad_norm": 0.0,
    "prefix_share": 0.5,
}
UFT = {"prefix_likelihood_weight": 0.3}
PREFIX_RFT = {"prefix_rollouts": 1, "prefix_update": "uncertain", "prefix_update_share": 0.4}


def paired(rows: int = 40, every: int = 1):
    """Prompts with their worked demonstration, every `every`-th of them."""
    found = digits.dataset(["barrier", "tail_10"], rows, seed=0)  # worked answers of 11 tokens, direct ones of 5
    shown = [None if i % every else digits.demonstration(x) for i, x in enumerate(found["prompt"])]
    return found.add_column("demonstration", shown)


def run(folder, *, settings=None, **arguments):
    defaults = {"model": small.model(), "reward_funcs": [small.length_reward], "train_dataset": paired()}
    return small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={"max_steps": 2, **SETTINGS, **(settings or {})},
        **defaults | arguments,
    )


class FixedSampler:
    """Stands for `sample`: continuations that depend on the row alone, with the log-probs of the policy of now."""

    def __init__(self):
        self.calls: list[tuple[list[list[int]], list[list[int]]]] = []

    def __call__(self, model, token_ids, decoding, *, eos_token_ids, pad_token_id, limits=None, compiled=False):
        drawn = []
        for i, most in enumerate(limits):
            generator = torch.Generator().manual_seed(100 * len(self.calls) + i)
            length = int(torch.randint(1, most + 1, (1,), generator=generator))
            drawn.append(torch.randint(4, len(TOKENIZER), (length - 1,), generator=generator).tolist())
            drawn[-1].append(TOKENIZER.eos_token_id)
        self.calls.append((token_ids, drawn))
        log_probs, mask = score(model, token_ids, drawn, pad_token_id=pad_token_id)
        kept = [row[m].tolist() for row, m in zip(log_probs, mask, strict=True)]
        return Drawn(drawn, kept, [[0.5] * len(row) for row in drawn])


class Weights(TrainerCallback):
    """The policy at the beginning of each step."""

    def __init__(self):
        self.at: list[dict] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.at.append({name: p.detach().clone() for name, p in model.state_dict().items()})


PROMPTS = paired()["prompt"]


def starts_of(token_ids: list[list[int]], rollouts_with: int, share: float) -> list[list[int]]:
    """By hand: the first half of the worked answer, for the first rows of each group."""
    found = []
    for i, ids in enumerate(token_ids):
        text = TOKENIZER.decode(ids)
        prompt = next(prompt for prompt in PROMPTS if text.startswith(prompt))
        shown = TOKENIZER(digits.demonstration(prompt))["input_ids"]
        found.append(shown[: math.floor(len(shown) * share + 0.5)] if i % GROUP < rollouts_with else [])
        assert ids == TOKENIZER(prompt)["input_ids"] + found[-1]
    return found


@pytest.mark.parametrize("estimator", ["sequence", "sequence_to_go"])
@pytest.mark.parametrize("accumulation", [1, 4], ids=["one batch", "four micro-batches"])
@pytest.mark.parametrize("method", [UFT, PREFIX_RFT], ids=["UFT", "Prefix-RFT"])
def test_gradient_of_a_step_equals_hand_arithmetic(tmp_path, monkeypatch, method, estimator, accumulation):
    sampler, weights = FixedSampler(), Weights()
    monkeypatch.setattr(rollouts, "sample", sampler)
    own = {
        **method,
        "estimator": estimator,
        "per_device_train_batch_size": 16 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "optim": "sgd",
        "learning_rate": 0.05,
    }
    record, trainer = run(tmp_path, settings=own, callbacks=[weights])
    policy, reference = small.model(), small.model()
    policy.load_state_dict(weights.at[1])  # the second step: off the reference
    token_ids, continued = sampler.calls[1]
    starts = starts_of(token_ids, method.get("prefix_rollouts", GROUP), 0.5)
    prompts = [ids[: len(ids) - len(start)] for ids, start in zip(token_ids, starts, strict=True)]
    completions = [start + ids for start, ids in zip(starts, continued, strict=True)]
    rewards = small.length_reward(completions)
    rows = log_probs_with_grad(policy, prompts, completions)
    with torch.no_grad():
        ratios = [
            row.detach() - old
            for row, old in zip(rows, log_probs_with_grad(reference, prompts, completions), strict=True)
        ]

    def shaped(j: int, place: int):
        """Of row j at a place of the *completion*: the KL of the whole continuation, or of what follows the place."""
        first = len(starts[j])
        return WEIGHT * rewards[j] - BETA * ratios[j][first if estimator == "sequence" else max(first, place) :].sum()

    loss = hint = 0.0
    for i, row in enumerate(rows):
        length = len(starts[i])
        joined = _uncertain_by_hand(policy, prompts[i], starts[i], method.get("prefix_update_share", 0.0))
        for place in [*joined, *range(length, len(row))]:
            others = [j for j in range(i // GROUP * GROUP, i // GROUP * GROUP + GROUP) if j != i]
            advantage = shaped(i, place) - sum(shaped(j, place) for j in others) / len(others)
            loss = loss - advantage * row[place]
        hint = hint - method.get("prefix_likelihood_weight", 0.0) * row[:length].sum()
    assert_close(record.gradients[1], gradients_of((loss + hint) / (16 * LENGTH), policy))
    logged = record.logs[1]
    tokens = sum(map(len, starts)) / (16 if method is UFT else 4)
    assert logged["prefix/tokens"] == pytest.approx(tokens) and logged["prefix/share"] == 0.5
    assert logged["completions/mean_length"] == pytest.approx(sum(map(len, continued)) / 16)
    kl = sum(ratio[len(start) :].sum().item() for ratio, start in zip(ratios, starts, strict=True)) / 16
    assert logged["free_energy/kl"] == pytest.approx(kl, rel=1e-4)
    account = trainer._account.total()
    assert account["generated_tokens"] == sum(len(ids) for _, drawn in sampler.calls for ids in drawn)
    assert account["gradient_tokens"] == sum(_trained_by_hand(*call, method) for call in sampler.calls)
    if method is UFT:
        assert logged["free_energy/demonstration"] == pytest.approx(hint.item() / 16, rel=1e-5)
        terms = ("free_energy/reward", "free_energy/demonstration")
        assert logged["free_energy/total"] == pytest.approx(sum(logged[t] for t in terms) + BETA * kl, rel=1e-4)


def _trained_by_hand(token_ids: list[list[int]], continued: list[list[int]], method: dict) -> int:
    """Tokens with a coefficient in a step in which every row has an advantage."""
    starts = starts_of(token_ids, method.get("prefix_rollouts", GROUP), 0.5)
    of_starts = [len(start) if method is UFT else math.ceil(0.4 * len(start)) for start in starts]
    return sum(map(len, continued)) + sum(of_starts)


def _uncertain_by_hand(model, prompt: list[int], start: list[int], share: float) -> list[int]:
    """Places of the most uncertain tokens of a prefix, from the full softmax of one row."""
    if not share or not start:
        return []
    with torch.no_grad():
        logits = model(torch.tensor([prompt + start])).logits[0, len(prompt) - 1 : -1]
    entropy = torch.distributions.Categorical(logits=logits).entropy().tolist()
    ranked = sorted(range(len(start)), key=lambda t: -entropy[t])
    return ranked[: math.ceil(share * len(start))]


def test_a_hint_is_learnt_where_rewards_say_nothing(tmp_path, monkeypatch):
    """Every advantage is 0, so no row needs a backward for its reward."""
    sampler = FixedSampler()
    monkeypatch.setattr(rollouts, "sample", sampler)
    own = {**UFT, "beta": 0.0, "max_steps": 1}
    record, _ = run(tmp_path, settings=own, reward_funcs=[lambda prompts, **_: [1.0] * len(prompts)])
    token_ids, _ = sampler.calls[0]
    starts, model = starts_of(token_ids, GROUP, 0.5), small.model()
    prompts = [ids[: len(ids) - len(start)] for ids, start in zip(token_ids, starts, strict=True)]
    rows = log_probs_with_grad(model, prompts, starts)
    assert_close(record.gradients[0], gradients_of(-0.3 * sum(row.sum() for row in rows) / (16 * LENGTH), model))


def test_what_starts_how(tmp_path):
    """Real draws: the first rows of a group start alike, never with an end token, and leave room for one token."""
    seen = []

    def reward(prompts, completion_ids, demonstration, **columns):
        assert "demonstration_row" not in columns
        seen.extend(zip(prompts, completion_ids, demonstration, strict=True))
        return small.length_reward(completion_ids)

    settings = {"prefix_share": 1.0, "prefix_rollouts": 2, "max_completion_length": 8, "max_steps": 4}
    run(tmp_path, settings=settings, train_dataset=paired(every=2), reward_funcs=[reward])
    lengths = set()
    for i, (_, ids, shown) in enumerate(seen):
        assert 1 <= len(ids) <= 8
        if shown is not None and i % GROUP < 2:
            start = TOKENIZER(shown)["input_ids"][:7]
            lengths.add(len(start))
            assert ids[: len(start)] == start and TOKENIZER.eos_token_id not in start
    assert lengths == {5, 7}  # whole, and cut so that one token is the policy's
    free = [ids for i, (_, ids, shown) in enumerate(seen) if shown is None or i % GROUP >= 2]
    assert len({tuple(ids[:2]) for ids in free}) > len(free) // 2


def test_binomial_lengths_have_their_law_and_depend_on_their_key_alone():
    drawn = np.array([prefix_length("binomial", 0.3, 10, (3, step, row)) for step in range(50) for row in range(80)])
    assert abs(drawn.mean() - 3.0) < 4 * math.sqrt(2.1 / len(drawn))
    assert abs(drawn.var() - 2.1) < 0.2
    again = [prefix_length("binomial", 0.3, 10, (3, 7, row)) for row in range(80)]
    assert again == drawn[7 * 80 : 8 * 80].tolist()
    assert [prefix_length("fixed", share, 5, ()) for share in (0.0, 0.29, 0.3, 0.5, 1.0)] == [0, 1, 2, 3, 5]


def test_the_most_uncertain_tokens_of_each_row():
    entropies = torch.tensor([[0.1, 0.9, 0.5, 0.9, 7.0], [3.0, 2.0, 1.0, 9.0, 9.0], [1.0, 2.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True] * 4 + [False], [True] * 3 + [False] * 2, [False] * 5])
    chosen = most_uncertain(entropies, mask, 0.34)
    assert chosen.tolist() == [[False, True, False, True, False], [True, True, False, False, False], [False] * 5]
    assert most_uncertain(entropies, mask, 0.2).sum(1).tolist() == [1, 1, 0]


def test_prefixes_of_no_token_are_the_plain_run(tmp_path):
    """A share that rounds to nothing goes through every line that prefixes added, and changes no bit."""
    own = {"max_steps": 4, "learning_rate": 0.01}
    plain, one = run(tmp_path / "plain", settings={**own, "prefix_share": 0.0})
    empty, two = run(tmp_path / "empty", settings={**own, "prefix_share": 0.01})
    assert empty.column("prefix/tokens") == [0.0] * 4 and "prefix/tokens" not in plain.logs[0]
    assert small.same_weights(one.model, two.model) and not small.same_weights(one.model, small.model())
    for a, b in zip(plain.logs, empty.logs, strict=True):
        assert {key: a[key] for key in a if key != "step_time"} == {key: b[key] for key in a if key != "step_time"}


class StopAt(TrainerCallback):
    def __init__(self, step: int | None):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


@pytest.mark.parametrize("method", [UFT, PREFIX_RFT], ids=["UFT", "Prefix-RFT"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, method):
    schedule = {"cosine": {"final": 0.0, "until": 0.6}}
    own = {**method, "prefix_share": 0.9, "prefix_law": "binomial", "prefix_schedule": schedule}
    own |= {"max_steps": 12, "save_strategy": "steps", "save_steps": 4, "logging_steps": 3}

    def train(name: str, stop=None, resume=None):
        record = small.Record()
        trainer = FreeEnergyTrainer(
            small.model(),
            reward_funcs=[small.length_reward],
            args=FreeEnergyConfig(str(tmp_path / name), **{**small.SETTINGS, **SETTINGS, **own}),
            train_dataset=paired(20),
            processing_class=TOKENIZER,
            callbacks=[record, StopAt(stop)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return record, trainer

    record, whole = train("whole")
    train("broken", stop=6)
    again, resumed = train("broken", resume=True)
    assert small.same_weights(whole.model, resumed.model)
    assert 0 < len(again.logs) < len(record.logs)
    for a, b in zip(record.logs[-len(again.logs) :], again.logs, strict=True):
        assert {key: a[key] for key in a if key != "step_time"} == {key: b[key] for key in b if key != "step_time"}
    tokens = record.column("prefix/tokens")
    assert tokens[0] > 3 and tokens[-1] == 0.0 and record.column("prefix/share")[-1] == 0.0


def test_rollouts_with_a_start_are_told_to_nobody_and_show_no_gap(tmp_path):
    class Listens(TrainerCallback):
        def __init__(self):
            self.steps: list[int] = []

        def on_rollouts(self, args, state, control, rollouts):
            self.steps.append(rollouts.step)

    listens = Listens()
    rows = paired().add_column("reference_p", [0.1] * 40)
    own = {"max_steps": 4, "prefix_schedule": {"switch": {"final": 0.0, "until": 2}}}
    record, _ = run(
        tmp_path, settings=own, train_dataset=rows, callbacks=[listens], reward_funcs=[lambda prompts, **_: [1.0] * 16]
    )
    assert listens.steps == [2, 3]
    assert ["free_energy/gap" in row for row in record.logs] == [False, False, True, True]
    assert record.column("prefix/share") == [0.5, 0.5, 0.0, 0.0]


def test_older_rollouts_keep_their_prefixes(tmp_path):
    """Two passes over the same rollouts, with everything on."""
    own = {**UFT, **PREFIX_RFT, "num_iterations": 2, "max_steps": 4, "prefix_law": "binomial"}
    record, _ = run(tmp_path, settings=own)
    assert all(row["free_energy/demonstration"] > 0 for row in record.logs)
    assert ["prefix/tokens" in row for row in record.logs] == [True, False, True, False]


@pytest.mark.parametrize("shares", [True, False])
def test_prompts_may_be_shared_or_not(tmp_path, monkeypatch, shares):
    sampler = FixedSampler()
    monkeypatch.setattr(rollouts, "sample", sampler)
    own = {**UFT, **PREFIX_RFT, "prefix_rollouts": 3, "max_steps": 1}
    record, _ = run(tmp_path, settings={**own, "share_prompts": shares})
    monkeypatch.setattr(rollouts, "sample", FixedSampler())
    other, _ = run(tmp_path, settings={**own, "share_prompts": not shares, "per_device_train_batch_size": 16})
    assert_close(record.gradients[0], other.gradients[0])


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ({"prefix_share": 0.0, "prefix_law": "binomial"}, "prefix_law"),
        ({"prefix_share": 1.5}, "prefix_share"),
        ({"prefix_law": "uniform"}, "prefix_law"),
        ({"estimator": "trl"}, "prefix_share"),
        ({"use_vllm": True}, "prefix_share"),
        ({"reward_energy_weight": 0.0, "beta": 0.0, "demonstration_energy_weight": 1.0}, "prefix_share"),
        ({"packing": True}, "prefix_share"),
        ({"prefix_rollouts": 5}, "prefix_rollouts"),
        ({"prefix_update_share": 0.3}, "prefix_update_share"),
        ({"prefix_likelihood_weight": 0.1, "demonstration_energy_weight": 1.0}, "prefix_likelihood_weight"),
        ({"prefix_schedule": "cosine"}, "prefix_schedule"),
        ({"prefix_schedule": {"linear": {"final": 1.2}}}, "prefix_schedule"),
        ({"prefix_schedule": {"linear": {"finale": 0.2}}}, "prefix_schedule"),
        ({"prefix_schedule": {"linear": 0.2}}, "prefix_schedule"),
    ],
)
def test_contradictions_are_named(tmp_path, own, key):
    with pytest.raises(ValueError) as error:
        FreeEnergyConfig(str(tmp_path), **{**small.SETTINGS, **SETTINGS, **own})
    assert f"  - {key}: " in str(error.value)


def test_what_no_rollout_can_start_in(tmp_path, caplog):
    with pytest.raises(ValueError, match="without paired demonstrations"):
        run(tmp_path, train_dataset=small.prompts())
    with pytest.raises(ValueError, match="our own sampler must draw"):
        run(tmp_path, rollout_func=lambda prompts, trainer: {})
    with pytest.raises(ValueError, match="does not begin with the tokens of its prompt"):
        run(tmp_path, settings={"max_length": 10, "truncation_mode": "keep_end"})
    with pytest.raises(ValueError, match="no demonstration has a token left"):
        run(tmp_path, settings={"max_length": 4})
    with caplog.at_level(logging.WARNING):
        run(tmp_path, settings={"max_steps": 1})
    assert "prefix_share: rollouts start inside a demonstration" in caplog.text
