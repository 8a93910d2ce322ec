"""Forty recipes with one mistake each, and what a person must be told: key, line, and what to write.

Lines were counted by hand. `test_checks.py` reads them in one process, `scripts/evidence.py recipes` launches each.
"""

from dataclasses import dataclass, field
from pathlib import Path

LINES = """\
# A run that trains as it stands.
model_name_or_path: testbed
prompts: {tail_10: 1, basin: 1}
reward_funcs: [digits]
reward_energy_weight: 1.0
beta: 0.05
estimator: sequence
max_steps: 100
per_device_train_batch_size: 64
num_generations: 16
max_completion_length: 12
learning_rate: 2.0e-4
lr_scheduler_type: linear
use_cpu: true
gradient_checkpointing: false
save_strategy: "no"
logging_steps: 1
report_to: none
""".splitlines()


@dataclass(frozen=True)
class Case:
    """A mistake: line number -> what that line says instead (19 and on: more lines), and how it must be reported."""

    name: str
    edits: dict[int, str]
    key: str
    line: int
    suggestion: str  # a part of what to write
    overrides: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        lines = dict(enumerate(LINES, 1)) | self.edits
        path = folder / f"{self.name.replace(' ', '_')}.yaml"
        path.write_text("\n".join(lines[number] for number in sorted(lines)) + "\n")
        return path

    def place(self, path: Path) -> str:
        """The beginning of the line that reports it."""
        if self.overrides:
            return f"--{self.key}: "
        return f"{path}:{self.line}: {self.key}: " if self.key else f"{path}:{self.line}: "


CASES = (
    # names
    Case("missing letter", {12: "learning_rat: 2.0e-4"}, "learning_rat", 12, "did you mean learning_rate?"),
    Case("doubled letter", {6: "betta: 0.05"}, "betta", 6, "did you mean beta?"),
    Case("swapped letters", {8: "max_setps: 100"}, "max_setps", 8, "did you mean max_steps?"),
    Case("wrong letter", {10: "num_gemerations: 16"}, "num_gemerations", 10, "did you mean num_generations?"),
    Case("dashes", {14: "use-cpu: true"}, "use-cpu", 14, "did you mean use_cpu?"),
    Case("camel case", {11: "maxCompletionLength: 12"}, "maxCompletionLength", 11, "mean max_completion_length?"),
    Case("old name", {19: "evaluation_strategy: steps"}, "evaluation_strategy", 19, "did you mean eval_strategy?"),
    Case("name of a verl key", {6: "kl_coef: 0.05"}, "kl_coef", 6, "did you mean beta?"),
    Case("abbreviation", {12: "lr: 2.0e-4"}, "lr", 12, "did you mean learning_rate?"),
    Case("name of LLaMA-Factory", {19: "finetuning_type: lora"}, "finetuning_type", 19, "did you mean use_peft?"),
    # types
    Case("yes is no truth value", {14: "use_cpu: yes"}, "use_cpu", 14, "write use_cpu: true"),
    Case("number in quotes", {12: 'learning_rate: "2e-4"'}, "learning_rate", 12, "write learning_rate: 0.0002"),
    Case("half a step", {8: "max_steps: 1.5"}, "max_steps", 8, "a whole number is wanted"),
    Case("null group", {10: "num_generations: null"}, "num_generations", 10, "write num_generations: 8"),
    Case("list of families", {3: "prompts: [tail_10]"}, "prompts", 3, "write prompts: {tail_10: 1}"),
    Case("reward without list", {4: "reward_funcs: digits"}, "reward_funcs", 4, "write reward_funcs: [digits]"),
    Case("text as weight", {3: "prompts: {basin: much}"}, "prompts", 3, "a mapping of names to numbers is wanted"),
    # ranges and choices
    Case("temperature of 0", {19: "temperature: 0"}, "temperature", 19, "write a number above 0"),
    Case("share above 1", {19: "top_p: 3"}, "top_p", 19, "write a number from 0 to 1, without 0"),
    Case("negative rate", {12: "learning_rate: -1e-4"}, "learning_rate", 12, "write 0 or more"),
    Case("group of one", {10: "num_generations: 1"}, "num_generations", 10, "write 2 or more"),
    Case("no number", {6: "beta: .nan"}, "beta", 6, "write 0 or more"),
    Case("unknown estimator", {7: "estimator: sequnce"}, "estimator", 7, "did you mean sequence?"),
    Case("unknown schedule", {13: "lr_scheduler_type: cosin"}, "lr_scheduler_type", 13, "did you mean cosine?"),
    Case("unknown fault policy", {19: "reward_fault_policy: skip"}, "reward_fault_policy", 19, "one of stop, mask"),
    # combinations
    Case("schedule without end", {19: "beta_schedule: linear"}, "beta_schedule", 19, "write both or neither"),
    Case("cut groups", {9: "per_device_train_batch_size: 40"}, "per_device_train_batch_size", 9, "batch_size: 48"),
    Case("two precisions", {19: "bf16: true", 20: "fp16: true"}, "bf16", 19, "remove one"),
    Case("a weight too many", {19: "reward_weights: [1, 2]"}, "reward_weights", 19, "write reward_weights: [1.0]"),
    Case("adapter without peft", {19: "lora_r: 8"}, "lora_r", 19, "write use_peft: true"),
    Case(
        "nothing to evaluate on",
        {19: "eval_strategy: steps", 20: "per_device_eval_batch_size: 16"},
        "eval_strategy",
        19,
        "write dataset_test_split: test",
    ),
    Case(
        "save inside a block",
        {16: "save_strategy: steps", 19: "save_steps: 10", 20: "num_iterations: 3"},
        "save_steps",
        19,
        "save_steps: 12",
    ),
    Case(
        "weight without demonstrations",
        {19: "demonstration_energy_weight: 0.5"},
        "demonstration_energy_weight",
        19,
        "demonstrations: {barrier: 1}",
    ),
    # what is not there
    Case("unknown family", {3: "prompts: {tail10: 1}"}, "prompts", 3, "did you mean tail_10?"),
    Case("unknown reward", {4: "reward_funcs: [digit]"}, "reward_funcs", 4, "did you mean digits?"),
    Case("missing model", {2: "model_name_or_path: ./nowhere"}, "model_name_or_path", 2, "a folder with config.json"),
    # the file itself
    Case("a key twice", {19: "beta: 0.1"}, "beta", 19, "line 6 and in line 19; only one can hold; remove one"),
    Case("an environment", {19: "env: {LD_PRELOAD: ./evil.so}"}, "env", 19, "write them before the command"),
    Case("a tag", {19: "run_name: !!python/object/apply:os.getcwd []"}, "run_name", 19, "the value without a tag"),
    Case("flag without value", {}, "use_cpu", 0, "write --use_cpu VALUE", ["--use_cpu"]),
)
