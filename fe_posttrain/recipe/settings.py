"""RunSettings: what a run is made of, beside TRL's `ModelConfig` and our `FreeEnergyConfig`."""

from dataclasses import dataclass, field

from fe_posttrain.methods.presets import METHODS
from fe_posttrain.tracking.settings import SupportSettings
from fe_posttrain.training.alarms import KINDS


def _key(help_text: str, *, default):
    return field(default=default, metadata={"help": help_text})


@dataclass
class RunSettings(SupportSettings):
    """The keys of a recipe that name data, rewards and what is saved. TRL's names where TRL has one.

    `model_name_or_path` (of TRL's ModelConfig) is a folder, a Hub name, or one of the testbed's (`tasks.bases`). Data
    come from `dataset_name` and `demonstration_dataset_name` (one's own), or from `prompts` and `demonstrations`
    (families of the testbed).
    What is tracked of accessible support is set by the `support_...` keys of SupportSettings.
    """

    method: str | None = field(
        default=None,
        metadata={
            "help": "A named method: stands for keys of its own (recipes/README.md), which those written win over.",
            "choices": tuple(METHODS),
        },
    )
    dataset_name: str | None = _key(
        "Rollout prompts: a .jsonl, .json or .parquet file, a Hub name, or a task (gsm8k, formats). Column `prompt`, "
        "plain or conversational; `demonstration` beside it pairs one with each; other columns go to the rewards.",
        default=None,
    )
    dataset_config: str | None = _key("Configuration of a Hub dataset.", default=None)
    dataset_train_split: str = _key("Split to train on.", default="train")
    dataset_test_split: str | None = _key("Split to evaluate on; needs eval_strategy.", default=None)
    eval_dataset_name: str | None = _key("Evaluation rows from a file, Hub name or task of their own.", default=None)
    demonstration_dataset_name: str | None = _key(
        "Demonstrations: as dataset_name, with columns `prompt` and `completion`, or `messages`, or `text`.",
        default=None,
    )
    demonstration_dataset_config: str | None = _key("Configuration of a Hub dataset.", default=None)
    demonstration_dataset_split: str = _key("Split that holds the demonstrations.", default="train")
    system_prompt: str | None = _key(
        "System message put before every prompt; a plain prompt becomes a conversation.", default=None
    )
    overlong_prompts: str = _key(
        "Prompts that leave no room for max_completion_length in the model's context: error, drop or truncate.",
        default="error",
    )
    overlong_demonstrations: str = _key(
        "Demonstrations longer than max_length or the model's context: error, drop or truncate.", default="error"
    )

    reward_funcs: list[str | dict] = field(
        default_factory=list,
        metadata={
            "help": "Rewards: a name, my_package.module.function, or path/to/file.py:function; with arguments as "
            "`- file.py:function: {target: 20}`."
        },
    )
    reward_model_name_or_path: str | None = _key(
        "A reward model (sequence classification), folder or Hub name; counts after reward_funcs.", default=None
    )
    alarms: bool = _key("Warn when something happens in a run that people fear.", default=True)
    stop_on_alarm: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Alarms that end the run, after a checkpoint, with exit code 3.",
            "choices": tuple(KINDS),
        },
    )
    wandb_project: str | None = _key(
        "wandb project (report_to: wandb); default WANDB_PROJECT or fe_posttrain.", default=None
    )
    wandb_entity: str | None = _key("wandb user or team; default the one that is logged in.", default=None)
    wandb_run_group: str | None = _key("wandb group: the arms of one comparison.", default=None)
    wandb_job_type: str | None = _key("wandb job type: the arm; default rl, sft or mixture.", default=None)
    merge_adapter: bool = _key("Save the final model with its LoRA adapter merged.", default=False)

    prompts: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Rollout prompts: families of the testbed, weighted."}
    )
    prompt_rows: int = _key("How many testbed prompts to draw.", default=2048)
    demonstrations: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Testbed families to demonstrate, weighted."}
    )
    demonstration_rows: int = _key("How many testbed demonstrations to draw.", default=2048)
    demonstration_worked: bool = _key("Show the working where a family has one.", default=True)
    demonstrations_paired: bool = _key(
        "Give each testbed prompt its own demonstration instead of a stream of their own.", default=False
    )
    probe_rows: int = _key("Testbed: held-out prompts per family on which p is exact.", default=32)
    probe_steps: int = _key("Testbed: optimizer steps between exact values of p.", default=10)
