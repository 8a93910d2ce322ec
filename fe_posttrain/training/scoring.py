"""Log-probs of rollouts under policy and reference: each prompt forwarded once, no padding that can be trimmed, no
backward through rows without gradient.

TRL asks for every log-prob through one method; it is answered here. Where prompts cannot be shared TRL's own forward
answers, on rows trimmed to the longest of the batch.
"""

import logging
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.functional import pad
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from fe_posttrain.sequences.models import can_sample
from fe_posttrain.sequences.prompts import Groups, SharedPrompts, call_in_tokens, chunks_by_length, without_padding
from fe_posttrain.training import reference
from fe_posttrain.training.as_sft import RunsAsSFT

logger = logging.getLogger(__name__)


class ScoresRollouts(RunsAsSFT):
    """Answers `_get_per_token_logps_and_entropies` by groups, and keeps groups whole between rollout and loss."""

    def _set_up_scoring(self) -> None:
        args = self.args
        self._inner: dict[int, tuple] = {}
        self._on_log_probs = None
        self._last_log_probs: Tensor | None = None
        self._has_gradient: Tensor | None = None  # rows of the loss at hand whose advantage is not zero
        self._known: tuple[Tensor, Tensor] | None = None  # their log-probs and entropies, where the sampler told them
        wanted = args.share_prompts if args.share_prompts is not None else args.estimator != "trl"
        wanted = wanted and args.generates
        self._trims = args.estimator != "trl"
        why_not = self._cannot_share() if wanted else None
        self._shares_prompts = wanted and why_not is None
        scattered = self._scattered() if self._shares_prompts else None
        self._keeps_groups = self._shares_prompts and scattered is None
        self._compared = not self._shares_prompts
        if reason := why_not or scattered:
            self._say_unshared(reason)

    def _say_unshared(self, reason: str) -> None:
        if self.accelerator.is_main_process:
            logger.warning("share_prompts: %s; every rollout is trained on with a prompt of its own", reason)

    def _cannot_share(self) -> str | None:
        """Why no forward can share prompts, if so."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return "weights are sharded, and every process must make the same forwards"
        if self.aux_loss_enabled:
            return "the balancing loss of experts counts every row's prompt"
        scored = [self.model] if self.ref_model is None else [self.model, self.ref_model]
        if not all(can_sample(self.accelerator.unwrap_model(model)) for model in scored):
            return "the model keeps no plain key-value cache for every layer"
        return None

    def _scattered(self) -> str | None:
        """Why the loss cannot share prompts although the reference can, if so."""
        args = self.args
        if args.gradient_checkpointing:
            return "gradient_checkpointing allows no cache under gradient; write gradient_checkpointing: false"
        if args.per_device_train_batch_size % self.num_generations:
            return (
                f"per_device_train_batch_size: {args.per_device_train_batch_size} holds no whole groups; write a "
                f"multiple of num_generations: {self.num_generations}"
            )
        return None

    def _compare_once(self, batch: dict) -> None:
        """On the first rollouts: share no prompts if a completion is scored otherwise against a cache than whole."""
        if self._compared:
            return
        self._compared = True
        prompt = without_padding(batch["prompt_ids"][:1], batch["prompt_mask"][:1])[0]
        length = int(batch["completion_mask"][0].sum().clamp(min=1))
        ids = torch.cat([prompt, batch["completion_ids"][:1, :length]], dim=1).repeat(2, 1)
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
        ):
            whole = super()._get_per_token_logps_and_entropies(self.model, ids, torch.ones_like(ids), length)[0]
            shared = self._scored_by_prompt(self.model, ids, torch.ones_like(ids), length, 2, False)[0]
        apart = self.accelerator.gather((whole - shared).abs().mean().reshape(1)).max().item()
        if not apart <= reference.rounding(reference.low_precision(self)):
            self._shares_prompts = self._keeps_groups = False
            self._say_unshared(f"against a cache this model gives other log-probs, by {apart:.2g} nats per token")

    def _by_group(self, batch: dict) -> dict:
        """Tensors (B, ...) of a generation batch as (groups, G, ...), so that TRL's shuffle and split move groups."""
        if not self._keeps_groups:
            return batch
        group = self.num_generations
        return {key: x.unflatten(0, (-1, group)) if _has_rows(x) else x for key, x in batch.items()}

    def _by_row(self, batch: dict) -> None:
        """Undo `_by_group` in place; nothing to do for a batch that was never grouped."""
        if batch["completion_ids"].dim() == 3:
            batch.update({key: x.flatten(0, 1) for key, x in batch.items() if _has_rows(x)})

    def _prepare_inputs(self, generation_batch):
        if self.model.training and not self._weights_now.needs_rollouts:  # nothing is taken on rollouts at this step
            self._buffered_inputs = None
            return generation_batch
        step, before = self._step % self.args.steps_per_generation, self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._keeps_groups and self.model.training and self._buffered_inputs is not before:
            self._buffered_inputs = self._sorted(self._buffered_inputs)
            inputs = self._buffered_inputs[step]
        return inputs

    def _sorted(self, batches: list[dict]) -> list[dict]:
        """Micro-batches of one generation, groups sorted by length within each optimizer step: its gradient stays."""
        accumulation = self.args.gradient_accumulation_steps
        window = min(accumulation, len(batches))
        if window == 1 or len(batches) % window or accumulation % window:
            return batches
        found = []
        for start in range(0, len(batches), window):
            step = batches[start : start + window]
            whole = {key: torch.cat([b[key] for b in step]) if _has_rows(x) else x for key, x in step[0].items()}
            longest = whole["completion_mask"].sum(-1).amax(1) + whole["prompt_mask"].sum(-1)[:, 0]
            order, size = longest.argsort(stable=True), len(longest) // window
            for part in order.split(size):
                found.append({key: x[part] if _has_rows(x) else x for key, x in whole.items()})
        return found

    def _score(self, model, batch: dict) -> Tensor:
        """Log-probs (B, T) of the batch's completions under `model`, by the forward that the loss uses; no grad."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        if self.model.training:
            self._account.add(forward_tokens=batch["completion_mask"].sum())
        with (
            torch.no_grad(),
            self._watching_log_probs(None),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
        ):
            return self._get_per_token_logps_and_entropies(
                model, ids, mask, batch["completion_ids"].size(1), batch_size=self._scoring_batch_size()
            )[0]

    def _scoring_batch_size(self) -> int:
        training = self.model.training
        return self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size

    def _score_reference(self, batch: dict) -> Tensor:
        if self.ref_model is not None:
            return self._score(self.ref_model, batch)
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return self._score(self.model, batch)

    @contextmanager
    def _watching_log_probs(self, watcher):
        """Hand the policy's log-probs, with their graph, to `watcher` after the loss's forward and before TRL uses the
        batch."""
        before, self._on_log_probs = self._on_log_probs, watcher
        try:
            yield
        finally:
            self._on_log_probs = before

    @contextmanager
    def _without_idle(self, batch: dict, has_gradient: Tensor | None):
        """Inside, the loss's forward leaves out the rows that are False in `has_gradient` (B,)."""
        self._has_gradient = has_gradient
        if "sampling_entropies" in batch:  # drawn by the policy as it is
            self._known = batch["sampling_per_token_logps"], batch["sampling_entropies"]
        try:
            yield
        finally:
            self._has_gradient = self._known = None

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **kwargs
    ):
        if self._shares_prompts and (self._keeps_groups or not torch.is_grad_enabled()):
            scored = self._scored_by_prompt(
                model, input_ids, attention_mask, logits_to_keep, batch_size or len(input_ids), compute_entropy
            )
        elif self._trims:
            scored = self._scored_trimmed(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        else:
            scored = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        self._last_log_probs = scored[0].detach()
        if self._on_log_probs is not None:
            self._on_log_probs(scored[0])
        return scored

    def _scored_trimmed(self, model, input_ids, attention_mask, width, *args, **kwargs):
        """TRL's forward, without the columns on the right that are padding in every row.

        Those on the left stay: it counts positions from the first column, and they must be the same in every batch.
        """
        cut = min(width - 1, int(attention_mask.any(0).flip(0).int().argmax()))
        stop = input_ids.shape[1] - cut
        log_probs, entropy, aux = super()._get_per_token_logps_and_entropies(
            model, input_ids[:, :stop], attention_mask[:, :stop], width - cut, *args, **kwargs
        )
        return pad(log_probs, (0, cut)), None if entropy is None else pad(entropy, (0, cut)), aux

    def _scored_by_prompt(self, model, input_ids, attention_mask, width, batch_size: int, compute_entropy: bool):
        """What TRL's forward gives, each prompt of consecutive rows forwarded once."""
        batch = (input_ids[:, :-width], attention_mask[:, :-width], input_ids[:, -width:], attention_mask[:, -width:])
        found = [self._scored_groups(model, part) for part in zip(*(x.split(batch_size) for x in batch), strict=True)]
        log_probs = torch.cat([part[0] for part in found])
        return log_probs, torch.cat([part[1] for part in found]) if compute_entropy else None, None

    def _scored_groups(self, model, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        """Log-probs (B, T) of one batch's rows, zero where masked, and entropies where the model's head gives them.

        Args:
            batch: prompts and their mask (B, P), completions and their mask (B, T).
        """
        lengths = batch[3].sum(1).clamp(min=1).tolist()
        moved, idle = self._by_gradient(lengths)
        found = []
        if idle and self._known is not None:
            found.append((idle, *(x[idle] for x in self._known)))
        elif idle:
            found += self._forwards(model, batch, idle, lengths, graph=False)
        found += self._forwards(model, batch, moved, lengths, graph=True)
        if len(found) == 1:
            return found[0][1:]
        order = torch.tensor([row for rows, _, _ in found for row in rows], device=batch[3].device).argsort()
        log_probs = torch.cat([part[1] for part in found])[order]
        return log_probs, None if found[0][2] is None else torch.cat([part[2] for part in found])[order]

    def _by_gradient(self, lengths: list[int]) -> tuple[list[int], list[int]]:
        """Rows to forward with a graph, and rows without gradient; one at least keeps it: the loss has a backward."""
        rows = list(range(len(lengths)))
        if self._has_gradient is None or not torch.is_grad_enabled():
            return rows, []
        moved = self._has_gradient.tolist()
        if not any(moved):
            moved[min(rows, key=lengths.__getitem__)] = True
        return [row for row in rows if moved[row]], [row for row in rows if not moved[row]]

    def _unwrapped(self, model):
        """`model` without what DDP and torch.compile put around it; looked for once."""
        if id(model) not in self._inner:
            self._inner[id(model)] = (model, self.accelerator.unwrap_model(model))
        return self._inner[id(model)][1]

    def _forwards(self, model, batch: tuple[Tensor, ...], rows: list[int], lengths: list[int], graph: bool) -> list:
        """(rows, log-probs, entropies or None) of each forward over `rows`, as wide as the batch.

        Rows are dealt into forwards of similar length. In several processes the last one alone goes through the
        wrapper that synchronises them: each process makes one such call, however many forwards its rows need.
        """
        prompts, prompt_mask, completions, mask = batch
        inner, found = self._unwrapped(model), []
        chunks = chunks_by_length([lengths[row] for row in rows], call_in_tokens(mask.device))
        with nullcontext() if graph else torch.no_grad(), self.accelerator.autocast():
            groups = Groups.of(prompts[rows], prompt_mask[rows])
            first = groups.first.new_tensor(rows)[groups.first]
            shared = SharedPrompts(inner, *without_padding(prompts[first], prompt_mask[first]))
            for number, chunk in enumerate(chunks, start=1):
                part = [rows[i] for i in chunk]
                longest = max(lengths[row] for row in part)
                targets = completions[part, :longest]
                called = model if graph and number == len(chunks) else inner
                out = called(
                    **shared.inputs(groups.owner[chunk], targets),
                    shift_labels=targets.masked_fill(mask[part, :longest] == 0, -100),
                    fused_lm_head=True,
                )
                room = (0, mask.shape[1] - longest)
                found.append((part, *(None if x is None else pad(x, room) for x in (out.log_probs, out.entropy))))
        return found


def _has_rows(value) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
