"""The reference: what it knows, and a cache that builds once, whole or not at all."""

import multiprocessing
import signal

import pytest
import torch
from builders import TINY, build_and_die, build_together
from transformers import AutoModelForCausalLM, AutoTokenizer

from fe_posttrain.tasks import digits, pretraining
from fe_posttrain.tasks.exact import exact_probabilities
from fe_posttrain.tasks.pretraining import reference_model

BUILT = "pretrained the testbed reference in"


def visible(cache):
    return [path for path in cache.iterdir() if not path.name.startswith(".")]


def test_families_have_the_probabilities_that_they_are_named_for(reference_folder):
    model = AutoModelForCausalLM.from_pretrained(reference_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(reference_folder)
    assert sum(p.numel() for p in model.parameters()) == 108_480
    p = {
        family: exact_probabilities(model, tokenizer, digits.prompts(family, 240, 0, "probe"))
        for family in digits.FAMILIES
    }
    letters = len(digits.FAMILIES["basin"].operations)
    assert min(p["basin"][i::letters].mean() for i in range(letters)) >= 0.98
    assert p["basin"].mean() >= 0.99
    assert 0.08 <= p["tail_10"].mean() <= 0.11
    assert 0.02 <= p["tail_03"].mean() <= 0.035
    assert 0.001 <= p["tail_005"].mean() <= 0.005
    assert p["barrier"].max() < 1e-4


def test_same_seed_same_bytes_and_the_caller_is_left_alone(tmp_path):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first, again = (reference_model(tmp_path / name, settings=TINY) for name in "ab")
    other = reference_model(tmp_path / "a", seed=1, settings=TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_cached_folder_is_reused_and_every_setting_is_in_its_name(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path))
    folder = reference_model(settings=TINY)
    assert folder.parent == tmp_path
    assert "step 3/3, loss" in capfd.readouterr().err
    assert reference_model(settings=TINY) == folder
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(digits, "VERSION", "another")
    assert reference_model(settings=TINY) != folder


def test_two_processes_that_start_together_build_once(tmp_path, capfd):
    spawn = multiprocessing.get_context("spawn")
    barrier, folders = spawn.Barrier(2), spawn.Queue()
    builders = [spawn.Process(target=build_together, args=(tmp_path, barrier, folders)) for _ in range(2)]
    for builder in builders:
        builder.start()
    got = [folders.get(timeout=120) for _ in builders]
    for builder in builders:
        builder.join()
    assert got[0] == got[1]
    assert visible(tmp_path) == [got[0]]
    assert capfd.readouterr().err.count(BUILT) == 1


def test_killed_builder_leaves_nothing_that_is_taken_for_a_model(tmp_path):
    builder = multiprocessing.get_context("spawn").Process(target=build_and_die, args=(tmp_path,))
    builder.start()
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    assert visible(tmp_path) == []
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1  # its staging folder
    folder = reference_model(tmp_path, settings=TINY)
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 1
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


def test_failing_build_raises_and_leaves_no_model(tmp_path, monkeypatch):
    def broken(seed, settings):
        raise FloatingPointError("broken")

    monkeypatch.setattr(pretraining, "pretrain", broken)
    with pytest.raises(FloatingPointError):
        reference_model(tmp_path, settings=TINY)
    assert visible(tmp_path) == []
