"""The callback: right numbers at the right steps, and a training that does not notice."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_llama import random_llama
from transformers import TrainerState

from fe_posttrain.tasks.exact import exact_gap, exact_probabilities, exact_terms
from fe_posttrain.tasks.exact_callback import ExactCallback

PROMPTS = {"basin": ["R31425", "S90817"], "barrier": ["RT31425"]}


class Wrapped(torch.nn.Module):
    """What a data-parallel wrapper looks like."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.fixture
def model():
    return random_llama(0, spread=0.3).train()


@pytest.fixture
def reference(tmp_path):
    random_llama(1, spread=0.3).save_pretrained(tmp_path)
    return tmp_path


def weights(beta: float):
    return SimpleNamespace(reward=1.0, beta=beta)


def run(callback, model, steps, rank_zero=True):
    state = TrainerState(is_world_process_zero=rank_zero)
    callback.on_train_begin(None, state, None, model=model)
    for state.global_step in range(1, steps + 1):
        callback.on_step_end(None, state, None, model=model)
    callback.on_train_end(None, state, None, model=model)


def test_steps_keys_and_values(model, reference, tokenizer):
    def weights_at(step):
        return weights(0.1 * (step + 1))

    callback = ExactCallback(tokenizer, PROMPTS, reference, every=2, gap_every=3, weights_at=weights_at)
    run(callback, Wrapped(model), steps=5)
    assert [record["step"] for record in callback.history] == [0, 2, 3, 4, 5]
    p_keys = {f"testbed/p/{family}" for family in PROMPTS}
    all_keys = {"step"} | p_keys | {f"testbed/{name}/{family}" for name in ("kl", "gap") for family in PROMPTS}
    assert [set(record) == all_keys for record in callback.history] == [True, False, True, False, True]
    assert set(callback.history[1]) == {"step"} | p_keys

    frozen = random_llama(1, spread=0.3)
    terms = exact_terms(model, frozen, tokenizer, PROMPTS["basin"], max_length=12)
    gap = exact_gap(terms, exact_probabilities(frozen, tokenizer, PROMPTS["basin"]), beta=0.4)
    third = callback.history[2]
    assert third["testbed/p/basin"] == pytest.approx(terms.probability.mean().item(), rel=1e-4)
    assert third["testbed/kl/basin"] == pytest.approx(terms.kl.mean().item())
    assert third["testbed/gap/basin"] == pytest.approx(gap.mean().item())


def test_metrics_are_handed_over_once(model, tokenizer):
    callback = ExactCallback(tokenizer, PROMPTS, every=2)
    run(callback, model, steps=2)
    assert callback.metrics_to_log() == {k: v for k, v in callback.history[-1].items() if k != "step"}
    assert callback.metrics_to_log() == {}


def test_summary_is_first_and_last(model, tokenizer):
    callback = ExactCallback(tokenizer, PROMPTS, every=1)
    state = TrainerState(is_world_process_zero=True)
    callback.on_train_begin(None, state, None, model=model)
    with torch.no_grad():
        model.model.norm.weight.zero_()  # every token equally likely
    callback.on_train_end(None, TrainerState(global_step=1, is_world_process_zero=True), None, model=model)
    summary = callback.summary()
    assert summary["basin"]["end"] == pytest.approx(26.0**-6, rel=1e-4)
    assert summary["barrier"]["end"] == pytest.approx(26.0**-6 + 26.0**-12, rel=1e-4)
    assert summary["basin"]["start"] == callback.history[0]["testbed/p/basin"] != summary["basin"]["end"]


def test_no_gap_at_beta_zero_and_no_terms_without_reference(model, reference, tokenizer):
    with_reference = ExactCallback(tokenizer, PROMPTS, reference, weights_at=lambda step: weights(0.0))
    run(with_reference, model, steps=1)
    assert {key.split("/")[1] for key in with_reference.metrics_to_log()} == {"p", "kl"}
    alone = ExactCallback(tokenizer, PROMPTS, weights_at=lambda step: weights(0.1))
    run(alone, model, steps=1)
    assert {key.split("/")[1] for key in alone.metrics_to_log()} == {"p"}


def test_random_state_modes_and_gradients_stay(model, reference, tokenizer):
    model.lm_head.eval()  # a mixed state must come back as it was
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    run(
        ExactCallback(tokenizer, PROMPTS, reference, weights_at=lambda step: weights(0.1), every=1),
        model,
        steps=1,
    )
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_ranks_do_nothing(model, tokenizer):
    callback = ExactCallback(tokenizer, PROMPTS, every=1)
    run(callback, model, steps=2, rank_zero=False)
    assert callback.history == [] and callback.metrics_to_log() == {}
