"""The rows of a run: one's own, from files, the Hub or a task, or the testbed's; checked and fitted before training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM

from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.exact import exact_probabilities
from fe_posttrain.tasks.files import load_rows, local_files
from fe_posttrain.tasks.rows import check_demonstrations, check_prompts, demonstration_columns, with_system_prompt
from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.demonstrations import PAIRED
from fe_posttrain.training.fit import Fit, fit_prompts
from fe_posttrain.training.fit_demonstrations import as_completions, fit_demonstrations, fit_paired
from fe_posttrain.training.rollouts import KNOWN_P
from fe_posttrain.training.tokenizer import with_settings


@dataclass(frozen=True)
class Data:
    """What a trainer is given, and what became of the rows.

    prompts: rows to roll out, with `demonstration` beside `prompt` where they are paired; None in pure SFT.
    demonstrations: rows of their own; None where there are none or they are paired.
    evaluation: prompts where evaluation rolls out, demonstrations in pure SFT without a reward.
    probes: held-out prompts that support is measured on; None where it is not.
    fits: lengths, dropped and truncated rows, by what the rows are.
    files: the local files that were read.
    """

    prompts: Dataset | None
    demonstrations: Dataset | None
    evaluation: Dataset | None
    probes: Dataset | None = None
    fits: dict[str, Fit] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def example(self) -> str | list[dict]:
        """A prompt of the run, plain or conversational."""
        row = (self.prompts if self.prompts is not None else self.demonstrations)[0]
        if "prompt" in row or "messages" in row:
            return row["prompt"] if "prompt" in row else row["messages"][:-1]
        return next(value for value in row.values() if isinstance(value, str))[:50]

    @property
    def report(self) -> list[str]:
        """One line for each kind of row that was dropped or truncated."""
        lines = [(name, line) for name, fit in self.fits.items() for line in fit.lines()]
        return [f"{name}: {line}" if name == "evaluation" else line for name, line in lines]


def load(settings: RunSettings, args: FreeEnergyConfig, tokenizer, model_path: str) -> Data:
    """Read, check and fit every row of a run. The tokenizer is given the settings of `args` (chat template, ...).

    Raises:
        ValueError: rows that cannot be read, used, or fitted.
    """
    tokenizer = with_settings(tokenizer, model_path, args)  # lengths are those that the trainer will see
    return _Loading(settings, args, tokenizer, model_path).data()


class _Loading:
    """One call of `load`: what every step of it needs, and what it gathers."""

    def __init__(self, settings: RunSettings, args: FreeEnergyConfig, tokenizer, model_path: str):
        self.settings, self.args, self.tokenizer, self.model_path = settings, args, tokenizer, model_path
        options = {"revision": revision} if (revision := (args.model_init_kwargs or {}).get("revision")) else {}
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=args.trust_remote_code, **options)
        self.context = getattr(config.get_text_config(), "max_position_embeddings", None)
        self.fits: dict[str, Fit] = {}
        self.files: list[Path] = []

    def data(self) -> Data:
        prompts = self._prompts() if self.args.generates else None
        demonstrations = self._demonstrations()
        evaluation = self._evaluation()
        probes = self._probes(evaluation) if self.settings.support else None
        return Data(prompts, demonstrations, evaluation, probes, self.fits, tuple(dict.fromkeys(self.files)))

    def _prompts(self) -> Dataset:
        settings = self.settings
        if settings.dataset_name:
            rows = self._read("dataset_name", settings.dataset_config, settings.dataset_train_split)
            rows = self._ready_prompts("dataset_name", "prompts", rows)
        else:
            rows = self._ready_prompts(
                "prompts", "prompts", _testbed_prompts(settings, self.args, self.model_path, self.tokenizer)
            )
        needed = self.args.generation_batch_size // self.args.num_generations
        if len(rows) < needed:
            raise RecipeError(
                f"{'dataset_name' if settings.dataset_name else 'prompt_rows'}: {len(rows)} prompts; one generation "
                f"batch takes {needed}; write more rows, a smaller per_device_train_batch_size or more num_generations"
            )
        if not self.args.reads_demonstrations:
            return rows
        paired, apart = PAIRED in rows.column_names, settings.demonstration_dataset_name or settings.demonstrations
        if paired and apart and not settings.demonstrations_paired:
            raise RecipeError(
                "demonstration_dataset_name: beside a column `demonstration` of the prompts; a run has one source of "
                "demonstrations; leave one out"
            )
        if not (paired or apart):
            raise RecipeError(
                "demonstration_dataset_name: missing; demonstration_energy_weight is "
                f"{self.args.demonstration_energy_weight:g}; write FILE.jsonl, or give the prompts a column "
                "`demonstration`"
            )
        if paired:
            gone = set(self.fits["prompts"].dropped)
            numbers = [i for i in range(1, len(rows) + len(gone) + 1) if i not in gone]
            to_fit = self._to_fit(rows, settings.overlong_demonstrations)
            rows, self.fits["demonstrations"] = fit_paired(*to_fit, numbers)
        return rows

    def _demonstrations(self) -> Dataset | None:
        settings = self.settings
        if settings.demonstration_dataset_name:
            key, split = "demonstration_dataset_name", settings.demonstration_dataset_split
            rows = self._read(key, settings.demonstration_dataset_config, split)
        elif settings.demonstrations and not settings.demonstrations_paired:
            key, rows = "demonstrations", _testbed_demonstrations(settings, self.args)
        elif self.args.is_sft:
            key = "dataset_name"
            rows = self._read(key, settings.dataset_config, settings.dataset_train_split)
        else:
            return None
        return self._ready_demonstrations(key, "demonstrations", rows)

    def _evaluation(self) -> Dataset | None:
        settings = self.settings
        if settings.eval_dataset_name:
            key, config = "eval_dataset_name", None
            is_file = Path(settings.eval_dataset_name).expanduser().is_file()
            split = settings.dataset_test_split or ("train" if is_file else "test")
        elif settings.dataset_test_split:
            key, config, split = "dataset_name", settings.dataset_config, settings.dataset_test_split
        else:
            return None
        rows = self._read(key, config, split)
        rolls_out = self.args.generates or settings.reward_funcs or settings.reward_model_name_or_path
        ready = self._ready_prompts if rolls_out else self._ready_demonstrations
        return ready(key, "evaluation", rows)

    def _probes(self, evaluation: Dataset | None) -> Dataset:
        """The first `support_rows` prompts to probe; `probe_rows` of every family on the testbed."""
        settings = self.settings
        if settings.support_dataset_name:
            rows = self._read("support_dataset_name", None, settings.support_dataset_split)
            rows = self._ready_prompts("support_dataset_name", "probes", rows)
        elif evaluation is not None:
            rows = evaluation
            if "prompt" not in rows.column_names:
                raise RecipeError(
                    "support_dataset_name: missing; the evaluation rows are demonstrations, and support is measured on "
                    "prompts; write FILE.jsonl with a column `prompt`"
                )
        else:
            return _testbed_probes(settings)
        return rows.select(range(min(settings.support_rows, len(rows))))

    def _read(self, key: str, config: str | None, split: str) -> Dataset:
        name = getattr(self.settings, key)
        with _naming(key):
            self.files += local_files(name, split)
            return load_rows(name, config=config, split=split)

    def _ready_prompts(self, key: str, what: str, rows: Dataset) -> Dataset:
        with _naming(key):
            check_prompts(rows)
        rows, self.fits[what] = fit_prompts(*self._to_fit(self._with_system(rows), self.settings.overlong_prompts))
        return rows

    def _ready_demonstrations(self, key: str, what: str, rows: Dataset) -> Dataset:
        policy = self.settings.overlong_demonstrations
        if PAIRED in rows.column_names and "completion" not in rows.column_names:
            with _naming(key):
                check_prompts(rows)
            rows, self.fits[what] = fit_paired(*self._to_fit(self._with_system(rows), policy))
            return as_completions(rows)
        with _naming(key):
            check_demonstrations(rows, self.args.dataset_text_field)
        # Without the others: SFTTrainer would read a `prompt` beside `messages`, or `input_ids`, in another way.
        rows = rows.select_columns(demonstration_columns(rows, self.args.dataset_text_field))
        rows, self.fits[what] = fit_demonstrations(*self._to_fit(self._with_system(rows), policy))
        return rows

    def _with_system(self, rows: Dataset) -> Dataset:
        text = self.settings.system_prompt
        return with_system_prompt(rows, text) if text else rows

    def _to_fit(self, rows: Dataset, policy: str) -> tuple:
        return rows, self.tokenizer, self.args, self.context, policy


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Put the recipe's key before what is wrong with its rows."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(f"{key}: {error}") from error


def _testbed_prompts(settings: RunSettings, args: FreeEnergyConfig, model_path: str, tokenizer) -> Dataset:
    prompts = digits.dataset(settings.prompts, settings.prompt_rows, args.seed)
    if settings.reward_funcs == ["digits"]:  # the verifier that p is exact for
        model = AutoModelForCausalLM.from_pretrained(model_path).eval()
        prompts = prompts.add_column(KNOWN_P, exact_probabilities(model, tokenizer, prompts["prompt"]).tolist())
    if settings.demonstrations_paired:
        worked = [digits.demonstration(x, settings.demonstration_worked) for x in prompts["prompt"]]
        prompts = prompts.add_column(PAIRED, worked)
    return prompts


def _testbed_probes(settings: RunSettings) -> Dataset:
    """Held-out prompts of every family, those that exact p is logged for."""
    names = digits.measured({**settings.prompts, **settings.demonstrations})
    families = {name: digits.prompts(name, settings.probe_rows, seed=0, split="probe") for name in names}
    pairs = [(prompt, name) for name, asked in families.items() for prompt in asked]
    return Dataset.from_dict({"prompt": [x for x, _ in pairs], "family": [name for _, name in pairs]})


def _testbed_demonstrations(settings: RunSettings, args: FreeEnergyConfig) -> Dataset:
    return digits.dataset(
        settings.demonstrations,
        settings.demonstration_rows,
        args.seed + 1,
        demonstrations=True,
        worked=settings.demonstration_worked,
    )
