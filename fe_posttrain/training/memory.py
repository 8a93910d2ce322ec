"""How many steps a run takes and what it holds in memory, reckoned from its settings before it starts."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import is_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as VOCABULARY_CHUNK

from fe_posttrain.training.config import FreeEnergyConfig


@dataclass(frozen=True)
class Steps:
    """`total` optimizer steps, in each of which all processes read `rows` rows; `epochs` passes over the data."""

    total: int
    rows: int
    epochs: float


def count_steps(args: FreeEnergyConfig, rows: int) -> Steps:
    """Optimizer steps of a run, as the Trainer counts them.

    Args:
        rows: prompts of a run that rolls out, prepared (packed) demonstrations of pure SFT.
    """
    size, processes, accumulation = args.per_device_train_batch_size, args.world_size, args.gradient_accumulation_steps
    if args.is_sft:
        batches = rows // size if args.dataloader_drop_last else math.ceil(rows / size)
        micro_batches = math.ceil(batches / processes)
    else:  # whole generation batches; each is used num_iterations times
        generations = rows // (args.generation_batch_size // args.num_generations)
        micro_batches = generations * args.num_iterations * args.steps_per_generation
    per_epoch = max(1, math.ceil(micro_batches / accumulation))
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    return Steps(total, size * processes * accumulation, total / per_epoch)


@dataclass(frozen=True)
class Part:
    """One part of what a process holds: `size` in bytes, and how that was reckoned."""

    name: str
    size: int
    how: str


def estimate_memory(args: FreeEnergyConfig, model, prompt: int, demonstration: int) -> list[Part]:
    """What one process holds, as an upper estimate: everything at once, no sharding.

    Args:
        model: the policy as it is trained, with its adapter if it has one; may be on the CPU or on meta.
        prompt, demonstration: longest of each, in tokens; 0: none.

    Not counted: activations, buffers of the libraries, fragmentation.
    """
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    dtypes = "+".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters}))
    weights, gradients = _bytes(parameters), _bytes(trained)
    parts = [
        Part("weights", weights, f"{sum(p.numel() for p in parameters):,} parameters, {dtypes}"),
        Part("gradients", gradients, f"{sum(p.numel() for p in trained):,} trained parameters, the same type"),
    ]
    if args.world_size > 1:
        parts.append(Part("gradient buckets", gradients, "DDP's copy of the gradients"))
    if "adamw_torch" in args.optim:
        parts.append(Part("AdamW", 2 * gradients, "two moments a trained parameter, the same type"))
    if args.failure_buffer:
        parts.append(Part("failure buffer", 2 * gradients, "two moments of an AdamW of its own"))
    parts += _reference(args, model, weights, gradients)
    config = model.config.get_text_config()
    rows, completion = args.per_device_train_batch_size, args.max_completion_length if args.generates else 0
    longest = max(prompt + completion, demonstration)
    half = args.bf16 or args.fp16
    size = 2 if half else parameters[0].element_size()
    tokens = min(rows * longest, TOKEN_CHUNK_SIZE)
    how = f"{tokens:,} tokens x {VOCABULARY_CHUNK:,}: a tile of TRL's fused head, x {size} bytes"
    parts.append(Part("logits", tokens * VOCABULARY_CHUNK * size, how))
    head = model.get_output_embeddings().weight
    if head.requires_grad:
        parts.append(Part("head gradient", head.numel() * 4, "of the fused head, float32"))
    if args.generates and not args.use_vllm:
        drawn = rows * args.steps_per_generation
        how = f"{drawn:,} completions x {config.vocab_size:,} next tokens x 12 bytes"
        parts.append(Part("sampling", drawn * config.vocab_size * 12, how))
        parts += _cache(config, drawn, prompt + completion, size)
    return parts


def _reference(args: FreeEnergyConfig, model, weights: int, trained: int) -> list[Part]:
    if not args.uses_reference:
        return []
    if name := args.reference_model_name_or_path:
        config = AutoConfig.from_pretrained(name, trust_remote_code=args.trust_remote_code)
        with torch.device("meta"):
            teacher = AutoModelForCausalLM.from_config(
                config, dtype=model.dtype, trust_remote_code=args.trust_remote_code
            )
        return [Part("reference", _bytes(list(teacher.parameters())), f"{Path(name).name}, a model of its own")]
    if not is_peft_model(model):
        return [Part("reference", weights, "a snapshot of the weights")]
    return [Part("reference", trained, "a second adapter, for reference_resets")] if args.reference_resets else []


def not_counted(args: FreeEnergyConfig) -> list[str]:
    """What `estimate_memory` leaves out, in words."""
    left_out = ["activations", "buffers of the libraries", "fragmentation"]
    if "adamw_torch" not in args.optim:
        left_out.append(f"state of optim: {args.optim.value}")
    if args.use_vllm:
        left_out.append("vLLM")
    return left_out


def _bytes(parameters: list) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _cache(config, rows: int, tokens: int, size: int) -> list[Part]:
    """Keys and values while sampling; none for models without attention heads."""
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return []
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    heads = getattr(config, "num_key_value_heads", None) or heads
    layers = config.num_hidden_layers
    how = f"2 x {layers} layers x {heads} heads x {head} x {rows:,} completions x {tokens:,} tokens x {size} bytes"
    return [Part("KV cache", 2 * layers * heads * head * rows * tokens * size, how)]
