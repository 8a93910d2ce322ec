"""l = log pi - log reference of each demonstration in a batch, with the reference's part from the cache."""

import hashlib
import itertools
import json
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from trl.trainer.utils import use_adapter

from fe_posttrain.training import reference
from fe_posttrain.training.reference_cache import ReferenceCache, cache_file

_NAMES_ONLY = ("_name_or_path", "transformers_version")  # of a model's config: they change nothing that it computes


@dataclass(frozen=True)
class Demonstrated:
    """The demonstrations of a collated batch, in the order of their tokens: padded rows, or stretches of a flat one.

    `rows`: token ids and labels of each as bytes; `tokens` (sequences,): how many of each are trained. Those without
    a trained token are left out.
    """

    rows: list[bytes]
    tokens: list[int]

    @classmethod
    def of(cls, inputs: dict[str, Tensor]) -> "Demonstrated":
        ids, labels = (inputs[key].cpu().numpy().astype("<i4") for key in ("input_ids", "labels"))
        if "cu_seq_lens_q" in inputs:
            ends = inputs["cu_seq_lens_q"].tolist()
            places = [(0, start, end) for start, end in itertools.pairwise(ends)]
        else:
            places = [(row, 0, end) for row, end in enumerate(inputs["attention_mask"].sum(1).tolist())]
        rows, tokens = [], []
        for row, start, end in places:
            targets = labels[row, start + 1 : end]  # the first token is nobody's next one
            if count := int(np.count_nonzero(targets != -100)):
                rows.append(ids[row, start:end].tobytes() + targets.tobytes())
                tokens.append(count)
        return cls(rows, tokens)


@dataclass(frozen=True)
class ReferenceLogProbs:
    """`log_probs` (tokens,) under the reference where `trained` (rows, T - 1) is true; `tokens` of each sequence."""

    log_probs: Tensor
    trained: Tensor
    tokens: list[int]


class LogRatios:
    """Compares the policy of a trainer with its reference on demonstrations, at temperature 1.

    The reference scores a demonstration once; from then on its log-probs come from disk. Without a cache
    (`reference_cache_mib: 0`, a reference that moves, sharded weights) it scores every batch.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self._cache: ReferenceCache | None = None
        self._checked = False
        if trainer.args.reference_cache_mib and (fingerprint := trainer._reference_fingerprint()):
            self._name = self._named(fingerprint)
            self._cache = ReferenceCache(cache_file(), trainer.args.reference_cache_mib)

    def _named(self, fingerprint: str) -> bytes:
        """What decides the reference's log-probs of given tokens: weights, architecture, precision."""
        trainer = self.trainer
        config = trainer.accelerator.unwrap_model(trainer.model).config.to_dict()
        config = {key: value for key, value in config.items() if key not in _NAMES_ONLY}
        parts = [fingerprint, json.dumps(config, sort_keys=True, default=str), trainer.accelerator.mixed_precision]
        return hashlib.blake2b("\n".join(parts).encode(), digest_size=32).digest()

    def reference_of(self, inputs: dict[str, Tensor]) -> "ReferenceLogProbs":
        """Log-probs of a batch under the reference: kept ones where all of them are, else by its own forward.

        Args:
            inputs: a batch of SFTTrainer's collator, on the device.

        Raises:
            ValueError: the cache cannot be used.
        """
        found, trained = Demonstrated.of(inputs), inputs["labels"][:, 1:] != -100
        keys, known = [], {}
        if self._cache is not None:
            keys = [ReferenceCache.key_of(self._name, row) for row in found.rows]
            known = self._cache.read(keys)
            if keys and all(key in known for key in keys):
                kept = torch.from_numpy(np.concatenate([known[key] for key in keys]))
                return ReferenceLogProbs(kept.to(trained.device), trained, found.tokens)
        scored = self._score(inputs)[trained].float()
        if keys:
            parts = scored.cpu().split(found.tokens)
            self._cache.write({k: part.numpy() for k, part in zip(keys, parts, strict=True) if k not in known})
        return ReferenceLogProbs(scored, trained, found.tokens)

    def _score(self, inputs: dict[str, Tensor]) -> Tensor:
        """(rows, T - 1) by the forward of the loss, without dropout and gradients."""
        with torch.no_grad(), self._at_reference() as model:
            return model(**inputs, use_cache=False, fused_lm_head=True).log_probs

    @contextmanager
    def _at_reference(self):
        """The reference: a model of its own, or the policy with its adapter off."""
        trainer = self.trainer
        if trainer.ref_model is not None:
            yield trainer.ref_model
            return
        policy = trainer.accelerator.unwrap_model(trainer.model)
        training = policy.training
        policy.eval()
        try:
            with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
                yield trainer.model
        finally:
            policy.train(training)

    def of(self, log_reference: "ReferenceLogProbs", log_policy: Tensor) -> Tensor:
        """l of each demonstration of a batch with trained tokens, (sequences,), nats; its gradient is the policy's.

        Args:
            log_reference: of the same batch.
            log_policy: (rows, T - 1) log pi of the labels after the first position.

        Raises:
            ValueError: the policy is not the reference before the first update.
        """
        ratio = log_policy[log_reference.trained].float() - log_reference.log_probs
        if not self._checked:
            self._checked = True
            if self.trainer.state.global_step == 0:
                low_precision = reference.low_precision(self.trainer)
                reference.check_starts_at_reference(ratio.detach(), torch.ones_like(ratio), low_precision)
        tokens = torch.tensor(log_reference.tokens, dtype=torch.long, device=ratio.device)
        sequence = torch.repeat_interleave(torch.arange(len(tokens), device=ratio.device), tokens)
        return ratio.new_zeros(len(tokens)).index_add(0, sequence, ratio)
