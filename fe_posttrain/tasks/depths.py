"""The testbed's base of depths: prompts of one to five operations, answered by working them out.

The tokenizer, the model and its optimisers are the reference's (`fe_posttrain.tasks.pretraining_run`); every answer
of pretraining is the worked one, whose tokens grow with the operations: 5, 11, 17, 23 and 29, and an end token. Depths
1 and 2 fill the mixture and are solved. Of depth 3 it holds so few that p is a few percent, spread over decades from
prompt to prompt: the edge of competence. Depths 4 and 5 it has never seen, and p is 1e-5 or less.

`python -m fe_posttrain.tasks.pretraining --base testbed_depths` builds it (about 40 s on one core) and prints p.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining import cached
from fe_posttrain.tasks.pretraining_run import PretrainSettings, fit, new_model
from fe_posttrain.tasks.tokenizer import EOS, PAD, SYMBOLS

VERSION = "1"  # changes when results may change

LETTERS = "RLTXP"  # move digits about; sorting is left out, since it forgets all that was done before
MIXTURE = {1: 0.35, 2: 0.6425, 3: 0.0075}  # depth: its share of pretraining

_TOKEN_IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)}


def depths_model(cache_dir: Path | None = None, *, seed: int = 0, settings: PretrainSettings | None = None) -> Path:
    """Folder of the pretrained base, cached as `reference_model` says.

    Args:
        cache_dir: default $FE_POSTTRAIN_CACHE, else ~/.cache/fe_posttrain.
        seed: of weights and data.
        settings: default `PretrainSettings()`; `basin_share` and `anneal` are not read.
    """
    settings = settings or PretrainSettings()
    mixture = {str(depth): share for depth, share in MIXTURE.items()}
    made_of = {"depths": VERSION, "mixture": mixture, "seed": seed, "settings": asdict(settings)}
    return cached("depths", made_of, lambda: _pretrain(seed, settings), cache_dir)


def _pretrain(seed: int, settings: PretrainSettings) -> torch.nn.Module:
    """A new model in evaluation mode, trained on the CPU; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = new_model(settings, SYMBOLS)
        fit(model, batches(seed, settings.batch_size), settings, "the testbed's base of depths, once")
    return model.eval()


def batches(seed: int, rows: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """What `fit` asks for: token ids (rows, L), padded on the right where causal attention never looks, and loss
    weights (rows, L - 1): 1 on the worked answer and its end token. Letters and lists are drawn at random."""
    rng, pool = np.random.default_rng(seed), digits.lists(digits.COPY, "train")
    depths, shares = list(MIXTURE), list(MIXTURE.values())

    def batch(step: int) -> tuple[Tensor, Tensor]:
        prompts = []
        for depth in rng.choice(depths, size=rows, p=shares):
            prompts.append("".join(rng.choice(list(LETTERS), size=depth)) + pool[rng.integers(len(pool))])
        texts = [[*(_TOKEN_IDS[c] for c in x + digits.demonstration(x)), _TOKEN_IDS[EOS]] for x in prompts]
        tokens = torch.full((rows, max(map(len, texts))), _TOKEN_IDS[PAD])
        weights = torch.zeros(rows, tokens.shape[1] - 1)
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            tokens[i, : len(text)] = torch.tensor(text)
            weights[i, len(prompt) - 1 : len(text) - 1] = 1.0  # weight j belongs to token j + 1
        return tokens, weights

    return batch
