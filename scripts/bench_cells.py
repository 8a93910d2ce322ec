"""What the trainers of scripts/bench.py are compared on: models, data, and the cells of the matrix.

The models of most cells are random Qwen3 ones, made in memory. How long their completions are is set by the logit of
the end token: a function of the position alone, which the model's last hidden layer carries in channel 0 and which
the head reads for that token alone. So it holds wherever the model is called, in `generate`, in our sampler and in
TRL's fused head, and completions are really sampled, with the lengths that a cell names.
"""

import math
import random
import tempfile
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from bench_arms import GPU, OURS, SFT, build, scratch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining import reference_model
from fe_posttrain.tasks.tokenizer import SYMBOLS, build_tokenizer

NEVER, SURELY = -30.0, 30.0  # logits of the end token, beside others of about 0
BETA = 0.04
SPECIAL = 4  # the tokenizer's first symbols
testbed_folder = cache(reference_model)


class PacedModel(Qwen3Model):
    """Qwen3's layers, with `end_logits[position]` in channel 0 of what they return."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        positions = position_ids
        if positions is None:
            rows = input_ids if input_ids is not None else kwargs["inputs_embeds"]
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            positions = torch.arange(past, past + rows.shape[1], device=rows.device)[None]
        out = super().forward(input_ids, attention_mask, position_ids, past_key_values, **kwargs)
        hidden = out.last_hidden_state
        logits = self.end_logits[positions.clamp(max=len(self.end_logits) - 1)].to(hidden.dtype)
        logits = logits[..., None].expand(*hidden.shape[:2], 1)
        out.last_hidden_state = torch.cat([logits, hidden[..., 1:]], dim=-1)
        return out


@dataclass(frozen=True)
class Shape:
    """A random Qwen3 model: a token of its vocabulary is a character."""

    vocab: int = 512
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 768
    tied: bool = False
    dtype: torch.dtype = torch.float32

    def model(self) -> Qwen3ForCausalLM:
        """The same weights at every call."""
        tokenizer = self.tokenizer()
        config = Qwen3Config(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate,
            tie_word_embeddings=self.tied,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng(), torch.device("cuda" if GPU else "cpu"):
            torch.manual_seed(0)
            return Qwen3ForCausalLM(config).to(self.dtype)

    def tokenizer(self):
        return _tokenizer(self.vocab)


@cache
def _tokenizer(vocab: int):
    return build_tokenizer(_symbols(vocab))


def _symbols(vocab: int) -> list[str]:
    """The special symbols, and characters that no text holds."""
    return [*SYMBOLS[:SPECIAL], *(chr(0x20000 + i) for i in range(vocab - SPECIAL))]


def set_lengths(model: Qwen3ForCausalLM, prompt: int, completion: int, shortest: int) -> None:
    """Let the completions of prompts of `prompt` tokens end after `shortest` to `completion` tokens, uniformly.

    They end at token t with hazard 1 / (completion - t + 1), given that they have not ended before; with `shortest`
    equal to `completion` they do not end, and are cut there.
    """
    head, eos = model.get_output_embeddings().weight, model.config.eos_token_id
    # Others' logits are about Normal(0, std^2 (hidden - 1)): the states' mean square is 1.
    others = math.log(model.config.vocab_size - 1) + model.config.initializer_range**2 * (head.shape[1] - 1) / 2
    logits = torch.full((prompt + completion,), NEVER)
    for t in range(shortest, completion if shortest < completion else 0):
        logits[prompt + t - 2] = others - math.log(completion - t)  # ln of hazard over 1 - hazard
    if shortest < completion:
        logits[prompt + completion - 2] = others + SURELY
    model.model.__class__ = PacedModel
    model.model.register_buffer("end_logits", logits.to(head.device), persistent=False)
    with torch.no_grad():
        head[:, 0], head[eos], head[eos, 0] = 0.0, 0.0, 1.0


def even_tokens(completion_ids, **_) -> list[float]:
    """A reward that costs nothing and differs within groups: the share of even tokens."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


