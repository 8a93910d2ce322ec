"""Both projections of demonstrations, at temperature 0 and above, against SFTTrainer's DFT and arithmetic by row."""

import pytest
import small
import torch
from by_hand import LENGTH, assert_close, gradients_of, log_probs_with_grad
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer

PURE = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}
ROWS, WEIGHT, TEMPERATURE = 12, 0.7, 0.4
SGD = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
NEVER = {"switch": {"final": 1.0, "until": 1000}}  # beyond the run: F's constant divisor, and no rollouts


def pure(folder, *, settings, rows=None, **arguments):
    """A run of demonstrations alone: SFTTrainer's batches and its mean over tokens."""
    return small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={**PURE, "per_device_train_batch_size": ROWS, "num_generations": 2, "max_steps": 2, **settings},
        **{"model": small.model(), "demo_dataset": small.demonstrations(ROWS) if rows is None else rows, **arguments},
    )


def mixed(folder, *, settings, **arguments):
    """A mixture in steps that have no reward: tokens summed, sequences averaged, F over one constant."""
    own = {**PURE, **small.ROLLOUTS, "reward_energy_schedule": NEVER, "per_device_demonstration_batch_size": ROWS}
    return small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={**own, "max_steps": 2, **settings},
        reward_funcs=[small.length_reward],
        train_dataset=small.prompts(),
        **{"model": small.model(), "demo_dataset": small.demonstrations(ROWS), **arguments},
    )


def encoded(rows) -> list[tuple[list[int], list[int]]]:
    tokenizer = small.TOKENIZER
    return [
        (tokenizer(x)["input_ids"], [*tokenizer(y)["input_ids"], tokenizer.eos_token_id])
        for x, y in zip(rows["prompt"], rows["completion"], strict=True)
    ]


def laws(model, rows) -> list[torch.Tensor]:
    """Row by row, without padding: the next-token log-probs (tokens, V) of each completion."""
    return [model(torch.tensor([x + y])).logits[0, len(x) - 1 : -1].log_softmax(-1) for x, y in encoded(rows)]


def soft_cost(policy, reference, rows, projection: str, temperature: float) -> list[torch.Tensor]:
    """Each row's energy summed over tokens, from explicit softmax targets over the vocabulary."""
    found = []
    with torch.no_grad():
        known = laws(reference, rows)
    for law, before, (_, y) in zip(laws(policy, rows), known, encoded(rows), strict=True):
        shown = torch.nn.functional.one_hot(torch.tensor(y), law.shape[-1])
        if projection == "forward":
            target = (before + shown / temperature).softmax(-1)
            found.append(-(target * law).sum())
        else:
            divergence = (law.exp() * (law - before)).sum()
            found.append(temperature * divergence - (law.exp() * shown).sum())
    return found


def nats(policy, rows) -> float:
    """Mean over rows of -log pi of the whole completion."""
    with torch.no_grad():
        found = [line.sum().item() for line in log_probs_with_grad(policy, *zip(*encoded(rows), strict=True))]
    return -sum(found) / len(found)


def descend(policy, gradients):
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            weight -= SGD["learning_rate"] * gradients[name]


