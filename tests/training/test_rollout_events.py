"""The event on_rollouts: what it hands over, under every way of making rollouts."""

import hashlib

import numpy as np
import pytest
import small
from transformers import TrainerCallback

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.sequences.models import evaluating
from fe_posttrain.sequences.scoring import score
from fe_posttrain.training.rollout_events import prompt_key


class Listener(TrainerCallback):
    """Scores every rollout again, by policy and reference, when it is told of it."""

    def __init__(self):
        self.seen, self.scored, self.drawn = [], [], []
        self.trainer = None

    def bind(self, trainer):
        self.trainer = trainer

    def reward(self, completion_ids, **columns) -> list[float]:
        """A reward that remembers what was drawn."""
        self.drawn = [list(ids) for ids in completion_ids]
        return small.length_reward(completion_ids)

    def on_rollouts(self, args, state, control, rollouts):
        prompts = small.TOKENIZER([row["prompt"] for row in rollouts.inputs])["input_ids"]
        found = []
        for model in (self.trainer.accelerator.unwrap_model(self.trainer.model), self.trainer.ref_model):
            if model is not None:
                with evaluating(model):
                    pad = small.TOKENIZER.pad_token_id
                    log_probs, _ = score(model, prompts, self.drawn, pad_token_id=pad, temperature=args.temperature)
                found.append(log_probs.sum(1).numpy())
        self.seen.append(rollouts)
        self.scored.append((*found, rollouts.score(range(3))))
        return {"support/told": float(len(rollouts.prompt))}


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.1},
        {"beta": 0.1, "estimator": "sequence_to_go"},
        {"beta": 0.0},
        {"beta": 0.1, "temperature": 0.7},
        {"beta": 0.1, "estimator": "trl"},
        {"beta": 0.0, "estimator": "trl"},
        {"beta": 0.1, "estimator": "trl", "gradient_accumulation_steps": 2},
        {"beta": 0.1, "estimator": "trl", "steps_per_generation": 2},
        {"beta": 0.1, "steps_per_generation": 2},
    ],
    ids=str,
)
def test_log_probs_are_those_of_policy_and_reference(tmp_path, settings):
    listener = Listener()
    record, _ = small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        tmp_path,
        settings={"max_steps": 4, **small.ROLLOUTS, **settings},
        model=small.model(),
        reward_funcs=[listener.reward],
        train_dataset=small.prompts(),
        callbacks=[listener],
    )
    assert [r.step for r in listener.seen] == ([0, 2] if "steps_per_generation" in settings else [0, 1, 2, 3])
    for rollouts, scored in zip(listener.seen, listener.scored, strict=True):
        assert rollouts.log_policy == pytest.approx(scored[0], abs=1e-4)
        assert rollouts.log_sampler == pytest.approx(scored[0], abs=1e-4)
        assert scored[-1] == pytest.approx(rollouts.log_policy[:3], abs=1e-4)
        if settings["beta"]:
            assert rollouts.log_reference == pytest.approx(scored[1], abs=1e-4)
            assert np.abs(scored[0] - scored[1]).max() > 1e-4 or rollouts.step == 0
        else:
            assert rollouts.log_reference is None
        groups = rollouts.prompt.reshape(-1, 4)
        assert (groups == groups[:, :1]).all()
        assert rollouts.prompt.tolist() == [prompt_key(row["prompt"]) for row in rollouts.inputs]
        assert rollouts.mine == slice(0, len(rollouts.prompt))
    assert record.logs[0]["support/told"] == len(listener.seen[0].prompt)


def test_a_truncated_sampler_hands_over_the_law_that_it_drew_from(tmp_path):
    listener = Listener()
    small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        tmp_path,
        settings={"max_steps": 2, **small.ROLLOUTS, "beta": 0.1, "top_k": 3},
        model=small.model(),
        reward_funcs=[listener.reward],
        train_dataset=small.prompts(),
        callbacks=[listener],
    )
    for rollouts, scored in zip(listener.seen, listener.scored, strict=True):
        assert rollouts.log_policy == pytest.approx(scored[0], abs=1e-4)  # of the whole policy
        assert (rollouts.log_sampler > rollouts.log_policy).all()  # what is cut off went to the rest


def test_generation_by_trl_under_a_penalty_leaves_the_sampler_unknown(tmp_path):
    listener = Listener()
    small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        tmp_path,
        settings={"max_steps": 1, **small.ROLLOUTS, "beta": 0.1, "repetition_penalty": 1.3},
        model=small.model(),
        reward_funcs=[listener.reward],
        train_dataset=small.prompts(),
        callbacks=[listener],
    )
    assert listener.seen[0].log_sampler is None


def test_a_prompt_s_key_is_the_same_in_every_process():
    assert prompt_key("R12345") == prompt_key("R12345") != prompt_key("R12346")
    assert prompt_key([{"role": "user", "content": "a"}]) == prompt_key([{"content": "a", "role": "user"}])
    digest = hashlib.blake2b(b"R12345", digest_size=8).digest()
    assert prompt_key("R12345") == int.from_bytes(digest, "little", signed=True)