@dataclass(frozen=True)
class Rollouts:
    """Groups of completions of random prompts, `batch` completions a step; lengths in tokens."""

    prompt: int
    completion: int
    shortest: int | None = None  # None: all completions are `completion` tokens long
    group: int = 8
    batch: int = 32
    shape: Shape = field(default_factory=Shape)
    steps: int = 3
    warm_up: int = 1

    @property
    def tokens(self) -> dict[str, float]:
        """Tokens of a step that each phase is about."""
        drawn = self.batch * (self.completion + (self.shortest or self.completion)) / 2
        return {"generation": drawn, "update": self.batch * self.prompt + drawn}

    @property
    def in_full_precision(self) -> "Rollouts":
        """What gradients are compared on: the same; of a model in half precision two layers, in float32."""
        if self.shape.dtype == torch.float32:
            return self
        return replace(self, shape=replace(self.shape, layers=2, dtype=torch.float32))

    def build(self, kind: str, **settings):
        """A trainer of this kind on these rollouts."""
        model, rng = self.shape.model(), random.Random(0)
        if "rollout_func" not in settings:
            set_lengths(model, self.prompt, self.completion, self.shortest or self.completion)
        symbols = _symbols(self.shape.vocab)[SPECIAL:]
        rows = ["".join(rng.choices(symbols, k=self.prompt)) for _ in range(4 * self.batch)]
        common = {
            "per_device_train_batch_size": self.batch,
            "num_generations": self.group,
            "max_completion_length": self.completion,
            "beta": BETA,
            "bf16": self.shape.dtype == torch.bfloat16,
            "logging_steps": 1,
            "max_steps": self.steps,
        }
        rows = Dataset.from_dict({"prompt": rows})
        return build(kind, model, self.shape.tokenizer(), rows, even_tokens, **common | settings)


@dataclass(frozen=True)
class Demonstrations:
    """Random demonstrations whose lengths, prompt and completion together, are log-uniform from `shortest` on."""

    shortest: int = 8
    longest: int = 128
    batch: int = 16
    rows: int = 384  # group_by_length sorts a quarter of them at a time
    shape: Shape = field(default_factory=Shape)
    epochs: int = 1

    @property
    def warm_up(self) -> int:
        """One step of the first epoch, or all of it."""
        return 1 if self.epochs == 1 else (self.epochs - 1) * self.rows // self.batch

    @property
    def steps(self) -> int:
        """As many as an epoch has after those of the warm-up: every length counts as often as it is there."""
        return self.warm_up + self.rows // self.batch

    def lengths(self) -> list[int]:
        """Of every demonstration, in tokens; the end token is one."""
        rng, (low, high) = random.Random(0), (math.log(self.shortest), math.log(self.longest))
        return [round(math.exp(rng.uniform(low, high))) for _ in range(self.rows)]

    @property
    def tokens(self) -> dict[str, float]:
        """Tokens of a step."""
        return {"step": sum(self.lengths()) * self.batch / self.rows}

    def build(self, kind: str, **settings):
        """A trainer of this kind on these demonstrations."""
        rng, symbols, rows = random.Random(1), _symbols(self.shape.vocab)[SPECIAL:], []
        for length in self.lengths():
            text, cut = "".join(rng.choices(symbols, k=length - 1)), length // 4
            rows.append({"prompt": text[:cut], "completion": text[cut:]})
        common = {"per_device_train_batch_size": self.batch, "max_steps": self.steps, "logging_steps": 1}
        return build(kind, self.shape.model(), self.shape.tokenizer(), Dataset.from_list(rows), **common | settings)


