"""What runs spend, counted by hand: tokens, verdicts and demonstrations, and across a resume."""

import pytest
import small
import torch
from by_hand import fixed_rollouts, train
from pairs import Rollouts, by_place, demonstrated, rows, tokens_of
from transformers import TrainerCallback

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.tasks import digits

NAMES = {"generated_tokens", "verifier_calls", "gradient_tokens", "forward_tokens", "demonstrations"}


def spent(trainer) -> dict[str, int]:
    found = trainer._account.total()
    assert found.keys() == NAMES
    return found


def test_two_steps_of_reinforcement(tmp_path):
    """Groups with 1, 0, 3 and 4 successes of 4: two have a signal, and at beta 0 the others train nothing."""
    calls = Rollouts()
    _, trainer = train(tmp_path, settings={"max_steps": 2, "beta": 0.0}, reward_funcs=[by_place], rollout_func=calls)
    completions = [y for _, drawn in calls.drawn for y in drawn]
    trained = [y for _, drawn in calls.drawn for i, y in enumerate(drawn) if i // 4 in (0, 2)]
    assert spent(trainer) == {
        "generated_tokens": tokens_of(completions),
        "verifier_calls": 32,
        "gradient_tokens": tokens_of(trained),
        "forward_tokens": 0,
        "demonstrations": 0,
    }


@pytest.mark.parametrize("size", [16, 4], ids=["one batch", "accumulated"])
def test_two_steps_with_a_gate_and_a_reference(tmp_path, size):
    """Under `threshold` the groups 0, 2 and 3 are trained, the demonstration of group 1 is; beta moves all rows."""
    calls = Rollouts()
    settings = {
        "max_steps": 2,
        "beta": 0.1,
        "gate": "threshold",
        "demonstration_energy_weight": 1.0,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": 16 // size,
        "learning_rate": 0.05,
    }
    _, trainer = train(tmp_path, settings=settings, train_dataset=rows(), reward_funcs=[by_place], rollout_func=calls)
    found, (first, second) = spent(trainer), calls.drawn
    shown = sum(len(demonstrated(prompt_ids)[4]) for prompt_ids, _ in calls.drawn)
    # At the first step log pi = log ref: groups 1 (none solved) and 3 (all solved) have advantages of 0.
    signal = tokens_of([y for i, y in enumerate(first[1]) if i // 4 in (0, 2)]) + tokens_of(second[1])
    assert found["generated_tokens"] == tokens_of(first[1]) + tokens_of(second[1])
    assert found["verifier_calls"] == 32 and found["demonstrations"] == 2
    assert signal + shown <= found["gradient_tokens"] <= tokens_of(first[1]) + tokens_of(second[1]) + shown
    # The reference scores both draws, and the policy the first one, to compare.
    assert found["forward_tokens"] == 2 * tokens_of(first[1]) + tokens_of(second[1])


@pytest.mark.parametrize("own", [{}, {"packing": True, "max_length": 512}], ids=["padded", "packed"])
@pytest.mark.parametrize("beside", ["alone", "alone, soft", "beside rollouts"])
def test_demonstrations_are_counted_as_sequences(tmp_path, own, beside):
    demos = small.demonstrations(12)
    tokens = sum(len(small.TOKENIZER(y)["input_ids"]) + 1 for y in demos["completion"])  # and the end token
    settings = {
        "max_steps": 2,
        "beta": 0.0,
        "demonstration_energy_weight": 1.0,
        "per_device_train_batch_size": 12,
        "per_device_demonstration_batch_size": 1 if own else 12,  # packed, all of them lie in one row
        "num_generations": 4,
        **own,
    }
    if beside != "beside rollouts":
        settings |= {"reward_energy_weight": 0.0, "demonstration_beta": 0.3 if "soft" in beside else 0.0}
    silent = [lambda completions, **_: [0.0] * len(completions)]
    _, trainer = train(
        tmp_path,
        settings=settings,
        demo_dataset=demos,
        reward_funcs=None if beside != "beside rollouts" else silent,
        **({} if beside == "beside rollouts" else {"train_dataset": None}),
    )
    found = spent(trainer)
    assert found["demonstrations"] == 24 and found["gradient_tokens"] == 2 * tokens
    assert (found["generated_tokens"] > 0) == (beside == "beside rollouts")


def test_rows_cut_off_at_the_longest_length_were_generated_all_the_same(tmp_path):
    def endless(prompts, trainer):
        found = fixed_rollouts(prompts, trainer)
        found["completion_ids"] = [[5] * 8 for _ in prompts]
        found["logprobs"] = None
        return found

    settings = {"max_steps": 1, "beta": 0.0, "mask_truncated_completions": True}
    _, trainer = train(tmp_path, settings=settings, rollout_func=endless)
    assert spent(trainer)["generated_tokens"] == 16 * 8 and spent(trainer)["gradient_tokens"] == 0


def test_a_kl_without_a_reward_asks_no_verifier(tmp_path):
    settings = {"max_steps": 1, "reward_energy_weight": 0.0}
    _, trainer = train(tmp_path, settings=settings, reward_funcs=None, rollout_func=fixed_rollouts)
    found = spent(trainer)
    assert found["verifier_calls"] == 0 and found["generated_tokens"] == tokens_of(trainer.drawn[1])


class Stops(TrainerCallback):
    """Asks the run to stop, with a checkpoint, after so many steps."""

    def __init__(self, after: int):
        self.after = after

    def bind(self, trainer):
        trainer.stop_requested = lambda: trainer.state.global_step == self.after


def mixture(folder, *, stop: int = 0, resume=None):
    settings = {"max_steps": 6, "beta": 0.1, "gate": "failure_rate", "demonstration_energy_weight": 0.5}
    prompts = small.prompts(20)
    trainer = FreeEnergyTrainer(
        small.model(),
        [lambda completion_ids, **_: [float(len(ids) % 2) for ids in completion_ids]],
        FreeEnergyConfig(str(folder), **{**small.SETTINGS, **small.ROLLOUTS, "save_strategy": "steps", **settings}),
        prompts.add_column("demonstration", [digits.demonstration(x) for x in prompts["prompt"]]),
        processing_class=small.TOKENIZER,
        callbacks=[Stops(stop)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_run_has_spent_what_the_uninterrupted_one_has(tmp_path):
    whole = mixture(tmp_path / "whole")
    broken = mixture(tmp_path / "broken", stop=3)
    assert broken.stopped_early and 0 < spent(broken)["generated_tokens"] < spent(whole)["generated_tokens"]
    resumed = mixture(tmp_path / "broken", resume=True)
    assert spent(resumed) == spent(whole) and spent(whole)["verifier_calls"] == 6 * 16
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
