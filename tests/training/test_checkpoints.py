"""Checkpoint folders: whole or absent, and every kind of damage found."""

import os

import pytest

from fe_posttrain.training.checkpoints import (
    clear_staging,
    damage,
    newest_complete,
    publish,
    read_manifest,
    rotate,
    write_manifest,
)


def checkpoint(run, step: int):
    """A published checkpoint of two files, one of them in a folder of its own."""
    staged = run / ".staging" / f"checkpoint-{step}"
    (staged / "inner").mkdir(parents=True)
    (staged / "weights").write_bytes(bytes(range(200)))
    (staged / "inner" / "state").write_text(f"step {step}")
    (staged / "training_args.bin").write_text("a pickle with a token in it")
    write_manifest(staged, step, {"recipe": {"beta": 0.1}})
    return publish(staged, run)


def test_a_whole_checkpoint_has_its_notes_and_no_pickled_arguments(tmp_path):
    folder = checkpoint(tmp_path, 3)
    assert damage(folder) is None and newest_complete(tmp_path).folder == folder
    assert read_manifest(folder)["recipe"] == {"beta": 0.1} and read_manifest(folder)["step"] == 3
    assert {path.name for path in folder.iterdir()} == {"weights", "inner", "manifest.json"}


@pytest.mark.parametrize("name", ["weights", "inner/state", "manifest.json"])
@pytest.mark.parametrize("how", ["missing", "cut", "one bit"])
def test_damage_is_found_named_and_passed_over(tmp_path, name, how):
    older, newer = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    path = newer / name
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 3] ^= 4
        path.write_bytes(content)
    found = newest_complete(tmp_path)
    assert found.folder == older
    (line,) = found.damaged
    assert line.startswith(f"{newer}: ") and name in line


def test_every_single_bit_of_a_manifest_matters(tmp_path):
    folder = checkpoint(tmp_path, 1)
    whole = (folder / "manifest.json").read_bytes()
    for at in range(len(whole) - 1):  # the last byte is a newline that JSON does not read
        for bit in (1, 32):
            changed = bytearray(whole)
            changed[at] ^= bit
            (folder / "manifest.json").write_bytes(changed)
            assert damage(folder) or bytes(changed).split() == whole.split(), at


def test_the_oldest_make_way_but_never_the_best(tmp_path):
    for step in (1, 2, 10, 20):
        checkpoint(tmp_path, step)
    rotate(tmp_path, keep=2, protected=tmp_path / "checkpoint-1")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-10",
        "checkpoint-20",
    ]
    rotate(tmp_path, keep=None, protected=None)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 3


def test_a_step_that_is_saved_again_replaces_the_folder(tmp_path):
    folder = checkpoint(tmp_path, 4)
    os.truncate(folder / "weights", 3)
    checkpoint(tmp_path, 4)
    assert damage(folder) is None


def test_what_killed_processes_leave_is_no_checkpoint_and_is_cleared(tmp_path):
    (tmp_path / ".staging" / "checkpoint-7").mkdir(parents=True)
    (tmp_path / ".staging-x1" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_complete(tmp_path).folder is None and newest_complete(tmp_path).damaged == []
    clear_staging(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-best"]
