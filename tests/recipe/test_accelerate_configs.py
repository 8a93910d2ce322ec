"""recipes/accelerate: accelerate reads every file, its keys are known ones, and cpu.yaml starts two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trl
import yaml
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "accelerate"
THEIRS = Path(trl.__file__).parent / "accelerate_configs"
# Ours, the type and number of processes that it says, and the file of TRL that has the same keys.
FILES = {
    "single_gpu": ("NO", 1, "single_gpu"),
    "ddp": ("MULTI_GPU", 4, "multi_gpu"),
    "fsdp2": ("FSDP", 4, "fsdp2"),
    "zero3": ("DEEPSPEED", 4, "zero3"),
    "cpu": ("MULTI_GPU", 2, "multi_gpu"),
}


def test_every_file_is_in_the_table():
    assert {path.stem for path in FOLDER.iterdir()} == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_it(name):
    kind, processes, like = FILES[name]
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # raises at keys that it does not know
    assert (config.distributed_type.value, config.num_processes, config.num_machines) == (kind, processes, 1)
    assert config.mixed_precision == ("no" if name == "cpu" else "bf16") and config.use_cpu == (name == "cpu")
    ours, theirs = (yaml.safe_load(path.read_text()) for path in (FOLDER / f"{name}.yaml", THEIRS / f"{like}.yaml"))
    assert ours.keys() <= theirs.keys()
    for part in ("fsdp_config", "deepspeed_config"):  # accelerate hands these on unread
        assert ours.get(part, {}).keys() <= theirs.get(part, {}).keys()


@pytest.mark.parametrize("name", FILES)
def test_its_header_says_when_and_how_to_launch_and_whether_it_was_run(name):
    header = (FOLDER / f"{name}.yaml").read_text().split("\n\n")[0]
    assert f"accelerate launch --config_file recipes/accelerate/{name}.yaml scripts/train.py --config" in header
    assert ("Run here." if name == "cpu" else "Not yet run") in header


def test_the_one_for_the_cpu_starts_two_processes(tmp_path):
    script = tmp_path / "who.py"
    script.write_text(
        "from pathlib import Path\n"
        "from accelerate import PartialState\n"
        "state = PartialState(cpu=True)  # as `use_cpu: true` has it\n"
        "found = f'{state.process_index} of {state.num_processes}, {state.backend}'\n"
        "Path(__file__).with_name(f'found{state.process_index}').write_text(found)\n"
        "state.wait_for_everyone()  # the first process holds what the other one connects through\n"
        "state.destroy_process_group()\n"
    )
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--main_process_port", "0"]
    done = subprocess.run(
        [*command, "--config_file", str(FOLDER / "cpu.yaml"), str(script)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [path.read_text() for path in sorted(tmp_path.glob("found*"))]
    assert found == ["0 of 2, gloo", "1 of 2, gloo"]
