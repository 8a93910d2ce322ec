"""The model card of a run: README.md beside the weights, for a person and for the Hub.

Written from the run folder alone, without a clock or a path of the machine, so that the same run gives the same card.
The numbers are those of the run folder; certified ones are rounded towards caution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from fe_posttrain.view import weights
from fe_posttrain.view.card.tables import energy, exact, table, versions
from fe_posttrain.view.reading import RunData
from fe_posttrain.view.text import ceiling, floor, nearest, one_line

TESTBEDS = {
    "testbed": "the embedded testbed's reference model",
    "testbed_depths": "the embedded testbed's base of depths",
    "testbed_formats": "the embedded testbed's base of formats",
}
_TASKS = {"gsm8k": "openai/gsm8k"}  # tasks of recipes whose rows are published
_CITATION = """```bibtex
@misc{li2026elicitation,
  title = {On Distinguishing Capability Elicitation from Capability Creation in Post-Training: A Free-Energy Perspective},
  author = {Li and Liu},
  year = {2026},
  eprint = {2605.08368},
  archivePrefix = {arXiv}
}
```"""  # noqa: E501


@dataclass(frozen=True)
class Subject:
    """What a card is about, beside its run.

    equation: F of the run, as it was asked for.
    snippet: Python that loads the model.
    report: where report.html lies, seen from the card.
    biases: sentences about settings that move the run's fixed point away from the optimum of F.
    adapter: whether the weights are an adapter's.
    step: of a checkpoint; None for the final model.
    summary: content of summary.json, also where it is not yet written; None: the one in the run folder.
    """

    equation: str
    snippet: str
    report: str = "../report.html"
    biases: Sequence[str] = ()
    adapter: bool = False
    step: int | None = None
    summary: Mapping[str, Any] | None = None


def model_card(run: RunData, subject: Subject) -> str:
    """The README.md: front matter that the Hub can read, then the run in words and tables."""
    summary = run.summary if subject.summary is None else subject.summary
    base = run.recipe["model_name_or_path"]
    parts = [
        f"---\n{yaml.safe_dump(front_matter(run, subject), sort_keys=False, allow_unicode=True)}---",
        f"# {run.name}",
        _what(run, subject, base),
        f"## Objective\n\n    {subject.equation}",
        table(("setting", "value"), _objective(run.recipe)),
        *(
            [f"This run does not end at the optimum of F as written:\n\n{_listed(subject.biases)}"]
            * bool(subject.biases)
        ),
        f"## Free energy\n\n{energy(run)}",
        *(_section("Exact values", exact(run, summary))),
        f"## Elicited, or created?\n\n{_support(run, summary)}",
        f"## Training\n\n{table(('setting', 'value'), _training(run.recipe))}",
        f"## Versions\n\n{versions(run.versions)}",
        f"## Use\n\n```python\n{subject.snippet}```",
        f"The whole run on one page: [report.html]({subject.report}), in the run folder.",
        f"## Citation\n\n{_CITATION}",
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(run: RunData, subject: Subject) -> dict[str, Any]:
    """The card's metadata; what the Hub could not resolve (local folders, files) is left out."""
    recipe = run.recipe
    base = recipe["model_name_or_path"]
    sources = [recipe.get(key) for key in ("dataset_name", "demonstration_dataset_name")]
    datasets = [_TASKS.get(name, name) for name in sources if name]
    datasets = [name for name in dict.fromkeys(datasets) if on_the_hub(name) and "/" in name]
    found: dict[str, Any] = {"model_name": run.name}
    if on_the_hub(base):
        found["base_model"] = base
        found |= {"base_model_relation": "adapter"} if subject.adapter else {}
    found |= {"library_name": "peft" if subject.adapter else "transformers", "pipeline_tag": "text-generation"}
    if datasets:
        found["datasets"] = datasets
    return found | {"tags": ["fe_posttrain", "free-energy", _kind(recipe)[1]]}


