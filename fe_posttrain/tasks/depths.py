"""The testbed's base of depths: prompts of one to five operations, answered by working them out.

The tokenizer, the model and its optimisers are the reference's (`fe_posttrain.tasks.pretraining_run`); every answer
of pretraining is worked: 5, 11, 17, 23 or 29 tokens by the number of operations, and an end token. Depths 1 and 2 are
solved. The working of depth 3 is finished one time in a hundred and else breaks off before its last list, so that p
is .007: the edge of competence. Depths 4 and 5 are never seen, and p is below 1e-6.

`python -m fe_posttrain.tasks.bases --base testbed_depths` builds it (about 45 s on one core) and prints p.
"""

from collections.abc import Callable, Mapping
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
# depth: its share of the prompts, and the probability that its working is finished; else it lacks the last list
Mixture = Mapping[int, tuple[float, float]]
MIXTURE: Mixture = {1: (0.25, 1.0), 2: (0.45, 1.0), 3: (0.3, 0.01)}

_TOKEN_IDS = {symbol: i for i, symbol in enumerate(SYMBOLS)}


def depths_model(cache_dir: Path | None = None, *, seed: int = 0, settings: PretrainSettings | None = None) -> Path:
    """Folder of the pretrained base, cached as `reference_model` says.

    Args:
        cache_dir: default $FE_POSTTRAIN_CACHE, else ~/.cache/fe_posttrain.
        seed: of weights and data.
        settings: default `PretrainSettings()`; `basin_share` and `anneal` are not read.
    """
    settings = settings or PretrainSettings()
    made_of = {"depths": VERSION, "mixture": list(MIXTURE.items()), "seed": seed, "settings": asdict(settings)}
    return cached("depths", made_of, lambda: _pretrain(seed, settings), cache_dir)


def _pretrain(seed: int, settings: PretrainSettings) -> torch.nn.Module:
    """A new model in evaluation mode, trained on the CPU; the caller's random state stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        model = new_model(settings, SYMBOLS)
        fit(model, batches(seed, settings.batch_size), settings, "the testbed's base of depths, once")
    return model.eval()


def batches(seed: int, rows: int, mixture: Mixture = MIXTURE) -> Callable[[int], tuple[Tensor, Tensor]]:
    """What `fit` asks for: token ids (rows, L), padded on the right where causal attention never looks, and loss
    weights (rows, L - 1), 0 on prompts. Letters and lists are drawn at random. A prompt of a depth that is not always
    finished stands there twice, finished and broken off, and the token at which the two part is weighted."""
    rng, pool = np.random.default_rng(seed), digits.lists(digits.COPY, "train")
    depths, shares = list(mixture), [share for share, _ in mixture.values()]

    def batch(step: int) -> tuple[Tensor, Tensor]:
        written: list[tuple[str, str, int, float]] = []  # prompt, completion, token of another weight, that weight
        while len(written) < rows:
            depth = rng.choice(depths, p=shares)
            prompt = "".join(rng.choice(list(LETTERS), size=depth)) + pool[rng.integers(len(pool))]
            answer, finished = digits.demonstration(prompt), mixture[depth][1]
            break_off = max(0, len(answer) - 1 - digits.LIST_LENGTH)
            written.append((prompt, answer, break_off, finished))
            if finished < 1:
                written.append((prompt, answer[:break_off], break_off, 1 - finished))
        written = written[:rows]
        tokens = torch.full((rows, max(len(x + y) for x, y, _, _ in written) + 1), _TOKEN_IDS[PAD])
        weights = torch.zeros(rows, tokens.shape[1] - 1)
        for i, (prompt, answer, break_off, weight) in enumerate(written):
            text = [*(_TOKEN_IDS[c] for c in prompt + answer), _TOKEN_IDS[EOS]]
            tokens[i, : len(text)] = torch.tensor(text)
            first = len(prompt) - 1  # weight j belongs to token j + 1
            weights[i, first : len(text) - 1] = 1.0
            weights[i, first + break_off] = weight
        return tokens, weights

    return batch
