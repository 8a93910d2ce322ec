"""Settings that contradict each other: each is reported once, under the key to change, with what to write."""

import pytest
import small
from by_hand import train

from fe_posttrain import FreeEnergyConfig
from fe_posttrain.training.conflicts import problems

PURE = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}
SHOWN = {"demonstration_energy_weight": 1.0}
CASES = {
    # schedules
    "schedule without end": ({"beta_schedule": "cosine"}, "beta_schedule", "write both or neither"),
    "schedule with another word": ({"beta_schedule": {"linear": {"finl": 0.0}}}, "beta_schedule", "that it takes"),
    "unknown schedule": ({"reward_energy_schedule": "lineal"}, "reward_energy_schedule", "did you mean linear?"),
    "below 0": ({"beta": 0.1, "beta_schedule": {"linear": {"final": -0.1}}}, "beta_schedule", "write 0 or more"),
    "infinite on its way": ({"beta_schedule": "own.py:endless"}, "beta_schedule", "write 0 or more"),
    "text in a schedule": ({"beta_schedule": {"linear": {"final": "x"}}}, "beta_schedule", "write such a one"),
    "value twice": ({"beta_schedule": {"linear": {"final": 1.0, "value": 2.0}}}, "beta_schedule", "remove it"),
    "kind twice": ({"beta_schedule": {"linear": {"final": 1.0, "kind": "cosine"}}}, "beta_schedule", "remove it"),
    "warm-up beyond the end": (
        {"beta_schedule": {"linear": {"final": 1.0, "warmup": 30, "until": 20}}},
        "beta_schedule",
        "write a later until or a shorter warmup",
    ),
    "half a step": ({"beta_schedule": {"switch": {"final": 1.0, "until": 2.5}}}, "beta_schedule", "write such a share"),
    "no schedule": ({"beta_schedule": "own.py:no_number"}, "beta_schedule", "write 0 or more"),
    "other words": ({"beta_schedule": "own.py:nothing"}, "beta_schedule", "write such a one"),
    "weights that move where F has one": (
        {**PURE, "demonstration_energy_schedule": {"linear": {"final": 0.0}}},
        "demonstration_energy_schedule",
        "write lr_scheduler_type instead",
    ),
    # the whole
    "nothing to descend": (
        {"reward_energy_weight": 0.0, "reward_energy_schedule": {"linear": {"final": 0.0}}},
        "reward_energy_weight",
        "write 1 for one of them",
    ),
    "another divisor": ({"loss_type": "dapo"}, "loss_type", "or write estimator: trl"),
    # gates
    "unknown gate": ({**SHOWN, "gate": "treshold"}, "gate", "did you mean threshold?"),
    "gate with another word": ({**SHOWN, "gate": {"threshold": {"g": 1}}}, "gate", "write arguments that it takes"),
    "gate with text": ({**SHOWN, "gate": {"threshold": {"solved_at_most": "all"}}}, "gate", "mend its arguments"),
    "gate of a wrong shape": ({**SHOWN, "gate": "own.py:flat"}, "gate", "give (groups, 1) or (groups, rows)"),
    "gate without a file": ({**SHOWN, "gate": "nowhere.py:gate"}, "gate", "write the path of a .py file"),
    "gate in pure SFT": ({**PURE, "gate": "threshold"}, "gate", "write a positive weight"),
    "gate without a reward": ({"reward_energy_weight": 0.0, "beta": 0.1, "gate": "entropy"}, "gate", "remove it"),
    "gate of demonstrations alone": ({"gate": "unsolved"}, "gate", "write a positive weight, or remove it"),
    "gate under TRL's step": ({**SHOWN, "gate": "unsolved", "estimator": "trl"}, "gate", "write estimator: sequence"),
    "gate by token": ({**SHOWN, "gate": "entropy", "estimator": "sequence_to_go"}, "gate", "write estimator: sequence"),
    "quiet groups of TRL's": ({"quiet_group_rate": 0.5, "estimator": "trl"}, "quiet_group_rate", "another estimator"),
    # projections of the reward
    "bank of nothing": ({"forward_sampler": "bank"}, "forward_sampler", "remove it"),
    "forward without a reward": (
        {"reward_energy_weight": 0.0, "beta": 0.1, "reward_projection": "forward"},
        "reward_projection",
        "a positive reward_energy_weight",
    ),
    "forward by token": (
        {"reward_projection": "forward", "estimator": "sequence_to_go"},
        "reward_projection",
        "write estimator: sequence",
    ),
    "forward and a gate": ({**SHOWN, "gate": "entropy", "reward_projection": "forward"}, "gate", "remove it"),
    "forward and scaled": ({"scale_rewards": "group", "reward_projection": "forward"}, "scale_rewards", "remove it"),
    "alternating over a bank": (
        {"reward_projection": "alternating", "forward_sampler": "bank", "beta": 0.1},
        "forward_sampler",
        "write policy",
    ),
    # projections of demonstrations
    "reference twice": (
        {**PURE, "beta": 0.1, "kl_sampler": "demonstrations", "demonstration_beta": 0.1},
        "demonstration_beta",
        "write one of them",
    ),
    "factor of a reverse projection": (
        {**SHOWN, "demonstration_shaping": "shrinking", "demonstration_projection": "reverse"},
        "demonstration_shaping",
        "remove one of them",
    ),
    "factor of a soft target": (
        {**SHOWN, "demonstration_shaping": "shrinking", "demonstration_beta": 0.1},
        "demonstration_shaping",
        "remove one of them",
    ),
    "factor without any": ({"demonstration_shaping": "shrinking"}, "demonstration_shaping", "remove it"),
    "reverse without any": ({"demonstration_projection": "reverse"}, "demonstration_projection", "remove it"),
    "soft without any": ({"demonstration_beta": 0.1}, "demonstration_beta", "remove it"),
    "factor of a packed row": (
        {**SHOWN, "demonstration_shaping": "confidence", "packing": True},
        "demonstration_shaping",
        "write packing: false",
    ),
    "factor of a flat row": (
        {**SHOWN, "demonstration_shaping": "confidence", "padding_free": True},
        "demonstration_shaping",
        "padding_free: false",
    ),
    "factor with text": (
        {**SHOWN, "demonstration_shaping": {"confidence": {"scale": "x"}}},
        "demonstration_shaping",
        "mend its arguments",
    ),
    "factor of a wrong shape": ({**SHOWN, "demonstration_shaping": "own.py:whole"}, "demonstration_shaping", "give"),
    # demonstrations
    "penalty without demonstrations": ({"kl_sampler": "demonstrations"}, "kl_sampler", "or kl_sampler: policy"),
    "penalty of cut sequences": (
        {**PURE, "beta": 0.1, "kl_sampler": "demonstrations", "packing": True, "packing_strategy": "wrapped"},
        "packing_strategy",
        "write bfd",
    ),
    "mixture of cut sequences": (
        {**SHOWN, "packing": True, "packing_strategy": "wrapped"},
        "packing_strategy",
        "write bfd",
    ),
}  # fmt: skip
OWN = """
import torch

def no_number(step, total_steps, value):
    return None

def endless(step, total_steps, value):
    return value + (float("inf") if step > 50 else 0.0)

def nothing():
    return 1.0

def flat(groups):
    return groups.rate, groups.rate

def whole(log_probs, entropies, mask):
    return torch.ones(len(mask))
"""