def on_the_hub(name: str) -> bool:
    """Whether a model or data set of a recipe is named as on the Hub, and is no path of this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name not in TESTBEDS and Path(name).suffix not in (".json", ".jsonl", ".parquet") and not Path(name).exists()


def _kind(recipe: Mapping[str, Any]) -> tuple[str, str]:
    """In words, and as a tag."""
    rewarded = weights.is_used(recipe, "reward_energy_weight")
    demonstrated = weights.is_used(recipe, "demonstration_energy_weight")
    if recipe.get("failure_buffer"):
        return "reward, and demonstrations of prompts whose rollouts failed", "reinforcement-learning"
    if rewarded and demonstrated:
        return "reward and demonstrations in one step", "reinforcement-learning"
    if demonstrated and not weights.rolls_out(recipe):
        held = weights.is_used(recipe, "beta")
        return "supervised fine-tuning" + (" under a penalty on log-ratios" if held else ""), "sft"
    if not (rewarded or demonstrated):
        return "on-policy distillation, the KL term alone", "reinforcement-learning"
    return ("reinforcement learning" if rewarded else "demonstrations under a KL term"), "reinforcement-learning"


def _what(run: RunData, subject: Subject, base: str) -> str:
    origin = TESTBEDS.get(base) or (f"[{base}](https://huggingface.co/{base})" if on_the_hub(base) else _code(base))
    what = "An adapter of" if subject.adapter else "A language model trained from"
    where = f" This is a checkpoint, after step {subject.step} of {run.steps}." if subject.step is not None else ""
    return (
        f"{what} {origin}, by fe_posttrain on one free energy: {_kind(run.recipe)[0]}.{where} "
        "The theory is Li & Liu 2026, [arXiv 2605.08368](https://arxiv.org/abs/2605.08368)."
    )


def _objective(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    rewards = [_reward(entry) for entry in recipe["reward_funcs"]]
    rewards += [_code(name)] if (name := recipe.get("reward_model_name_or_path")) else []
    shares = recipe.get("reward_weights")
    rows = [
        ("w_r, weight of the reward energy", weights.shown(recipe, "reward_energy_weight")),
        ("w_d, weight of the demonstrations", weights.shown(recipe, "demonstration_energy_weight")),
        ("beta, energy units per nat", weights.shown(recipe, "beta")),
        ("estimator", _code(recipe["estimator"])),
        ("the KL is taken on", _code(recipe.get("kl_sampler", "policy"))),
        ("reward functions", ", ".join(rewards) + (f", weights {_plain(shares)}" if shares else "")),
        ("prompts", _rows(recipe, "dataset_name", "prompts", "prompt_rows")),
        ("demonstrations", _rows(recipe, "demonstration_dataset_name", "demonstrations", "demonstration_rows")),
        ("reference", _reference(recipe)),
    ]
    if recipe.get("support"):
        rows.append(("what counts as correct", _verifier(recipe)))
    return [(label, text) for label, text in rows if text]


def _reference(recipe: Mapping[str, Any]) -> str:
    if recipe.get("sync_ref_model"):
        return "moves during the run (`sync_ref_model`)"
    if name := recipe.get("reference_model_name_or_path"):
        return f"{_code(name)}, a model of its own, frozen"
    if resets := recipe.get("reference_resets"):
        steps = ", ".join(f"{at:g}" for at in resets)
        return f"the base model; from each of the steps {steps} on (below 1: share of the run) the model of that step"
    return "the base model, frozen"


def _verifier(recipe: Mapping[str, Any]) -> str:
    signal = recipe.get("support_signal") or next(iter(recipe["reward_funcs"]), None)
    threshold = recipe.get("support_threshold")
    at_least = f", at least {threshold:g}" if threshold is not None else ""
    return f"{_reward(signal)}{at_least}" if signal else "the testbed's verifier"


def _rows(recipe: Mapping[str, Any], name: str, families: str, count: str) -> str:
    if source := recipe.get(name):
        return _code(_TASKS.get(source, source))
    if chosen := recipe.get(families):
        return f"{recipe[count]} rows of the embedded testbed: " + ", ".join(
            f"{_code(k)} {v:g}" for k, v in chosen.items()
        )
    return ""


def _support(run: RunData, summary: Mapping[str, Any]) -> str:
    if not run.recipe.get("support"):
        return "Support was not tracked (`support: false`), so nothing is claimed about where a gain came from."
    if off := run.events_named("support_off"):
        return f"Support was not tracked to the end: {one_line(off[-1]['reason'])}. Nothing is claimed."
    report = summary.get("support") or (run.probes[-1]["report"] if run.probes else {})
    if "verdict" not in report:
        return "Support is tracked, and nothing has been probed yet: nothing is claimed."
    key, draws = report["key"], report["draws"]
    rows = [_term(name, term) for name, term in report["verdict"].items()]
    said = [
        f"> {report['sentence']}",
        f"Percentage points of mean p over {report['prompts']} held-out prompts, after step {report['step']}; the "
        "lower ends hold together with probability 1 - alpha, and so do the upper ends.",
        table(("", "value", "low", "high"), rows),
        table(
            ("relative to", ""),
            [
                ("reference", _code(key["reference"])),
                ("decoding", key["decoding"]),
                ("verifier", _code(key["verifier"])),
                ("B, budget in draws", str(key["budget"])),
                ("delta, alpha", f"{key['delta']:g}, {key['alpha']:g}"),
                *((f"draws of the {side}", _draws(draws[side])) for side in ("reference", "trained")),
                *((f"check {name}", _checked(check)) for name, check in report["checks"].items()),
            ],
        ),
    ]
    return "\n\n".join(said)


def _term(name: str, term: Mapping[str, float | None]) -> tuple[str, str, str, str]:
    certified = name in ("elicited", "created", "lost")
    low, high = term["low"], term["high"]
    shown = (floor if certified else nearest)(term["value"])
    return name, shown, "" if low is None else floor(low), "" if high is None else ceiling(high)


def _draws(side: Mapping[str, int]) -> str:
    each = str(side["least"]) if side["least"] == side["most"] else f"{side['least']} to {side['most']}"
    return f"{side['total']}, {each} a prompt"


def _checked(check: Mapping[str, Any]) -> str:
    return f"{check['verdict']}: {check['why']}" if check.get("why") else check["verdict"]


def _training(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    keys = ["max_steps"] if recipe["max_steps"] > 0 else ["num_train_epochs"]
    keys += [
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "lr_scheduler_type",
        "optim",
    ]
    if weights.rolls_out(recipe):
        keys += ["num_generations", "max_completion_length", "temperature"]
    if weights.is_used(recipe, "demonstration_energy_weight"):
        keys += ["per_device_demonstration_batch_size", "max_length", "packing"]
    if recipe.get("failure_buffer"):
        keys += ["success_threshold", "failure_buffer", "failure_buffer_batch_size", "failure_buffer_learning_rate"]
    if recipe.get("use_peft"):
        keys += ["lora_r", "lora_alpha", "lora_target_modules", "merge_adapter"]
    return [(_code(key), _plain(recipe[key])) for key in [*keys, "dtype", "seed"] if recipe.get(key) is not None]


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}\n\n{text}"] if text else []


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _reward(entry: str | Mapping[str, Any]) -> str:
    if isinstance(entry, str):
        return _code(entry)
    (name, arguments), *_ = entry.items()
    return f"{_code(name)} ({', '.join(f'{k} = {_plain(v)}' for k, v in (arguments or {}).items())})"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _code(name: str) -> str:
    """As code; of a path on this machine the last part alone."""
    return f"`{name if on_the_hub(name) else Path(name).name}`"
