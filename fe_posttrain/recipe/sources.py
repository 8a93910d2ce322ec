"""Whether the keys of a recipe that name data make sense together."""

from collections.abc import Iterator

from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.fit import POLICIES


def check_sources(settings: RunSettings, args: FreeEnergyConfig) -> None:
    """Whether the keys about data make sense together; reads no data.

    Raises:
        RecipeError: every problem at once.
    """
    if problems := [message for wrong, message in _source_rules(settings, args) if wrong]:
        raise RecipeError("\n".join(problems))


def _source_rules(settings: RunSettings, args: FreeEnergyConfig) -> Iterator[tuple[bool, str]]:
    own, families = bool(settings.dataset_name), bool(settings.prompts)
    own_demos, family_demos = bool(settings.demonstration_dataset_name), bool(settings.demonstrations)
    evaluates = bool(settings.dataset_test_split or settings.eval_dataset_name)
    yield (
        args.generates and not (own or families),
        "prompts: missing; a run with reward energy or beta rolls out prompts; write dataset_name: FILE.jsonl, or "
        "prompts: {tail_10: 1} for the testbed",
    )
    yield own and families, "dataset_name: beside prompts; a run has one source of prompts; leave one out"
    yield (
        own_demos and family_demos,
        "demonstration_dataset_name: beside demonstrations; a run has one source of demonstrations; leave one out",
    )
    yield (
        args.is_sft and not (own or own_demos or family_demos),
        "demonstration_dataset_name: missing; without reward energy and beta the run is SFT; write FILE.jsonl, or "
        "demonstrations: {barrier: 1} for the testbed",
    )
    yield (
        args.is_sft and own and (own_demos or family_demos),
        "dataset_name: beside other demonstrations; a pure SFT run reads demonstrations alone; leave one out",
    )
    yield (
        bool(args.generates and (own_demos or family_demos or settings.demonstrations_paired))
        and not args.demonstration_energy_weight,
        "demonstration_energy_weight: 0 with demonstrations; they would never be read; write a positive weight or "
        "leave the demonstrations out",
    )
    yield (
        settings.demonstrations_paired and not families,
        "demonstrations_paired: true without testbed prompts; one's own are paired by a column `demonstration` beside "
        "`prompt`; leave it out",
    )
    yield (
        bool(settings.system_prompt) and (families or family_demos),
        "system_prompt: with rows of the testbed; its model knows no conversation; leave it out",
    )
    yield (
        evaluates and args.eval_strategy == "no",
        "eval_strategy: no; the evaluation rows would never be read; write steps or epoch",
    )
    yield (
        not evaluates and args.eval_strategy != "no",
        f"eval_strategy: {args.eval_strategy.value}; there are no rows to evaluate on; write dataset_test_split or "
        "eval_dataset_name",
    )
    yield (
        bool(settings.dataset_test_split) and not (own or settings.eval_dataset_name),
        "dataset_test_split: without dataset_name; a split is one of a dataset; write eval_dataset_name",
    )
    for key in ("dataset", "demonstration_dataset"):
        orphan = getattr(settings, f"{key}_config") and not getattr(settings, f"{key}_name")
        yield bool(orphan), f"{key}_config: without {key}_name; it chooses among a dataset's; write {key}_name"
    for key in ("overlong_prompts", "overlong_demonstrations"):
        policy = getattr(settings, key)
        yield policy not in POLICIES, f"{key}: {policy!r}; unknown; write one of {', '.join(POLICIES)}"