@pytest.mark.parametrize("name", CASES)
def test_a_contradiction_is_one_line_with_its_key_and_remedy(tmp_path, monkeypatch, name):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    own, key, remedy = CASES[name]
    with pytest.raises(ValueError) as error:
        FreeEnergyConfig(str(tmp_path), use_cpu=True, max_steps=100, **own)
    (line,) = str(error.value).split("\n  - ")[1:]
    assert line.startswith(f"{key}: ") and remedy in line
    assert not line.startswith(f"{key}: {key}: ")


SOUND = (
    {**SHOWN, "gate": "failure_rate"},
    {**SHOWN, "gate": {"threshold": {"solved_at_most": 2}}, "demonstration_shaping": {"shrinking": {"gamma": 0.2}}},
    {"gate": "entropy"},
    {**PURE, "demonstration_projection": "reverse", "packing": True},
    {**PURE, "demonstration_beta": 0.05},
    {"reward_projection": "forward", "beta": 0.1, "forward_sampler": "bank"},
    {**PURE, "beta": 0.1, "kl_sampler": "demonstrations", "demonstration_energy_schedule": {"cosine": {"final": 0.0}}},
    {"beta_schedule": {"switch": {"final": 0.1, "until": 0.25}}},
)


@pytest.mark.parametrize("own", SOUND, ids=str)
def test_what_goes_together_is_accepted(tmp_path, own):
    config = FreeEnergyConfig(str(tmp_path), use_cpu=True, max_steps=100, **own)
    assert problems(config) == []  # none after the constructor has filled in defaults either
    assert {key: getattr(config, key) for key in own} == own  # and none of it was changed in silence


@pytest.mark.parametrize("gate", ["threshold", "failure_rate", "unsolved"])
def test_a_gate_on_demonstrations_needs_them_paired(tmp_path, gate):
    with pytest.raises(ValueError, match=f"gate: {gate} with demonstrations that are a stream of their own"):
        train(tmp_path, settings={**SHOWN, "gate": gate}, demo_dataset=small.demonstrations())


def test_a_gate_on_rewards_alone_may_have_a_stream_beside_it(tmp_path):
    record, _ = train(tmp_path, settings={**SHOWN, "gate": "entropy"}, demo_dataset=small.demonstrations())
    assert record.logs[0]["gate/demonstration"] == 1.0
