"""The base of `fe_posttrain.tasks.formats`: the testbed's Llama and tokenizer, pretrained to write three formats.

Cross-entropy on completions drawn from the law that the model is to learn: a family, one of its operations, a
format by `SHARES`, and then the result with the format's accuracy, else a copy of the list.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fe_posttrain.tasks import digits, formats
from fe_posttrain.tasks.pretraining import cached
from fe_posttrain.tasks.pretraining_run import PretrainSettings, fit, new_model
from fe_posttrain.tasks.tokenizer import EOS, PAD, SYMBOLS

SETTINGS = PretrainSettings(steps=500)
_IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)}
_LENGTH = digits.LIST_LENGTH + 2  # of the longest completion, end token included


def formats_model(cache_dir: Path | None = None, *, seed: int = 0, settings: PretrainSettings = SETTINGS) -> Path:
    """Folder of the base, pretrained when the cache has none; arguments and cache as `pretraining.reference_model`.

    Of the settings, those about hidden rules (`basin_share`, `anneal`) are not read.
    """
    law = [formats.SHARES, *(asdict(family) for family in formats.FAMILIES.values())]
    made_of = {"formats": formats.VERSION, "law": law, "seed": seed, "settings": asdict(settings)}
    return cached("formats", made_of, lambda: pretrain(seed, settings), cache_dir)


def pretrain(seed: int, settings: PretrainSettings) -> torch.nn.Module:
    """A new model in evaluation mode, trained on the CPU; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the accelerator, too
        model, rng = new_model(settings, SYMBOLS), np.random.default_rng(seed)
        fit(model, lambda step: _batch(rng, settings.batch_size), settings, "the testbed's base of formats, once")
    return model.eval()


def draw(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """`count` prompts of the train split, each with a completion drawn from the law."""
    pool = digits.lists(digits.COPY, "train")
    asked = [(family, letter) for family in formats.FAMILIES.values() for letter in family.operations]
    written = rng.choice(list(formats.SHARES), size=count, p=list(formats.SHARES.values()))
    pairs = []
    for name in written:
        (family, letter), x = asked[rng.integers(len(asked))], pool[rng.integers(len(pool))]
        answer = digits.apply(letter, x) if rng.random() < family.accuracy[name] else x
        pairs.append((letter + x, formats.FORMATS[name](letter + x, answer)))
    return pairs


def _batch(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Token ids (N, 6 + 7), padded on the right where causal attention never looks, and loss weights (N, 7)."""
    rows = [(x, [*y, EOS]) for x, y in draw(rng, count)]
    tokens = torch.tensor([[_IDS[c] for c in [*x, *y, *[PAD] * (_LENGTH - len(y))]] for x, y in rows])
    weights = torch.tensor([[float(i < len(y)) for i in range(_LENGTH)] for _, y in rows])
    return tokens, weights