@pytest.mark.parametrize("own", [{}, {"packing": True, "max_length": 64}], ids=["padded", "packed"])
def test_reverse_at_temperature_0_is_dft_bit_for_bit(tmp_path, own):
    settings = {"max_steps": 6, "per_device_train_batch_size": 8, "data_seed": 3, **own}
    rows = small.demonstrations()
    theirs, sft = small.run(
        SFTTrainer,
        SFTConfig,
        tmp_path,
        settings={**settings, "loss_type": "dft"},
        model=small.model(),
        train_dataset=rows,
    )
    ours, trainer = pure(tmp_path, settings={**settings, "demonstration_projection": "reverse"}, rows=rows)
    assert small.same_weights(trainer.model, sft.model) and not small.same_weights(sft.model, small.model())
    for key in ("grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
        assert ours.column(key) == theirs.column(key), key


@pytest.mark.parametrize("run", [pure, mixed])
def test_the_factor_pi_has_the_gradient_of_the_reverse_projection(tmp_path, run):
    a, _ = run(tmp_path, settings={**SGD, "demonstration_projection": "reverse"})
    b, _ = run(tmp_path, settings={**SGD, "demonstration_shaping": "probability"})
    for one, two in zip(a.gradients, b.gradients, strict=True):
        assert_close(one, two, tolerance=1e-6)


def energies(policy, reference, rows, key: dict) -> list[torch.Tensor]:
    """Each row's energy for one setting of the projection, written out anew."""
    projection, temperature = key.get("demonstration_projection", "forward"), key.get("demonstration_beta", 0.0)
    if temperature:
        return soft_cost(policy, reference, rows, projection, temperature)
    lines = log_probs_with_grad(policy, *zip(*encoded(rows), strict=True))
    if projection == "reverse":
        return [-line.exp().sum() for line in lines]
    shaped = key.get("demonstration_shaping")
    phi = {"uncertainty": lambda p: p * (1 - p), "shrinking": lambda p: 0.1 * p / (p + 0.1) ** 2, None: torch.ones_like}
    return [-(phi[shaped](line.detach().exp()) * line).sum() for line in lines]


KEYS = {
    "gift": {"demonstration_beta": TEMPERATURE},
    "reverse, soft": {"demonstration_beta": TEMPERATURE, "demonstration_projection": "reverse"},
    "reverse": {"demonstration_projection": "reverse"},
    "uncertainty": {"demonstration_shaping": "uncertainty"},
    "shrinking": {"demonstration_shaping": "shrinking"},
}
LAYOUTS = {
    "one batch": {},
    "accumulated": {
        "per_device_train_batch_size": ROWS // 3,
        "per_device_demonstration_batch_size": ROWS // 3,
        "num_generations": 4,
        "gradient_accumulation_steps": 3,
    },
    "another sampling temperature": {"temperature": 0.5},
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, "one batch") for name in KEYS),
        ("gift", "accumulated"),
        ("reverse, soft", "another sampling temperature"),
        ("shrinking", "another sampling temperature"),
    ],
)
def test_gradients_of_two_steps_equal_hand_arithmetic(tmp_path, name, layout):
    """Off the reference at the second step. Alone: mean over tokens; in a mixture: sum over tokens, mean over rows."""
    rows, key = small.demonstrations(ROWS), KEYS[name]
    tokens = sum(len(y) for _, y in encoded(rows))
    settings = {**SGD, "demonstration_energy_weight": WEIGHT, **key, **LAYOUTS[layout]}
    for run, divisor in ((pure, tokens), (mixed, ROWS * LENGTH)):
        if run is pure and layout == "another sampling temperature":
            continue  # nothing is sampled there
        record, _ = run(tmp_path, settings=settings)
        policy, reference = small.model(), small.model()
        for i in range(2):
            assert record.logs[i]["free_energy/demonstration"] == pytest.approx(WEIGHT * nats(policy, rows), rel=1e-5)
            loss = WEIGHT * sum(energies(policy, reference, rows, key)) / divisor
            wanted = gradients_of(loss, policy)
            assert_close(record.gradients[i], wanted)
            descend(policy, wanted)


@pytest.mark.parametrize("own", [{"packing": True, "max_length": 64}, {"padding_free": True}], ids=["packed", "flat"])
@pytest.mark.parametrize("name", ["gift", "reverse, soft"])
def test_sequences_in_one_row_keep_their_own_targets(tmp_path, name, own):
    rows = small.demonstrations(ROWS)
    tokens = sum(len(y) for _, y in encoded(rows))
    for run, divisor in ((pure, tokens), (mixed, ROWS * LENGTH)):
        record, _ = run(tmp_path, settings={**SGD, **KEYS[name], **own, "max_steps": 1})
        policy = small.model()
        loss = sum(energies(policy, small.model(), rows, KEYS[name])) / divisor
        assert_close(record.gradients[0], gradients_of(loss, policy))
        assert record.logs[0]["free_energy/demonstration"] == pytest.approx(nats(policy, rows), rel=1e-5)


