"""What one step does, whatever time it takes: its gradient, its floating-point operations, the memory of its update."""

import contextlib
import os
import random

import torch
from bench_arms import GPU, OURS, Phases, mark, seconds
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import TrainerCallback

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.sampling import sample

TOLERANCE = 1e-5
aten = torch.ops.aten


def fixed_rollouts(prompts: list, trainer) -> dict[str, list]:
    """TRL's `rollout_func`: completions of the model, cut at random lengths; the same in every arm."""
    rng, longest = random.Random(0), trainer.args.max_completion_length
    ids, tokenizer = trainer._tokenize_prompts(prompts)[0], trainer._tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = sample(
            trainer.model,
            ids,
            Decoding(longest),
            eos_token_ids=[tokenizer.eos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
    cuts = [rng.randint(longest // 4, longest) for _ in ids]
    completions, log_probs = ([row[:cut] for row, cut in zip(rows, cuts, strict=True)] for rows in drawn[:2])
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": log_probs}


class _Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients(work, kind: str, **settings) -> dict[str, torch.Tensor]:
    """The gradient of the first step, not clipped, on `fixed_rollouts`."""
    kept = _Gradients()
    trainer = work.build(kind, rollout_func=fixed_rollouts, max_grad_norm=0.0, **settings | {"max_steps": 1})
    trainer.add_callback(kept)
    trainer.train()
    return kept.found


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """max |found - expected| / max |expected| of the parameter where it is largest; infinite where one has none."""
    if found.keys() != expected.keys():
        return float("inf")
    return torch.stack([(found[name] - g).abs().max() / g.abs().max() for name, g in expected.items()]).max().item()


def same_gradients(work) -> dict[str, float]:
    """How far prompts that are shared move the gradient: ours against itself, and TRL's step by us against TRL's.

    Raises:
        RuntimeError: by more than `TOLERANCE`.
    """
    trl = {"estimator": "trl", "share_prompts": True}
    pairs = {
        "ours, prompts shared or not": ((OURS, {"share_prompts": True}), (OURS, {"share_prompts": False})),
        "estimator trl, prompts shared, or TRL": ((OURS, trl), ("grpo", {})),
    }
    found = {}
    for name, ((kind, settings), (other, theirs)) in pairs.items():
        found[name] = difference(gradients(work, kind, **settings), gradients(work, other, **theirs))
        if not found[name] <= TOLERANCE:
            raise RuntimeError(f"{name}: gradients differ by {found[name]:.2g}, relative; nothing is timed")
    return found


def flop_counter() -> FlopCounterMode:
    """torch's counter, which does not know the CPU's fused attention, with it."""

    def forward(query, key, value, *args, out_shape=None, **kwargs):
        return sdpa_flop_count(query, key, value)

    def backward(grad, query, key, value, *args, out_shape=None, **kwargs):
        return sdpa_backward_flop_count(grad, query, key, value)

    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def flops(work, arm: tuple[str, dict]) -> dict[str, float]:
    """Floating-point operations of a timed step, by phase: products of matrices and attention, both directions."""
    kind, settings = arm
    counter = flop_counter()
    phases = Phases(
        work.build(kind, **settings),
        work.warm_up,
        work.steps,
        read=counter.get_total_flops,
        between=lambda before, after: after - before,
        start=counter.__enter__,
        stop=lambda: counter.__exit__(None, None, None),
    )
    phases.trainer.train()
    return phases.per_step()


def update_bytes(work, arm: tuple[str, dict]) -> int:
    """How far the tensors' memory rises in an update, its loss forward and backward: the most of the timed ones."""
    kind, settings = arm
    trainer = work.build(kind, **settings)
    forward, backward, peaks = trainer.compute_loss, trainer.accelerator.backward, []
    meter = _PeakOfGPU() if GPU else _PeakOfAllocator()

    def measured_forward(*args, **kwargs):
        if trainer.state.global_step >= work.warm_up:
            meter.start()
        return forward(*args, **kwargs)

    def measured_backward(*args, **kwargs):
        backward(*args, **kwargs)
        if trainer.state.global_step >= work.warm_up:
            peaks.append(meter.stop())

    trainer.compute_loss, trainer.accelerator.backward = measured_forward, measured_backward
    trainer.train()
    return max(peaks)


class _PeakOfGPU:
    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated()

    def stop(self) -> int:
        return torch.cuda.max_memory_allocated() - self.before


class _PeakOfAllocator:
    """Every allocation of torch's CPU allocator, and every release of what was allocated since `start`."""

    def start(self) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        with _silent():
            self.profile.__enter__()

    def stop(self) -> int:
        with _silent():
            self.profile.__exit__(None, None, None)
        level, peak = 0, 0
        events = [e for e in self.profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            level += event.nbytes()
            peak = max(peak, level)
        return peak


@contextlib.contextmanager
def _silent():
    """Without what the profiler's library writes to standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def roof(rows: int, inner: int, columns: int, dtype: torch.dtype, repeats: int = 15) -> float:
    """FLOP/s of the fastest of some products (rows, inner) x (inner, columns) on this device."""
    device = "cuda" if GPU else "cpu"
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
    took = []
    for _ in range(repeats):
        start = mark()
        for _ in range(4):
            torch.mm(a, b)
        took.append(seconds(start, mark()) / 4)
    return 2 * rows * inner * columns / min(took)
