"""Draws of probe prompts: the same completions whatever the number of processes, training's random state untouched."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.models import can_sample, evaluating
from fe_posttrain.sequences.sampling import sample
from fe_posttrain.sequences.scoring import score

_LOGITS_AT_ONCE = 2**28  # a GiB of float32


@dataclass(frozen=True)
class Drawn:
    """n completions. `row` (n,): index of the prompt; `log_probs` (n,): ln q under the law they were drawn from."""

    row: np.ndarray
    completion_ids: list[list[int]]
    log_probs: np.ndarray
    completions: list


class Drawing:
    """Draws and scores completions of a fixed list of prompts.

    Work is cut into batches, each with a random seed of its own; processes take them in turn and share the results,
    so that one process and several draw the same completions.

    Args:
        prompts: plain or conversational.
        tokenize: prompts -> token ids.
        decode: completion ids -> texts.
        unk_token_id: what stands for symbols that the tokenizer lacks.
        batch_size: completions that are drawn at once, and scored where their logits are few enough.
    """

    def __init__(
        self,
        prompts: Sequence,
        decoding: Decoding,
        tokenize: Callable[[list], list[list[int]]],
        decode: Callable[[list[list[int]]], list[str]],
        *,
        eos_token_ids: list[int],
        pad_token_id: int,
        unk_token_id: int | None = None,
        batch_size: int = 1024,
    ):
        self.unk_token_id = unk_token_id
        self.prompts, self.decoding = list(prompts), decoding
        self.tokenize, self.decode = tokenize, decode
        self.eos_token_ids, self.pad_token_id, self.batch_size = eos_token_ids, pad_token_id, batch_size
        self._prompt_ids: list[list[int]] | None = None

    @property
    def prompt_ids(self) -> list[list[int]]:
        if self._prompt_ids is None:
            self._prompt_ids = self.tokenize(self.prompts)
        return self._prompt_ids

    def draw(self, model, rows: Sequence[int], *seed: object) -> Drawn:
        """One completion of the prompt at each index of `rows`, repeats adjoining.

        Args:
            model: unwrapped; its mode and the random state are left as they were.
            seed: what the draws are to depend on, beside the batch.

        Raises:
            ValueError: a model whose layers keep no plain cache.
        """
        if not can_sample(model):
            raise ValueError(
                "support: probes need a decoder with a plain key-value cache; this model's layers keep another kind; "
                "write support: false"
            )

        def one(batch: np.ndarray, number: int) -> list:
            torch.manual_seed(_seed(*seed, number))
            ids, log_probs, _ = sample(
                model,
                [self.prompt_ids[i] for i in batch],
                self.decoding,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self.pad_token_id,
            )
            return list(zip(ids, map(sum, log_probs), strict=True))

        rows = np.asarray(rows, dtype=np.int64)
        pairs = self._shared(model, rows, one)
        ids = [found for found, _ in pairs]
        return Drawn(rows, ids, np.array([total for _, total in pairs]), self.completions(rows, ids))

    def log_probs(self, model, rows: Sequence[int], completion_ids: Sequence[list[int]]) -> np.ndarray:
        """ln p (n,) of given completions of the prompts at `rows` under `model`, at the decoding's temperature.

        Untruncated: where the decoding truncates, this is the law that the ledger's bound is about.
        """

        longest = max(map(len, completion_ids), default=1)
        at_once = max(1, _LOGITS_AT_ONCE // (longest * model.config.get_text_config().vocab_size))

        def one(batch: np.ndarray, number: int) -> list:
            found, _ = score(
                model,
                [self.prompt_ids[rows[i]] for i in batch],
                [completion_ids[i] for i in batch],
                pad_token_id=self.pad_token_id,
                temperature=self.decoding.temperature,
                batch_size=min(self.batch_size, at_once),
            )
            return found.double().sum(1).tolist()

        return np.array(self._shared(model, np.arange(len(rows)), one))

    def completions(self, rows: Sequence[int], completion_ids: list[list[int]]) -> list:
        """Texts, or assistant messages where the prompt is conversational."""
        texts = self.decode(completion_ids) if completion_ids else []
        return [
            text if isinstance(self.prompts[row], str) else [{"role": "assistant", "content": text}]
            for row, text in zip(rows, texts, strict=True)
        ]

    def cannot_write(self, text: str) -> bool:
        """Whether the decoding gives `text` probability 0: it is longer than allowed, or holds unknown symbols."""
        ids = self.tokenize([text])[0]
        return len(ids) > self.decoding.max_new_tokens or (self.unk_token_id is not None and self.unk_token_id in ids)

    def _shared(self, model, items: np.ndarray, one: Callable[[np.ndarray, int], list]) -> list:
        """`one` of every batch of `items`, batches dealt to the processes; all of them get everything, or an error."""
        state = PartialState()
        batches = [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
        with evaluating(model), leaving_random_state(next(model.parameters()).device), torch.no_grad():
            found = together(
                lambda: [
                    (number, one(batch, number))
                    for number, batch in enumerate(batches)
                    if number % state.num_processes == state.process_index
                ]
            )
        return [value for _, values in sorted(found, key=lambda pair: pair[0]) for value in values]


def together(work: Callable[[], list]) -> list:
    """The lists of all processes, joined; where `work` fails on any of them, an error on all.

    Raises:
        RuntimeError: with the first error's words.
    """
    error, found = None, []
    try:
        found = work()
    except Exception as caught:  # told to all processes below, none of which may wait for this one
        error = f"{type(caught).__name__}: {caught}"
        if PartialState().num_processes == 1:
            raise
    if PartialState().num_processes == 1:
        return found
    errors = [text for text in gather_object([error]) if text]
    if errors:
        raise RuntimeError(errors[0])
    return gather_object(found)


@contextmanager
def leaving_random_state(device: torch.device) -> Iterator[None]:
    """Afterwards torch, NumPy and Python draw as if nothing had happened inside."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "little")