def test_a_low_temperature_is_sft(tmp_path):
    """At 1e-3 a token that the reference gives e^-5 has all but e^-995 of the target."""
    soft, _ = pure(tmp_path, settings={**SGD, "demonstration_beta": 1e-3})
    hard, _ = pure(tmp_path, settings=SGD)
    for one, two in zip(soft.gradients, hard.gradients, strict=True):
        assert_close(one, two, tolerance=1e-5)


@pytest.mark.parametrize("run", [pure, mixed])
@pytest.mark.parametrize("kind", ["adapter off", "adapter of its own"])
def test_with_lora_the_target_is_a_tilt_of_the_reference(tmp_path, run, kind):
    """A new adapter starts away from 0 here: the target is the base's. A model that comes with one is tilted itself."""
    lora, rows = LoraConfig(**LORA), small.demonstrations(ROWS)

    def adapted():
        torch.manual_seed(1)
        return get_peft_model(small.model(), lora)

    torch.manual_seed(1)
    own = {"peft_config": lora} if kind == "adapter off" else {"model": adapted()}
    settings = {**SGD, **KEYS["gift"], "max_steps": 1, "demonstration_energy_weight": 1.0}
    record, trainer = run(tmp_path, settings=settings, **own)
    policy = adapted()
    start = {name: p for name, p in trainer.model.named_parameters() if ".ref." not in name}
    with torch.no_grad():  # undo the step: as it stood when it was scored
        for name, p in policy.named_parameters():
            p.copy_(start[name] + SGD["learning_rate"] * record.gradients[0].get(name, 0.0))
    reference = small.model() if kind == "adapter off" else adapted()
    divisor = sum(len(y) for _, y in encoded(rows)) if run is pure else ROWS * LENGTH
    loss = sum(soft_cost(policy, reference, rows, "forward", TEMPERATURE)) / divisor
    wanted = gradients_of(loss, policy)
    assert_close(record.gradients[0], wanted)


@pytest.mark.parametrize("name", ["reverse", "shrinking"])
def test_beside_a_penalty_the_energy_of_a_token_stays_its_own(tmp_path, monkeypatch, name):
    """`kl_sampler: demonstrations`: beta/2 l^2 of each whole demonstration comes on top, off the reference too."""
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    rows, beta = small.demonstrations(ROWS), 0.3
    settings = {**SGD, **KEYS[name], "beta": beta, "kl_sampler": "demonstrations"}
    record, _ = pure(tmp_path, settings=settings)
    policy, reference = small.model(), small.model()
    for i in range(2):
        nats_of = [
            [line.sum() for line in log_probs_with_grad(model, *zip(*encoded(rows), strict=True))]
            for model in (policy, reference)
        ]
        penalty = sum((a - b.detach()) ** 2 for a, b in zip(*nats_of, strict=True)) * beta / 2
        loss = sum(energies(policy, reference, rows, KEYS[name])) + penalty
        wanted = gradients_of(loss / sum(len(y) for _, y in encoded(rows)), policy)
        assert_close(record.gradients[i], wanted)
        descend(policy, wanted)


@pytest.mark.parametrize("key", [KEYS["gift"], KEYS["reverse"]], ids=["soft", "reverse"])
def test_evaluation_reports_nats_of_the_demonstrations(tmp_path, key):
    rows = small.demonstrations(ROWS)
    settings = {**SGD, **key, "learning_rate": 0.0, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings["per_device_eval_batch_size"] = 4
    _, trainer = pure(tmp_path, settings=settings, eval_dataset=rows)
    (row,) = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert row["eval_free_energy/demonstration"] == pytest.approx(nats(small.model(), rows), rel=1e-5)


OWN = """
def squared(log_probs, entropies, mask):
    return (2 * log_probs).exp() * mask
"""


def test_a_factor_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    rows, policy = small.demonstrations(ROWS), small.model()
    record, _ = mixed(tmp_path / "run", settings={**SGD, "max_steps": 1, "demonstration_shaping": "own.py:squared"})
    lines = log_probs_with_grad(policy, *zip(*encoded(rows), strict=True))
    loss = -sum((line.detach().exp() ** 2 * line).sum() for line in lines) / (ROWS * LENGTH)
    assert_close(record.gradients[0], gradients_of(loss, policy))
