"""scripts/bench.py: its intervals cover as often as it says, its cells are what they say, its records are complete."""

import itertools
import json
from fractions import Fraction
from functools import partial
from io import StringIO
from math import log
from pathlib import Path

import pytest
import torch
from rich.console import Console
from scipy.stats import chisquare

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def tiny(**changes):
    from bench_cells import Shape

    small = {"vocab": 64, "layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 48}
    return Shape(**small | changes)


def rollouts(**changes):
    from bench_cells import Rollouts

    return Rollouts(**{"prompt": 6, "completion": 8, "group": 4, "batch": 8, "shape": tiny()} | changes)


@pytest.mark.parametrize("n", range(1, 10))
def test_the_interval_covers_as_often_as_it_says(n):
    import bench_pairs

    # Draws of a law with median 0 lie on either side of it with probability 1/2 each, whatever the law: go through
    # all 2^n ways, each with sizes of its own.
    covered = 0
    for signs in itertools.product((-1, 1), repeat=n):
        low, high, coverage = bench_pairs.median_interval([sign * (i + 1) for i, sign in enumerate(signs)])
        covered += low <= 0 <= high
    assert coverage == pytest.approx(float(Fraction(covered, 2**n)), abs=1e-12)


@pytest.mark.parametrize(
    ("n", "ends", "coverage"),
    [
        (2, (1, 2), 1 / 2),
        (5, (1, 5), 15 / 16),  # no pair of ranks reaches .95
        (7, (1, 7), 63 / 64),
        (9, (2, 8), 1 - 2 * (1 + 9) / 512),
    ],
)
def test_the_interval_lies_at_the_ranks_of_the_table(n, ends, coverage):
    import bench_pairs

    shuffled = [float(3 * i % (n + 1)) for i in range(1, n + 1)] if (n + 1) % 3 else [float(i) for i in range(n, 0, -1)]
    assert bench_pairs.median_interval(shuffled) == (*ends, pytest.approx(coverage))


def test_a_pair_is_two_runs_of_the_same_round():
    import bench_pairs

    found = bench_pairs.ratio([2.0, 9.0, 40.0], [1.0, 3.0, 10.0])
    assert (found["ratio"], found["interval"], found["pairs"]) == (3.0, [2.0, 4.0], 3)
    order = []
    bench_pairs.alternate(["a", "b"], 2, lambda name, i: order.append(name + str(i)))
    assert order == ["b0", "a0", "a1", "b1"]


def test_a_short_run_on_the_testbed_gives_a_complete_record(monkeypatch):
    import bench_cells
    import bench_testbed

    monkeypatch.setattr(bench_cells, "Testbed", partial(bench_cells.Testbed, batch=8, rows=32))
    peaks = iter([{"peak_mib": 30.0, "added_peak_mib": 10.0}, {"peak_mib": 33.0, "added_peak_mib": 5.0}])
    monkeypatch.setattr(bench_testbed, "peak_in_own_process", lambda name: next(peaks))  # each costs nine seconds
    record = bench_testbed.measure(["sft"], pairs=2, steps=4, console=Console(file=StringIO()))
    record = json.loads(json.dumps(record))
    assert record["comparisons"].keys() == {"sft"}
    found = record["comparisons"]["sft"]
    assert found["time_ms"]["ours"] > 0 and found["time_ms"]["trl"] > 0 and found["time_ms"]["pairs"] == 2
    assert found["time_ms"]["coverage"] == 0.5
    # One round of memory, the second arm first.
    assert found["added_peak_mib"]["ratio"] == 0.5 and found["peak_mib"]["ours"] == 33.0
    assert record["meaning"].keys() >= {"time_ms", "added_peak_mib", "peak_mib", "interval"}
    assert len(record["load"]["before"]) == len(record["load"]["after"]) == 3 and record["load"]["cores"] >= 1
    timing = record["settings"]["time"]
    assert (timing["batch"], timing["steps"], timing["warm_up"]) == (8, 4, 1)
    assert {"python", "torch", "trl", "fe_posttrain"} <= record["versions"].keys()
    shown = Console(file=StringIO(), width=100)
    shown.print(bench_testbed.table(record))
    assert "SFTTrainer" in shown.file.getvalue() and "50.0%" in shown.file.getvalue()


def test_peak_memory_is_reported_above_what_was_there(monkeypatch):
    import bench_testbed

    peaks = iter([100.0, 160.0, 160.0])
    monkeypatch.setattr(bench_testbed, "_peak", lambda: next(peaks))
    assert bench_testbed.peak_memory("sft", batch=4, rows=8) == {"peak_mib": 160.0, "added_peak_mib": 60.0}


@pytest.mark.parametrize("kind", ["ours", "grpo"])
def test_completions_that_are_sampled_have_the_lengths_of_the_cell(monkeypatch, kind):
    import bench_cells

    drawn = []

    def kept(completion_ids, **_):
        drawn.extend(len(ids) for ids in completion_ids)
        return [float(i) for i in range(len(completion_ids))]

    monkeypatch.setattr(bench_cells, "even_tokens", kept)
    work = rollouts(prompt=5, completion=12, shortest=3, batch=1000, steps=1)
    work.build(kind).train()
    counts = [drawn.count(length) for length in range(3, 13)]
    assert sum(counts) == len(drawn) == 1000
    assert chisquare(counts).pvalue > 1e-3


def test_completions_without_a_range_of_lengths_do_not_end():
    import bench_arms

    work = rollouts(batch=8, steps=3)
    assert bench_arms.timed(work.build("ours"), warm_up=1, steps=3)["length"] == work.completion


def test_the_fused_head_reads_the_end_tokens_hazard_too():
    model = rollouts(prompt=5, completion=12, shortest=3).build("grpo").model
    ids = torch.randint(4, 64, (2, 17))
    ids[:, 5:] = model.config.eos_token_id
    with torch.no_grad():
        found = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs[:, 4:]
    assert (found[:, :2] < -25).all()  # tokens 1 and 2 of the completion
    expected = torch.tensor([log(1 / (12 - t + 1)) for t in range(3, 13)])
    assert (found[:, 2:] - expected).abs().max() < 0.1  # others' logits are not all 0


def test_the_reference_of_trls_arm_is_the_model_that_it_was_given():
    trainer = rollouts(steps=1).build("grpo")
    trainer.train()
    assert trainer.beta == trainer.args.beta > 0
    assert trainer.state.log_history[0]["kl"] == pytest.approx(0, abs=1e-7)


def test_gradients_are_apart_as_far_as_their_worst_parameter():
    import bench_looks

    expected = {"a": torch.tensor([100.0, -200.0]), "b": torch.tensor([0.1, 0.0])}
    moved = {"a": torch.tensor([100.0, -200.0]), "b": torch.tensor([0.1, 0.001])}
    assert bench_looks.difference(expected, expected) == 0
    assert bench_looks.difference(moved, expected) == pytest.approx(0.01)
    assert bench_looks.difference({"a": expected["a"]}, expected) == float("inf")


def test_trls_step_by_us_has_trls_gradient_and_another_seed_has_not():
    import bench_looks

    work = rollouts()
    trl = bench_looks.gradients(work, "grpo")
    assert bench_looks.difference(bench_looks.gradients(work, "ours", estimator="trl"), trl) < 1e-5
    assert bench_looks.difference(bench_looks.gradients(work, "grpo", seed=1), trl) > 1e-2  # other prompts


def test_shared_prompts_leave_the_gradient_as_it_is():
    import bench_looks

    apart = bench_looks.same_gradients(rollouts())  # not the same sums, so rounding differs where prompts are shared
    assert all(0 < value < 1e-5 for value in apart.values())


def test_operations_are_counted_as_by_hand():
    import bench_looks

    shape, rows, length = tiny(), 3, 10
    model = shape.model()
    ids = torch.randint(4, 64, (rows, length))
    with bench_looks.flop_counter() as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    heads = shape.heads * shape.head_dim
    projections = shape.hidden * (2 * heads + 2 * shape.kv_heads * shape.head_dim + 3 * shape.intermediate)
    weights = shape.layers * projections + shape.hidden * shape.vocab
    products = 3 * 2 * rows * length * weights  # forward, gradient of the inputs, gradient of the weights
    attention = shape.layers * 7 * 2 * rows * heads * length**2  # two products forward, five backward
    assert counter.get_total_flops() == products + attention


def test_the_peak_of_memory_is_exact():
    import bench_looks

    meter = bench_looks._PeakOfAllocator()
    before = torch.zeros(1000)
    meter.start()
    first = torch.zeros(5000)
    del first, before  # what was there before is not given back
    second, third = torch.zeros(2000), torch.zeros(3500)
    assert meter.stop() == 4 * 5500
    assert len(second) + len(third) == 5500


def test_the_memory_of_an_update_is_the_same_at_every_run():
    import bench_looks

    work = rollouts(steps=2)
    once, again = (bench_looks.update_bytes(work, ("grpo", {})) for _ in range(2))
    assert once == again > 4 * sum(p.numel() for p in work.shape.model().parameters())  # at least the gradients


def test_a_cell_in_half_precision_gives_a_complete_record(monkeypatch):
    # The cells of a GPU go the same way, with more layers.
    import bench_cells
    import bench_looks
    import bench_matrix

    monkeypatch.setattr(bench_looks, "same_gradients", lambda work: {"checked elsewhere": 0.0})
    shape = tiny(tied=True, dtype=torch.bfloat16)
    cell = bench_cells.against_grpo("small", rollouts(shape=shape, steps=2), 1.5)
    found = json.loads(json.dumps(bench_matrix.measured(cell, pairs=2)))
    for arm in found["arms"].values():
        assert {"step", "generation", "scoring", "update"} == arm["seconds"].keys() == arm["of_roof"].keys()
        assert min(arm["flops"].values()) > 0
        assert arm["flops"]["step"] == pytest.approx(sum(arm["flops"].values()) / 2) and arm["length"] == 8
        assert arm["tokens_per_second"].keys() == {"generation", "update"}
    assert found["time"][0]["at_least"] == 1.5 and found["time"][0]["met"] in ("met", "open", "not met")
    assert found["memory"]["met"] in ("met", "not met")
    shown = Console(file=StringIO(), width=120)
    shown.print(bench_matrix.table({"cells": {"x": found}}))
    assert ">= 1.5" in shown.file.getvalue() and "mean length 8.0" in bench_matrix.details(found)[0]


@pytest.mark.parametrize(
    ("figure", "high", "least", "word"), [(1.8, 1.9, 1.8, "met"), (1.7, 1.9, 1.8, "open"), (1.7, 1.75, 1.8, "not met")]
)
def test_a_bar_is_met_open_or_not_met(figure, high, least, word):
    import bench_matrix

    assert bench_matrix.verdict(figure, high, least) == word


def test_arms_whose_lengths_differ_are_refused():
    import bench_matrix

    fixed, spread = rollouts(), rollouts(completion=64, shortest=16)
    bench_matrix.require_same_lengths(fixed, {"ours": 8.0, "TRL": 8.0}, pairs=5)
    bench_matrix.require_same_lengths(spread, {"ours": 40.0, "TRL": 44.0}, pairs=5)
    with pytest.raises(RuntimeError, match="lengths"):
        bench_matrix.require_same_lengths(fixed, {"ours": 8.0, "TRL": 7.9}, pairs=5)
    with pytest.raises(RuntimeError, match="lengths"):
        bench_matrix.require_same_lengths(spread, {"ours": 40.0, "TRL": 60.0}, pairs=5)


def test_demonstrations_have_the_lengths_that_are_named():
    from bench_cells import Demonstrations

    work = Demonstrations(rows=32, batch=4, shape=tiny())
    rows = work.build("sft").train_dataset["input_ids"]
    assert sorted(len(ids) for ids in rows) == sorted(work.lengths())
    assert (work.warm_up, work.steps) == (1, 9)
    assert (Demonstrations(rows=32, batch=4, epochs=2).warm_up, Demonstrations(rows=32, batch=4, epochs=2).steps) == (
        8,
        16,
    )


def test_the_share_of_probes_is_that_of_training_without_the_bank():
    import bench_support

    few = ["--max_steps", "2", "--probe_rows", "1", "--prompt_rows", "32", "--support_reference_draws", "8"]
    found = bench_support.of_run(*few, "--support_draws", "4")
    assert found["share"] == found["seconds"] / found["run_seconds"] < 1
    assert min(found["seconds"], found["bank_seconds"], found["shown_seconds"]) > 0
    with pytest.raises(RuntimeError, match="no room"):
        bench_support.require_on({"off": "no room"})
