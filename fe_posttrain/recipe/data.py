"""Interim: testbed data only."""

from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM

from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.exact import exact_probabilities
from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.demonstrations import PAIRED
from fe_posttrain.training.rollouts import KNOWN_P


@dataclass
class Data:
    prompts: Any
    demonstrations: Any
    evaluation: Any = None
    report: list = field(default_factory=list)
    files: list = field(default_factory=list)

    @property
    def example(self):
        return (self.prompts or self.demonstrations)[0]["prompt"]


def load(settings, args, tokenizer, model_path):
    return Data(*_data(settings, args, model_path, tokenizer))


def _data(settings: RunSettings, args: FreeEnergyConfig, model_path: str, tokenizer) -> tuple[Dataset | None, ...]:
    """Rollout prompts and demonstrations of the testbed."""
    prompts = demos = None
    if args.generates:
        prompts = digits.dataset(settings.prompts, settings.prompt_rows, args.seed)
        model = AutoModelForCausalLM.from_pretrained(model_path).eval()
        if settings.reward_funcs == ["digits"]:  # the verifier that p is exact for
            prompts = prompts.add_column(KNOWN_P, exact_probabilities(model, tokenizer, prompts["prompt"]).tolist())
        if settings.demonstrations_paired:
            worked = [digits.demonstration(x, settings.demonstration_worked) for x in prompts["prompt"]]
            prompts = prompts.add_column(PAIRED, worked)
    if settings.demonstrations and not settings.demonstrations_paired:
        demos = digits.dataset(
            settings.demonstrations,
            settings.demonstration_rows,
            args.seed + 1,
            demonstrations=True,
            worked=settings.demonstration_worked,
        )
    return prompts, demos
