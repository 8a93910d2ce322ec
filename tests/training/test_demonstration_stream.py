"""The mixture's stream of demonstrations: which rows a step reads, and in which micro-batches they lie."""

import pytest
import small
import torch
from datasets import Dataset

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.training.demonstrations import DemonstrationStream

SIZE, ACCUMULATION, ROWS = 3, 4, 96


def rows_of_many_lengths(count: int = ROWS) -> Dataset:
    """Row i is told by its prompt; completions of 1 to 30 tokens."""
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(1, 31, (count,), generator=generator).tolist()
    return Dataset.from_list(
        [{"prompt": f"R{i:05d}", "completion": "1" * length} for i, length in enumerate(lengths)]
    )  # fmt: skip


def stream(folder, rows: Dataset | None = None, **own) -> DemonstrationStream:
    args = FreeEnergyConfig(
        str(folder),
        **{**small.SETTINGS, **small.ROLLOUTS, **own},
        demonstration_energy_weight=1.0,
        per_device_demonstration_batch_size=SIZE,
        gradient_accumulation_steps=ACCUMULATION,
    )
    return DemonstrationStream(rows_of_many_lengths() if rows is None else rows, small.TOKENIZER, args)


def read(stream, step: int, world: int = 1) -> list[list[list[int]]]:
    """Micro-batch -> process -> lengths of its rows; and the first tokens of the rows that the whole step reads."""
    by_rank = [stream.for_step(step, 0, [None] * ACCUMULATION, rank, world) for rank in range(world)]
    return [[batches[micro].inputs for batches in by_rank] for micro in range(ACCUMULATION)]


def lengths(inputs) -> list[int]:
    return inputs["attention_mask"].sum(1).tolist()


def prompts(step_inputs) -> list[tuple]:
    return sorted(tuple(row[:6].tolist()) for micro in step_inputs for inputs in micro for row in inputs["input_ids"])


@pytest.mark.parametrize("world", [1, 2])
def test_a_step_reads_the_rows_of_its_permutation_sorted_by_length(tmp_path, world):
    source, of_step = stream(tmp_path), ACCUMULATION * world * SIZE
    tokenised = small.TOKENIZER(list(rows_of_many_lengths()["prompt"]))["input_ids"]
    for step in (0, ROWS // of_step):  # one of each epoch
        epoch = step * of_step // ROWS
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(small.SETTINGS["seed"] + epoch)).tolist()
        first = step * of_step % ROWS
        found = read(source, step, world)
        assert prompts(found) == sorted(tuple(tokenised[i][:6]) for i in order[first : first + of_step])
        dealt = [length for micro in found for inputs in micro for length in lengths(inputs)]
        assert dealt == sorted(dealt, reverse=True) and len(set(dealt)) > SIZE
        assert read(stream(tmp_path), step, world)[1][0]["input_ids"].equal(found[1][0]["input_ids"])


def test_sorting_takes_padding_away(tmp_path):
    source, sorted_, unsorted = stream(tmp_path), 0, 0
    for step in range(ROWS // (ACCUMULATION * SIZE)):
        found = read(source, step)
        sorted_ += sum(inputs["input_ids"].numel() for micro in found for inputs in micro)
        all_lengths = [length for micro in found for inputs in micro for length in lengths(inputs)]
        mixed = torch.tensor(all_lengths)[torch.randperm(len(all_lengths), generator=torch.Generator().manual_seed(0))]
        unsorted += sum(SIZE * int(part.max()) for part in mixed.split(SIZE))
    assert sorted_ < 0.9 * unsorted


def test_group_by_length_groups_the_whole_epoch_and_depends_on_seed_and_epoch_alone(tmp_path):
    grouped = {"train_sampling_strategy": "group_by_length"}
    rows = rows_of_many_lengths(4 * ROWS)
    source, plain = stream(tmp_path, rows, **grouped), stream(tmp_path, rows)
    steps = 4 * ROWS // (ACCUMULATION * SIZE)

    def spread(which) -> float:
        """Mean over the steps of an epoch of longest less shortest row."""
        found = [[n for m in read(which, step) for inputs in m for n in lengths(inputs)] for step in range(steps)]
        return sum(max(step) - min(step) for step in found) / steps

    assert spread(source) < 0.5 * spread(plain)
    every = [prompt for step in range(steps) for prompt in prompts(read(source, step))]
    assert len(set(every)) == len(every) == 4 * ROWS  # each row once an epoch
    later = read(source, steps + 3)
    assert prompts(later) != prompts(read(source, 3))
    assert prompts(read(stream(tmp_path, rows, **grouped), steps + 3)) == prompts(later)
    assert prompts(read(stream(tmp_path, rows, seed=4, **grouped), 3)) != prompts(read(source, 3))


def test_sorted_packs_keep_the_gradient(tmp_path):
    """A step of three micro-batches of packs against one batch of the same rows without packing."""
    rows, gradients = rows_of_many_lengths(24), []
    for own in ({"packing": True, "max_length": 40}, {}):
        packs = len(stream(tmp_path, rows, **own).rows)
        settings = {
            **small.ROLLOUTS,
            **own,
            "max_steps": 1,
            "beta": 0.0,
            "demonstration_energy_weight": 1.0,
            "per_device_demonstration_batch_size": packs // 3 if own else 24,
            "gradient_accumulation_steps": 3 if own else 1,
            "max_grad_norm": 0.0,
            "loss_divisor": 1.0,
        }
        assert packs % 3 == 0
        record, _ = small.run(
            FreeEnergyTrainer,
            FreeEnergyConfig,
            tmp_path,
            settings=settings,
            model=small.model(),
            reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
            train_dataset=small.prompts(),
            demo_dataset=rows,
        )
        gradients.append(record.gradients[0])
    scale = max(g.abs().max() for g in gradients[1].values())
    for name, wanted in gradients[1].items():
        assert (gradients[0][name] - wanted).abs().max() <= 2e-5 * scale, name