@dataclass(frozen=True)
class Testbed:
    """The testbed's rollouts, or without `group` its demonstrations, on its model or a wider one."""

    group: int | None = 16
    batch: int = 64
    rows: int = 2048  # demonstrations; prompts are a quarter of them
    steps: int = 40
    warm_up: int = 8
    wider: bool = False

    def load(self) -> tuple:
        """Model, tokenizer and data."""
        folder = wider_testbed() if self.wider else testbed_folder()
        model = AutoModelForCausalLM.from_pretrained(folder, device_map="cuda" if GPU else None)
        if self.group is None:
            rows = digits.dataset(["barrier", "basin"], self.rows, seed=0, demonstrations=True)
        else:
            rows = digits.dataset(["tail_10", "basin"], self.rows // 4, seed=0)
        return model, AutoTokenizer.from_pretrained(folder), rows

    def build(self, kind: str, loaded: tuple | None = None, **settings):
        """A trainer of this kind on the testbed, for what `load` gave."""
        model, tokenizer, rows = loaded or self.load()
        common = {"per_device_train_batch_size": self.batch, "max_steps": self.steps, "logging_steps": 10}
        if self.group is None:
            return build(kind, model, tokenizer, rows, **common | settings)
        common |= {"num_generations": self.group, "max_completion_length": 12, "beta": BETA}
        reward = even_tokens if "rollout_func" in settings else digits.correct  # random completions hold no answer
        return build(kind, model, tokenizer, rows, reward, **common | settings)


@cache
def wider_testbed() -> Path:
    """A folder like the testbed's, with a model of random weights that outweigh what libraries load on the way."""
    path, folder = Path(tempfile.mkdtemp(dir=scratch.name)), testbed_folder()
    torch.manual_seed(0)
    wide = {"vocab_size": 8192, "hidden_size": 256, "head_dim": 64, "intermediate_size": 768, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig.from_pretrained(folder, **wide)).save_pretrained(path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    return path


Arm = tuple[str, dict]  # kind of trainer, and settings of its own


@dataclass(frozen=True)
class Bar:
    """How many times as fast arm `ours` is to be as arm `theirs`; None: it is only looked at."""

    ours: str
    theirs: str
    least: float | None


@dataclass(frozen=True)
class Cell:
    """One workload, its arms, and the bars of time and memory.

    `memory`: how much of the memory of the other arm's update the first one of the first bar may take at most.
    """

    what: str
    work: Rollouts | Demonstrations | Testbed
    arms: dict[str, Arm]
    bars: tuple[Bar, ...]
    memory: float | None


def against_grpo(what: str, work: Rollouts | Testbed, least: float | None) -> Cell:
    """Ours against GRPOTrainer; long prompts of large groups are to save half of the update's memory."""
    long = isinstance(work, Rollouts) and work.prompt >= 4 * work.completion and work.group >= 8
    arms, bars = {OURS: (OURS, {}), "TRL": ("grpo", {})}, (Bar(OURS, "TRL", least),)
    return Cell(what, work, arms, bars, 0.5 if long else 1.05)


GROUPED = {"train_sampling_strategy": "group_by_length"}
MATRIX = {
    "a": against_grpo("prompt 2 x completion", Rollouts(128, 64), 1.8),
    "b": against_grpo("prompt 4 x completion", Rollouts(192, 48), 2.5),
    "c": against_grpo("as a, lengths 25-100 %", Rollouts(128, 64, shortest=16, steps=4), 2.2),
    "d": against_grpo("prompt 1/4 of completion", Rollouts(16, 64), 1.1),
    "e": against_grpo("testbed, batch 64, G 16", Testbed(), 1.15),
    "g": Cell(
        "demonstrations alone",
        Demonstrations(),
        {OURS: (OURS, SFT | GROUPED), "TRL": ("sft", GROUPED), "TRL's default": ("sft", {})},
        (Bar(OURS, "TRL", 1.0), Bar(OURS, "TRL's default", 1.8)),
        memory=1.05,
    ),
    "h": Cell(
        "demonstrations, second epoch",
        Demonstrations(rows=96, epochs=2),
        {"with KL": (OURS, SFT | {"beta": BETA, "kl_sampler": "demonstrations"}), "beta 0": (OURS, SFT)},
        (Bar("with KL", "beta 0", 1 / 1.05),),
        memory=None,
    ),
}


BASE = Rollouts(128, 32, batch=16)
SMALLER = Shape(hidden=128, layers=2, heads=2, kv_heads=1, intermediate=384)
MOVED: dict[str, dict] = {  # one factor at a time
    "prompt-32": {"prompt": 32},
    "prompt-256": {"prompt": 256},
    "completion-16": {"completion": 16},
    "completion-64": {"completion": 64},
    "G-2": {"group": 2},
    "G-4": {"group": 4},
    "G-16": {"group": 16},
    "batch-8": {"batch": 8},
    "batch-32": {"batch": 32},
    "model-2x128": {"shape": SMALLER},
    "vocabulary-32k": {"shape": Shape(vocab=32768)},
}
SCALING = {"base": against_grpo("prompt 128, completion 32, G 8, batch 16, 4 layers of 256, vocabulary 512", BASE, 1.0)}
SCALING |= {name: against_grpo("else as base", replace(BASE, **moved), 1.0) for name, moved in MOVED.items()}
QWEN3 = {"vocab": 151936, "layers": 28, "heads": 16, "kv_heads": 8, "head_dim": 128, "tied": True}
LARGE = {
    "0.6B": Shape(**QWEN3, hidden=1024, intermediate=3072, dtype=torch.bfloat16),
    "1.7B": Shape(**QWEN3, hidden=2048, intermediate=6144, dtype=torch.bfloat16),
}
GPU_CELLS = {
    name: against_grpo(f"Qwen3-{name} of random weights, bf16", Rollouts(1024, 256, batch=8, shape=shape), None)
    for name, shape in LARGE.items()
}
