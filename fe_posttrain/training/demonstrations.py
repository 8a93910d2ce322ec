"""Demonstrations: prepared as SFTTrainer prepares them, and read in an order that depends on the step alone."""

import copy
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pyarrow.compute as pc
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.gates import weighs

PAIRED = "demonstration"  # column of train_dataset that holds a completion for that row's prompt
PAIRED_ROW = "demonstration_row"  # where the prepared one lies; added by us, taken out before rewards see the row


def find(args: FreeEnergyConfig, train_dataset, demo_dataset):
    """The demonstrations of a run, or one message about what is missing or contradicts itself."""
    columns = getattr(train_dataset, "column_names", None) or []
    paired = PAIRED in columns
    if demo_dataset is not None and not args.uses_demonstrations:
        raise ValueError(
            "demonstration_energy_weight: 0 with a demo_dataset; it would never be read; write a positive weight or "
            "leave the demonstrations out"
        )
    if demo_dataset is not None and paired:
        raise ValueError(
            "demo_dataset: given beside a column `demonstration` of train_dataset; a run has one source of "
            "demonstrations; leave one out"
        )
    if demo_dataset is not None and args.gate is not None and weighs(args.gate)[1]:
        raise ValueError(
            f"gate: {args.gate} with demonstrations that are a stream of their own; it weighs each prompt's own one by "
            "what its rollouts achieved; write demonstrations_paired: true, or give train_dataset a column "
            "`demonstration`"
        )
    if demo_dataset is not None and args.failure_buffer:
        raise ValueError(
            "failure_buffer: positive with a demo_dataset; it holds the demonstrations of prompts that failed, and a "
            "stream has none of theirs; give train_dataset a column `demonstration`, or write failure_buffer: 0"
        )
    if args.prefix_share and not paired:
        raise ValueError(
            f"prefix_share: {args.prefix_share} without paired demonstrations; a rollout starts inside that of its own "
            "prompt; give train_dataset a column `demonstration`, or leave it out"
        )
    if not args.is_sft:
        if args.uses_demonstrations and demo_dataset is None and not paired:
            raise ValueError(
                "demo_dataset: missing with demonstration_energy_weight "
                f"{args.demonstration_energy_weight}; pass rows of prompt and completion, or give train_dataset a "
                "column `demonstration`"
            )
        return demo_dataset
    if demo_dataset is None and paired:
        return train_dataset.select_columns(["prompt", PAIRED]).rename_column(PAIRED, "completion")
    demo_dataset = train_dataset if demo_dataset is None else demo_dataset
    if demo_dataset is None:
        raise ValueError("demo_dataset: missing; without reward energy and beta the run is SFT; pass demonstrations")
    return demo_dataset


