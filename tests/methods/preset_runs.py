"""A real run of a preset, as a recipe resolves it, with all that a step's loss is made of; arithmetic row by row.

Small Llama with random weights, at most 8 tokens a completion, four prompts of four rollouts a step unless a recipe
says otherwise, no clipping. The loss that is logged is what was differentiated: micro-batches add up to the step's
loss, and one step is logged at a time. A rollout's term is TRL's surrogate -A e^{log pi - stop(log pi)}: its value
counts tokens while its gradient is that of -A log pi, so `surrogate` stands for log pi in a hand-made loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import small
import torch
import yaml
from by_hand import LENGTH, assert_close, gradients_of
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.methods.presets import METHODS
from fe_posttrain.recipe.checks import resolve
from fe_posttrain.tasks import digits
from fe_posttrain.training import rollouts

GROUP = small.ROLLOUTS["num_generations"]
PROMPTS = [
    x for pair in zip(digits.prompts("barrier", 80, 0), digits.prompts("tail_10", 80, 0), strict=True) for x in pair
]
SHOWN = PROMPTS[:6]  # prompts of the demonstrations of a stream: all of them in every step
Tokens = list[list[int]]


class Judged(NamedTuple):
    """Completions in the order in which the reward saw them, groups adjoining, before optimizer step `step`."""

    step: int
    prompts: list[str]
    prompt_ids: Tokens
    completion_ids: Tokens
    rewards: list[float]


class Policies(TrainerCallback):
    """The weights at the beginning of every step, and at the end."""

    def __init__(self):
        self.at: list[dict[str, torch.Tensor]] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.at.append({name: weight.detach().clone() for name, weight in model.state_dict().items()})

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.on_step_begin(args, state, control, model)


@dataclass
class Run:
    """What a run left: logs and gradients of each step, policies at each step's beginning, what was judged.

    `start()` makes the model that the run began with.
    """

    record: small.Record
    trainer: FreeEnergyTrainer
    policies: Policies
    judged: list[Judged]
    start: Callable[[], Any]

    def policy(self, step: int):
        """The model as it was when optimizer step `step`, counted from 0, began."""
        model = self.start()
        model.load_state_dict(self.policies.at[step])
        return model

    def check(self, step: int, loss: torch.Tensor, policy, tolerance: float = 2e-5) -> None:
        """Logged loss and gradient of a step are those of `loss`, made by hand from `policy`."""
        assert self.record.logs[step]["loss"] == pytest.approx(loss.item(), rel=1e-4, abs=2e-6)
        assert_close(self.record.gradients[step], gradients_of(loss, policy), tolerance)


def recipe_of(folder, method: str, keys: dict[str, Any]) -> FreeEnergyConfig:
    """The settings of a recipe that names the method, written to a file and resolved as every recipe is."""
    preset = METHODS[method]
    written = {"model_name_or_path": "testbed", "method": method, **small.SETTINGS, "output_dir": str(folder / "run")}
    if preset.settings["reward_energy_weight"] or "reward_energy_schedule" in preset.settings:
        written |= {"prompts": {"barrier": 1}, "reward_funcs": ["digits"]}
    elif preset.settings["beta"]:
        written["prompts"] = {"barrier": 1}
    if preset.demonstrations == "stream":
        written |= {"demonstrations": {"barrier": 1}, "per_device_demonstration_batch_size": len(SHOWN)}
    if preset.demonstrations == "paired":
        written["demonstrations_paired"] = True
    sizes = {"max_grad_norm": 0.0, **(small.ROLLOUTS if "prompts" in written else {})}
    written |= {key: value for key, value in sizes.items() if key not in preset.settings} | keys
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(written))
    args = resolve(path, [])[1]
    kept = {key: value for key, value in preset.settings.items() if key not in keys}
    assert {key: getattr(args, key) for key in kept} == kept
    return args


def run(
    folder,
    method: str,
    keys: dict[str, Any],
    worth: Callable[[list[str], Tokens], list[float]] | None = None,
    **config: Any,
) -> Run:
    """Train as the preset says.

    Args:
        keys: of the recipe, beside `method`.
        worth: (prompts, completion ids) of all rows -> their rewards.
        config: of the model.
    """
    args, judged, start = recipe_of(folder, method, keys), [], partial(small.model, **config)

    def judge(prompts, completion_ids, **_):
        rewards = worth(prompts, completion_ids)
        step = trainer.state.global_step
        judged.append(Judged(step, prompts, small.TOKENIZER(prompts)["input_ids"], completion_ids, rewards))
        return rewards

    kind = METHODS[method].demonstrations
    rows, shown = Dataset.from_dict({"prompt": PROMPTS}), None
    if kind == "paired":
        rows = rows.add_column("demonstration", [digits.demonstration(x) for x in PROMPTS])
    if kind == "stream":
        shown = Dataset.from_dict({"prompt": SHOWN, "completion": [digits.demonstration(x) for x in SHOWN]})
    record, policies = small.Record(), Policies()
    trainer = FreeEnergyTrainer(
        start(),
        reward_funcs=[judge] if worth else None,
        args=args,
        train_dataset=None if args.is_sft else rows,
        demo_dataset=shown,
        processing_class=small.TOKENIZER,
        callbacks=[record, policies],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    assert len(record.logs) == len(record.gradients) == args.max_steps
    return Run(record, trainer, policies, judged, start)


def spy_on_sampler(monkeypatch) -> list[tuple[Tokens, Tokens]]:
    """Token ids that each call of our sampler was given to continue, and what it drew after them."""
    sample, seen = rollouts.sample, []

    def spy(model, token_ids, *args, **keys):
        drawn = sample(model, token_ids, *args, **keys)
        seen.append((token_ids, drawn.completion_ids))
        return drawn

    monkeypatch.setattr(rollouts, "sample", spy)
    return seen


def laws(model, prompt_ids: Tokens, completion_ids: Tokens) -> list[torch.Tensor]:
    """Row by row, without padding: log pi of every token of the vocabulary at each place of a completion, (T, V)."""
    logits = [
        model(torch.tensor([x + y])).logits[0, len(x) - 1 : -1] for x, y in zip(prompt_ids, completion_ids, strict=True)
    ]
    return [row.log_softmax(-1) for row in logits]


def taken(rows: list[torch.Tensor], completion_ids: Tokens) -> list[torch.Tensor]:
    """log pi of the tokens of each completion, (T,), out of `laws`."""
    return [row.gather(1, torch.tensor(ids)[:, None])[:, 0] for row, ids in zip(rows, completion_ids, strict=True)]


def log_probs(model, prompt_ids: Tokens, completion_ids: Tokens) -> list[torch.Tensor]:
    return taken(laws(model, prompt_ids, completion_ids), completion_ids)


def entropy(law: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the entropy of pi at each place, nats, a constant to the gradient."""
    return -(law.exp() * law).sum(1).mean().detach()


def surrogate(row: torch.Tensor) -> torch.Tensor:
    """The gradient of log pi(y), with the number of tokens as its value."""
    return (row - row.detach()).exp().sum()


def demonstrated(prompts: list[str]) -> tuple[Tokens, Tokens]:
    """Tokens of prompts and of their demonstrations, end token included."""
    tokenizer = small.TOKENIZER
    return tokenizer(prompts)["input_ids"], [
        [*tokenizer(digits.demonstration(x))["input_ids"], tokenizer.eos_token_id] for x in prompts
    ]


def less_the_others(values: list, group: int = GROUP) -> list:
    """Each value less the mean of the others of its group."""
    found = []
    for i, value in enumerate(values):
        start = i // group * group
        found.append(value - (sum(values[start : start + group]) - value) / (group - 1))
    return found


def policy_gradient(rows: list[torch.Tensor], advantages: list) -> torch.Tensor:
    """-1/N sum A log pi(y) / 8."""
    return -sum(a * surrogate(row) for a, row in zip(advantages, rows, strict=True)) / (len(rows) * LENGTH)
