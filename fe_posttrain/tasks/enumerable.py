"""A world small enough to list every completion: a two-layer Llama over eight symbols and three tokens.

Completions are token sequences over the symbols, ended by `<eos>` or by the length limit: with V symbols and at
most T tokens there are sum_{t<T} (V-1)^t + (V-1)^T of them, 400 here. Rewards are one fixed draw from [0, 1] per
completion, as graders give them, so every completion matters. F, F* and the gap of a real model, trained by a real
trainer, are then exact.
"""

import itertools
from functools import cache
from typing import TYPE_CHECKING

import torch

from fe_posttrain.sequences.scoring import score
from fe_posttrain.theory.free_energy import exact_free_energy
from fe_posttrain.theory.gibbs import optimal_free_energy

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VERSION = "1"  # changes when results may change

SYMBOLS = ("<pad>", "<eos>", *"abcdef")
PAD_ID, EOS_ID = 0, 1
MAX_TOKENS = 3
PROMPT = "abc"


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """One token a symbol, no special tokens added."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({s: i for i, s in enumerate(SYMBOLS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )


def build_model(seed: int) -> "LlamaForCausalLM":
    """A random two-layer Llama whose next-token laws differ from prefix to prefix (initializer range .1)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(SYMBOLS),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                initializer_range=0.1,
                pad_token_id=PAD_ID,
                eos_token_id=EOS_ID,
                bos_token_id=None,
            )
        )


def prompt_ids() -> list[int]:
    """The one prompt, tokenised."""
    return [SYMBOLS.index(symbol) for symbol in PROMPT]


@cache
def completions() -> tuple[tuple[int, ...], ...]:
    """Every completion as token ids: `<eos>` ends one, and three tokens do."""
    found = []
    others = [token for token in range(len(SYMBOLS)) if token != EOS_ID]
    for length in range(MAX_TOKENS):
        found += [(*head, EOS_ID) for head in itertools.product(others, repeat=length)]
    return tuple(found + list(itertools.product(others, repeat=MAX_TOKENS)))


@cache
def _rewards() -> dict[tuple[int, ...], float]:
    generator = torch.Generator().manual_seed(0)
    return dict(zip(completions(), torch.rand(len(completions()), generator=generator).tolist(), strict=True))


def reward(completion_ids: list[list[int]], **_) -> list[float]:
    """Reward function with TRL's signature: the fixed draw of each completion."""
    table = _rewards()
    return [table[tuple(ids)] for ids in completion_ids]


def log_probs(model) -> torch.Tensor:
    """log pi of every completion, shape (400,), float64; they sum to 1."""
    everything = [list(row) for row in completions()]
    per_token, _ = score(model, [prompt_ids()] * len(everything), everything, pad_token_id=PAD_ID, batch_size=512)
    return per_token.double().sum(1)


def energies() -> torch.Tensor:
    """-reward of every completion, shape (400,), float64."""
    return -torch.tensor([_rewards()[row] for row in completions()], dtype=torch.float64)


def remaining_gap(log_policy: torch.Tensor, log_reference: torch.Tensor, beta: float) -> float:
    """(F(pi) - F*) / (F(ref) - F*): 1 at the start, 0 at the optimum."""
    optimum = optimal_free_energy(log_reference, energies(), beta=beta)
    now, start = (
        exact_free_energy(log_p, log_reference, energies(), beta=beta).total for log_p in (log_policy, log_reference)
    )
    return ((now - optimum) / (start - optimum)).item()
