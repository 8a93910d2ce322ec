"""SupportSettings: the `support_...` keys of a recipe."""

from dataclasses import dataclass, field

from fe_posttrain.support.budgets import ALPHA, DELTA


def _key(default, help_text: str):
    return field(default=default, metadata={"help": help_text})


@dataclass
class SupportSettings:
    """What is tracked of accessible support, and how much is drawn for it.

    Draws are completions of one probe prompt. Training rollouts cost nothing beside what they are drawn for; the
    reference's draws are made once and cached.
    """

    support: bool = _key(False, "Track accessible support: ledger, displacement, probes, verdict.")
    support_dataset_name: str | None = _key(
        None,
        "Probe prompts, held out: as dataset_name; default the evaluation prompts, or held-out prompts of every "
        "testbed family.",
    )
    support_dataset_split: str = _key("train", "Split that holds the probe prompts.")
    support_rows: int = _key(256, "At most so many probe prompts, the first ones (testbed: probe_rows per family).")
    support_tag: str = _key("family", "Column of the probe prompts by which the verdict is also given.")
    support_signal: str | None = _key(
        None, "What counts as correct: a reward, as in reward_funcs; default the first of reward_funcs."
    )
    support_threshold: float | None = _key(None, "Graded signals: the least value that counts as correct.")
    support_labels: str | None = _key(
        None, "A function of prompts and completions that labels each completion; every label is tracked."
    )
    support_labels_pooled: bool = _key(True, "Labels over all prompts together; false: for each prompt.")
    support_channels: dict[str, str] = field(
        default_factory=dict,
        metadata={
            "help": "Augmented samplers of the reference, name: package.module:function or file.py:function; tried "
            "where plain sampling is shut out."
        },
    )
    support_budget: int | None = _key(
        None, "Primary budget B in draws; default what the run draws of a prompt, at least 1024, as a power of 4."
    )
    support_delta: float = _key(DELTA, "B draws may miss what counts as reachable with this probability.")
    support_alpha: float = _key(ALPHA, "Level of every bound and claim.")
    support_steps: int = _key(0, "Optimizer steps between probe rounds; 0: at the end only.")
    support_draws: int = _key(64, "Draws of the policy per probe prompt and round.")
    support_reference_draws: int = _key(1024, "At most so many draws of the reference per probe prompt and phase.")
    support_batch_size: int | None = _key(
        None, "Completions that a process draws at once; default as many as it rolls out at once in training."
    )
    support_displacement_steps: int = _key(8, "Optimizer steps of a displacement window; 0: none.")
    support_displacement_rows: int = _key(16, "Correct rollouts that are scored again in a window.")
