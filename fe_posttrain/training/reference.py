"""The reference policy: a snapshot of the weights that were passed in, the model with its adapter disabled, or another
model."""

import copy
from contextlib import contextmanager

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers.integrations import is_deepspeed_zero3_enabled
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model, use_adapter

from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.teacher import load_teacher


def snapshot_is_ours(model, args: FreeEnergyConfig, peft_config) -> bool:
    """Whether the reference is a snapshot that we take, or a model that we load, and not an adapter that TRL disables.

    TRL reloads the reference from the path in the model's config, so that a model built or changed in memory
    fails or gets other weights. Under ZeRO-3 the weights are sharded from the start and only TRL's way works.
    """
    if args.reference_model_name_or_path:
        return True
    adapted = peft_config is not None or (not isinstance(model, str) and is_peft_model(model))
    return args.keeps_reference and not adapted and not is_deepspeed_zero3_enabled()


@contextmanager
def without_reload(args: FreeEnergyConfig, active: bool):
    """While GRPOTrainer is constructed, hide the settings that make it load a reference from disk."""
    kept = args.beta, args.sync_ref_model
    if active:
        args.beta, args.sync_ref_model = 0.0, False
    elif args.keeps_reference and args.beta == 0:  # needed later or for demonstrations, TRL must make it as well
        args.beta = 1.0
    try:
        yield
    finally:
        args.beta, args.sync_ref_model = kept


def attach(trainer) -> None:
    """Put the trainer's model as it stands, or the model that is named, into `trainer.ref_model`: frozen, scored as
    TRL scores, on its device."""
    args = trainer.args
    model = load_teacher(trainer) if args.reference_model_name_or_path else copy.deepcopy(trainer.model)
    model.requires_grad_(False).eval()
    vars(model).pop("forward", None)  # the fused head of a copy still closes over the original model
    disable_dropout_in_model(model)
    if args.is_sft:  # demonstrations are scored at temperature 1, as SFTTrainer scores them
        add_fused_lm_head(model)
    else:
        add_fused_lm_head(model, temperature=trainer.temperature, cast_lm_head_to_fp32=args.cast_lm_head_to_fp32)
    if trainer.is_deepspeed_enabled:
        trainer.ref_model = prepare_deepspeed(model, trainer.accelerator)
    elif trainer.is_fsdp_enabled:
        trainer.ref_model = prepare_fsdp(model, trainer.accelerator)
    else:
        trainer.ref_model = trainer.accelerator.prepare_model(model, evaluation_mode=True)
    if args.sync_ref_model:
        trainer.add_callback(SyncRefModelCallback(ref_model=trainer.ref_model, accelerator=trainer.accelerator))


def base_is_kept(trainer) -> bool:
    """Whether the policy that the run starts from stays at hand: in the reference, or beneath a new adapter."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if is_peft_model(policy):
        return trainer._adapter_is_new or ("ref" in policy.peft_config and trainer.args.reference_is_base)
    return trainer.ref_model is not None and trainer.args.reference_is_base


@contextmanager
def in_place(trainer, kept=None):
    """The policy that the run starts from, as an unwrapped model: the policy with `kept` weights (`swapped_in(model)`)
    in the place of its own or, where `base_is_kept`, with its adapter off, or the trainer's reference."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if kept is not None:
        with kept.swapped_in(policy):
            yield policy
    elif is_peft_model(policy):
        with use_adapter(policy, adapter_name=None if trainer._adapter_is_new else "ref"):
            yield policy
    else:
        yield trainer.accelerator.unwrap_model(trainer.ref_model)


@contextmanager
def scoring(trainer):
    """The reference as it is called on demonstrations: a model of its own, or the policy with its adapter off."""
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


def disable_attention_dropout(model) -> None:
    """TRL's `disable_dropout` reaches dropout layers; attention keeps its own rate as a number, set to 0 here."""
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def check_starts_at_reference(log_ratio: Tensor, mask: Tensor, low_precision: bool) -> None:
    """KL(policy || reference) = 0 at step 0, or the run is not the one that was written down.

    Args:
        log_ratio: (N, T) log pi - log reference of the first rollouts, both scored by the same forward.
        mask: (N, T) true on completion tokens.
        low_precision: whether the forward runs in bf16 or fp16.

    Raises:
        ValueError: the mean absolute difference exceeds rounding.
    """
    apart = mean_difference(log_ratio, mask)
    if not apart <= rounding(low_precision):
        raise ValueError(
            f"reference: policy and reference differ by {apart:.3g} nats per token before the first update; the KL "
            "of F must start at 0; pass the model in the state that is to be the reference (an adapter must start "
            "as the identity, dropout must be off, and the model must not change after the trainer is built)"
        )


def mean_difference(log_ratio: Tensor, mask: Tensor) -> float:
    """Mean over tokens of |log-ratio|, nats."""
    return ((log_ratio.abs() * mask).sum() / mask.sum().clamp(min=1)).item()


def rounding(low_precision: bool) -> float:
    """How far two forwards of the same weights may lie apart, nats per token."""
    return 5e-2 if low_precision else 1e-3


def low_precision(trainer) -> bool:
    """Whether the policy's forward rounds to half precision."""
    return trainer.args.bf16 or trainer.args.fp16 or trainer.model.dtype in (torch.bfloat16, torch.float16)
