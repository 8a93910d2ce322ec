"""The catalogue holds what real runs log, and real runs log what it holds; documents and wandb say the same."""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers.trainer
import transformers.trainer_utils
from trl.trainer import grpo_trainer, sft_trainer

from fe_posttrain.recipe.launch import launch
from fe_posttrain.view.catalogue import CATALOGUE, GROUPS, find, in_wandb, named
from fe_posttrain.view.reading import RunData

ROOT = Path(__file__).parents[2]
OURS = ("trainer", "support", "testbed", "alarms")
REWARDS = """
from fe_posttrain.tasks.digits import correct

def form(prompts, completions, **columns):
    return ["worked" if ">" in completion else "direct" for completion in completions]

def faulty(prompts, completions, **columns):
    if any(y[:1] == "7" for y in completions):
        raise RuntimeError("no sevens")
    return correct(prompts, completions)
"""
SMALL = "--probe_rows 4 --prompt_rows 64 --demonstration_rows 256 --support_reference_draws 16".split()
RL = (
    "--max_steps 12 --support_steps 6 --support_budget 16 --support_displacement_steps 4 --probe_steps 6 "
    "--learning_rate 1e-3 --report_to wandb"
).split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, RunData]:
    """One run of each kind, by real launches."""
    where = tmp_path_factory.mktemp("runs")
    (where / "mine.py").write_text(REWARDS)
    faults = ["--reward_funcs", f"['{where}/mine.py:faulty']", "--support_signal", "digits"]
    faults += "--reward_fault_policy mask --reward_fault_limit 1".split()
    kinds = {
        "rl": [*RL, "--support", "true", "--support_labels", f"{where}/mine.py:form"],
        "mixture": ["--max_steps", "2", *faults],
        "mixture under a gate": "--max_steps 2 --gate unsolved --demonstrations_paired true".split(),
        "rl from prefixes": "--max_steps 2 --prefix_share 0.5 --demonstrations_paired true".split(),
        "sft": ["--max_steps", "2"],
        "rl with a failure buffer": (
            "--max_steps 2 --demonstrations_paired true --demonstration_energy_weight 1 --failure_buffer 2"
        ).split(),
        "sft under beta": "--max_steps 2 --beta 0.1 --kl_sampler demonstrations --reference_cache_mib 0".split(),
    }
    recipes = {kind: str(ROOT / f"recipes/{kind.split()[0]}.yaml") for kind in kinds}
    return {
        kind: RunData(launch(recipes[kind], [*SMALL, *words, "--output_dir", str(where / kind)]))
        for kind, words in kinds.items()
    }


def logged(run: RunData) -> Iterator[str]:
    return (key for row in run.metrics for key in row if key not in ("step", "seconds"))


def test_every_number_that_a_run_logs_is_in_the_catalogue(runs):
    keys = {key for run in runs.values() for key in logged(run)}
    assert len(keys) > 80
    assert sorted(key for key in keys if find(key) is None) == []


def test_every_number_of_ours_in_the_catalogue_is_logged(runs):
    keys = {key for run in runs.values() for key in logged(run)}
    ours = [metric for metric in CATALOGUE if metric.source in OURS]
    assert [metric.name for metric in ours if not any(map(metric.matches, keys))] == []


def test_what_trl_and_transformers_log_is_what_the_catalogue_says():
    """A metric that TRL adds, drops or renames shows here."""
    pattern = re.compile(r'_metrics\[(?:mode|"train")\]\[(f?)"([^"]+)"\]')
    source = inspect.getsource(grpo_trainer) + inspect.getsource(sft_trainer)
    theirs = {re.sub(r"\{.*?\}", "*", name) if f else name for f, name in pattern.findall(source)}
    assert len(theirs) > 30
    assert theirs == {metric.name for metric in CATALOGUE if metric.source == "TRL"}
    source = inspect.getsource(transformers.trainer) + inspect.getsource(transformers.trainer_utils)
    for metric in CATALOGUE:
        if metric.source == "transformers":
            assert re.search(rf'"(?:{{split}}_)?{metric.name.removeprefix("train_")}"', source), metric.name


def test_wandb_has_every_number_of_a_run_with_its_last_value(runs):
    (folder,) = (runs["rl"].path / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--summary", "--json", str(folder)]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    last = {key: value for key, value in runs["rl"].last().items() if key not in ("step", "seconds")}
    assert len(last) > 70
    assert {key: shown["summary"].get(in_wandb(key)) for key in last} == last
    assert shown["summary"]["verdict"] == runs["rl"].support["sentence"]
    assert shown["config"]["beta"] == 0.05 and shown["state"] == "finished"


def test_an_entry_is_complete_and_found_by_its_keys():
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
    for metric in CATALOGUE:
        assert metric.meaning and metric.group in GROUPS
        assert find(metric.name.replace("*", "any/name")) is metric and named(metric.name) is metric
        assert find(f"eval_{metric.name.replace('*', 'x')}") is metric
    assert find("rewards/digits/mean").name == "rewards/*/mean" and find("rewards/mean") is None
    assert in_wandb("eval_reward") == "eval/reward" and in_wandb("kl") == "train/kl"


def test_the_documents_hold_the_tables_of_the_catalogue():
    done = subprocess.run([sys.executable, "scripts/metrics.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    texts = [(ROOT / path / "README.md").read_text() for path in ("", "fe_posttrain/support", "fe_posttrain/view")]
    for metric in CATALOGUE:
        assert sum(f"| `{metric.name}` |" in text for text in texts) == 1, metric.name