@dataclass(frozen=True)
class DemonstrationBatch:
    """One micro-batch of demonstrations.

    `inputs`: what the model is called with. `weights` (rows,): what each row's -log pi counts, so that the sum
    over all micro-batches and processes of a step is a mean over that step's demonstrations. `rollouts` (rows,): where
    each row's prompt first stands among this process's rollouts; None for a stream of their own.
    """

    inputs: dict[str, Tensor]
    weights: Tensor
    rollouts: Tensor | None = None

    def gated(self, factors: Tensor | None, first_row: int, group: int) -> "DemonstrationBatch":
        """The same with weights times the factor of each row's group, (groups,); `first_row` of this process."""
        if factors is None or self.rollouts is None:
            return self
        chosen = factors.cpu()[(first_row + self.rollouts) // group]
        return replace(self, weights=self.weights * chosen)

    def without_weightless(self) -> "DemonstrationBatch | None":
        """The rows that count; None where none does."""
        kept = self.weights != 0
        if kept.all():
            return self
        if not kept.any():
            return None
        inputs = {key: value[kept] for key, value in self.inputs.items()}
        return DemonstrationBatch(inputs, self.weights[kept], None if self.rollouts is None else self.rollouts[kept])


def prepare(rows: Dataset | IterableDataset, tokenizer, args: FreeEnergyConfig, *, shuffle: bool):
    """Tokenise, mask, truncate and pack rows of `prompt` and `completion` (or `text`, `messages`) by TRL's own code."""
    sample = next(iter(rows))
    markers = has_generation_markers(tokenizer.chat_template) if args.assistant_only_loss else True
    completion_only = args.completion_only_loss
    if completion_only is None:
        completion_only = "prompt" in sample and "completion" in sample
    preparer = SimpleNamespace(
        _tokenizer=tokenizer,
        chat_template=None if markers else get_training_chat_template(tokenizer),
        completion_only_loss=completion_only,
    )
    settings = copy.copy(args)
    settings.shuffle_dataset = shuffle
    return SFTTrainer._prepare_dataset(preparer, rows, tokenizer, settings, args.packing, None, "demonstration")


def collator(tokenizer, args: FreeEnergyConfig) -> DataCollatorForLanguageModeling:
    """SFTTrainer's collator: padded, or flattened where packing needs it."""
    flattened = args.padding_free or (args.packing and args.packing_strategy in ("bfd", "bfd_split"))
    return DataCollatorForLanguageModeling(
        pad_token_id=tokenizer.pad_token_id,
        padding_free=flattened,
        pad_to_multiple_of=args.pad_to_multiple_of,
    )


def count_sequences(inputs: dict[str, Tensor]) -> int:
    """How many demonstrations of a collated batch have trained tokens; several lie in one row when flattened."""
    trained = inputs["labels"] != -100
    if "seq_idx" in inputs:
        return len(inputs["seq_idx"][trained].unique())
    return int(trained.any(dim=1).sum())


def _model_rows(rows: Dataset) -> Dataset:
    return rows.select_columns([c for c in ("input_ids", "labels", "seq_lengths") if c in rows.column_names])


def _lengths(rows: Dataset) -> list[int]:
    return pc.list_value_length(rows.with_format("arrow")[:]["input_ids"]).to_pylist()


class DemonstrationStream:
    """Demonstrations of their own beside the rollouts: an endless shuffled stream.

    Row k of the stream is row k mod M of permutation k // M, drawn from `seed` and k // M alone: optimizer step t
    reads the same rows whatever happened before it, on any number of processes and after any resume. The permutation
    groups rows of like length under `train_sampling_strategy: group_by_length`. Within a step the longest rows come
    first, so that a micro-batch holds rows of like length and little padding; the step's mean does not depend on it.
    """

    def __init__(self, rows, tokenizer, args: FreeEnergyConfig):
        if not isinstance(rows, Dataset):
            raise ValueError(
                "demo_dataset: an iterable dataset; beside rollouts, demonstrations are read by position; pass a "
                "datasets.Dataset"
            )
        self.rows = _model_rows(prepare(rows, tokenizer, args, shuffle=False))
        packed = "seq_lengths" in self.rows.column_names
        self._sequences = [len(lengths) for lengths in self.rows["seq_lengths"]] if packed else None
        self._lengths = _lengths(self.rows)
        self.collate = collator(tokenizer, args)
        self.batch_size = args.per_device_demonstration_batch_size or args.per_device_train_batch_size
        self.accumulation = args.gradient_accumulation_steps
        self._groups_lengths = args.train_sampling_strategy == "group_by_length"
        self.seed = args.data_seed
        self._permutation: tuple[int, list[int]] = (-1, [])

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.rows))
        if self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._permutation = epoch, self._permuted(generator)
        return self._permutation[1][offset]

    def _permuted(self, generator: torch.Generator) -> list[int]:
        if self._groups_lengths:  # in slices of the size that transformers' own sampler takes
            return get_length_grouped_indices(self._lengths, self.batch_size * self.accumulation, generator=generator)
        return torch.randperm(len(self.rows), generator=generator).tolist()

    def for_step(
        self, step: int, first_micro_step: int, micro_batches: list, rank: int, world: int
    ) -> list[DemonstrationBatch]:
        """This process's micro-batches of optimizer step `step`; each process knows the whole step's rows."""
        size = self.batch_size
        first = step * self.accumulation * world * size
        rows = [self._row(first + i) for i in range(len(micro_batches) * world * size)]
        rows.sort(key=lambda row: -self._lengths[row])
        total = sum(self._sequences[row] for row in rows) if self._sequences else len(rows)
        batches = []
        for micro in range(len(micro_batches)):
            start = (micro * world + rank) * size
            inputs = self.collate([self.rows[row] for row in rows[start : start + size]])
            weights = torch.full((len(inputs["input_ids"]),), 1.0 / total)
            batches.append(DemonstrationBatch(inputs, weights))
        return batches


class PairedDemonstrations:
    """The demonstrations of the very prompts that a step rolls out, from the column `demonstration`.

    Every local row of the generation batch carries its prompt's demonstration with weight 1 / rows, so a prompt
    counts once in all, wherever its group lies. Rows without one (None) count in the divisor and add nothing.
    """

    def __init__(self, rows: Dataset, tokenizer, args: FreeEnergyConfig):
        if args.packing or args.padding_free:
            raise ValueError(
                "packing: on; demonstrations paired with prompts are weighted row by row; write packing: false and "
                "padding_free: false"
            )
        has_one = [i for i, completion in enumerate(rows[PAIRED]) if completion]
        if not has_one:
            raise ValueError("demonstration: empty in every row of train_dataset; give some rows a completion")
        alone = rows.select_columns(["prompt", PAIRED]).rename_column(PAIRED, "completion")
        alone = alone.add_column(PAIRED_ROW, list(range(len(rows)))).select(has_one)
        prepared = prepare(alone, tokenizer, args, shuffle=False)
        self.rows = dict(zip(prepared[PAIRED_ROW], _model_rows(prepared).to_list(), strict=True))
        self.collate = collator(tokenizer, args)
        self.slices = args.steps_per_generation

    def for_step(
        self, step: int, first_micro_step: int, micro_batches: list, rank: int, world: int
    ) -> list[DemonstrationBatch]:
        """This process's micro-batches. Every element of `micro_batches` is the whole generation batch; micro-batch
        k takes the k-th of its slices, as TRL takes rollouts."""
        batches = []
        for micro, rows in enumerate(micro_batches):
            size = len(rows) // self.slices
            part = (first_micro_step + micro) % self.slices
            counts: dict[int, int] = {}
            first: dict[int, int] = {}
            for place, row in enumerate(rows[part * size : (part + 1) * size], start=part * size):
                if row[PAIRED_ROW] in self.rows:
                    counts[row[PAIRED_ROW]] = counts.get(row[PAIRED_ROW], 0) + 1
                    first.setdefault(row[PAIRED_ROW], place)
            if not counts:  # a forward all the same, with weight 0: under DDP every process makes as many
                counts = first = {next(iter(self.rows)): 0}
            total = size * world * len(micro_batches)
            inputs = self.collate([self.rows[key] for key in counts])
            weights = torch.tensor(list(counts.values())) / total
            batches.append(DemonstrationBatch(inputs, weights, torch.tensor(list(first.values()))))
        return batches
