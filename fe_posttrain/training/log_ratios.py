"""l = log pi - log reference of each demonstration in a batch, with the reference's part from the cache."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import is_peft_model
from torch import Tensor

from fe_posttrain.training import reference
from fe_posttrain.training.reference_cache import ReferenceCache, cache_file

_NAMES_ONLY = (  # in the config of a model or an adapter, without effect on what it computes
    "_name_or_path", "transformers_version", "base_model_name_or_path", "peft_version", "inference_mode",
)  # fmt: skip


@dataclass(frozen=True)
class Demonstrated:
    """The demonstrations of a collated batch, in the order of their tokens: padded rows, or stretches of a flat one.

    `rows`: token ids and labels of each as bytes; `tokens`: how many of each are trained. Those without a trained
    token are left out.
    """

    rows: list[bytes]
    tokens: list[int]

    @classmethod
    def of(cls, inputs: dict[str, Tensor]) -> "Demonstrated":
        pairs = torch.stack([inputs["input_ids"], inputs["labels"]], dim=-1).cpu().numpy().astype("<i4")
        if "cu_seq_lens_q" in inputs:
            bounds = inputs["cu_seq_lens_q"].cpu().numpy()
            row, start, end = np.zeros(len(bounds) - 1, dtype=int), bounds[:-1], bounds[1:]
        else:
            end = inputs["attention_mask"].sum(1).cpu().numpy()
            row, start = np.arange(len(end)), np.zeros(len(end), dtype=int)
        pairs[row, start, 1] = -100  # the first token is nobody's next one
        before = np.zeros((pairs.shape[0], pairs.shape[1] + 1), dtype=int)  # trained tokens before each position
        np.cumsum(pairs[..., 1] != -100, axis=1, out=before[:, 1:])
        tokens = before[row, end] - before[row, start]
        has_some = tokens > 0
        places = zip(*(x[has_some].tolist() for x in (row, start, end)), strict=True)
        return cls([pairs[i, first:last].tobytes() for i, first, last in places], tokens[has_some].tolist())


class LogRatios:
    """Compares the policy of a trainer with its reference on demonstrations, at temperature 1.

    The reference scores a demonstration once; from then on its log-probs come from disk. Without a cache
    (`reference_cache_mib: 0`, a reference that moves or is reset, sharded weights) it scores every batch.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._cache: ReferenceCache | None = None
        self._checked: int | None = -1  # which reference: its `taken_at`
        size = 0 if trainer.args.reference_resets else trainer.args.reference_cache_mib
        if size and (fingerprint := trainer._reference_fingerprint()):
            self._name = self._named(fingerprint)
            self._cache = ReferenceCache(cache_file(), size)

    def _named(self, fingerprint: str) -> bytes:
        """What decides the reference's log-probs of given tokens: weights, architecture, precision."""
        trainer = self.trainer
        policy = trainer.accelerator.unwrap_model(trainer.model)
        teacher = trainer.args.reference_model_name_or_path is not None
        configs = [(trainer._bare_reference() if teacher else policy).config.to_dict()]
        if is_peft_model(policy) and "ref" in policy.peft_config:  # how strongly it counts is not in its weights
            configs.append(policy.peft_config["ref"].to_dict())
        configs = [{key: value for key, value in each.items() if key not in _NAMES_ONLY} for each in configs]
        described = json.dumps(configs, sort_keys=True, default=lambda x: sorted(x) if isinstance(x, set) else str(x))
        parts = [fingerprint, described, trainer.accelerator.mixed_precision]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=32).digest()

    def reference_of(self, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probs of a batch under the reference: kept ones where all of them are, else by its own forward.

        Args:
            inputs: a batch of SFTTrainer's collator, on the device.

        Returns:
            (rows, T - 1), of the labels after the first position, zero where they are -100.

        Raises:
            ValueError: the cache cannot be used.
        """
        if self._cache is None:
            return self._score(inputs)
        found, trained = Demonstrated.of(inputs), inputs["labels"][:, 1:] != -100
        keys = [ReferenceCache.key_of(self._name, row) for row in found.rows]
        known = self._cache.read(keys)
        if all(key in known for key in keys):
            kept = np.frombuffer(b"".join([known[key] for key in keys]), dtype="<f4").copy()
            apart = torch.zeros(trained.shape, device=trained.device)
            return apart.masked_scatter_(trained, torch.from_numpy(kept).to(trained.device))
        scored = self._score(inputs)
        parts = [part.numpy().astype("<f4").tobytes() for part in scored[trained].cpu().split(found.tokens)]
        self._cache.write({key: part for key, part in zip(keys, parts, strict=True) if key not in known})
        return scored

    def _score(self, inputs: dict[str, Tensor]) -> Tensor:
        """(rows, T - 1) by the forward of the loss, without dropout and gradients."""
        with torch.no_grad(), reference.scoring(self.trainer) as model:
            return model(**inputs, use_cache=False, fused_lm_head=True).log_probs.float()

    def of(self, inputs: dict[str, Tensor], log_reference: Tensor, log_policy: Tensor) -> Tensor:
        """l of each sequence of a batch, (sequences,), nats; its gradient is the policy's.

        Args:
            inputs: the batch: padded rows are sequences, and so are the stretches of a flat one.
            log_reference, log_policy: (rows, T - 1), zero where nothing is trained.

        Raises:
            ValueError: the policy is not the reference before the first update.
        """
        ratio = log_policy.float() - log_reference
        taken_at = self.trainer._resets.taken_at
        if self._checked != taken_at:
            self._checked = taken_at
            if self.trainer.state.global_step == taken_at:
                low_precision = reference.low_precision(self.trainer)
                reference.check_starts_at_reference(ratio.detach(), inputs["labels"][:, 1:] != -100, low_precision)
        if "seq_idx" not in inputs:
            return ratio.sum(1)
        sequence = inputs["seq_idx"][0]
        return ratio.new_zeros(int(sequence[-1]) + 1).index_add(0, sequence[1:], ratio[0])
