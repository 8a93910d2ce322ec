#!/usr/bin/env python3
"""Make an outside task ready for recipes/chain_sum.yaml: `chain_sum` of reasoning-gym, and a reference for it.

    pip install -e '.[tasks]'
    python scripts/chain_sum.py --out runs/chain_sum                # about 15 CPU-seconds

writes FOLDER/train.jsonl and FOLDER/test.jsonl, which share no prompt, and FOLDER/reference: a two-layer Llama of
108,000 weights and its tokenizer, one character a token. The folder appears when all of it is there.

The reference knows the task in part because its pretraining on right answers is broken off: 200 steps of 128, the
learning rate still near its peak, of a schedule of 4,000. The table at the end gives p, the share of completions
drawn at temperature 1 that the gym's scorer accepts, on test prompts; over seeds 0, 1 and 2 it was .69, .67, .70 for
two terms, .34, .44, .42 for three, .37, .46, .45 for all.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
import transformers
from torch import Tensor

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.sampling import sample
from fe_posttrain.tasks import chain_sum
from fe_posttrain.tasks.pretraining_run import PretrainSettings, fit, new_model
from fe_posttrain.tasks.tokenizer import BOS, EOS, PAD, UNKNOWN, build_tokenizer

SYMBOLS = (PAD, BOS, EOS, UNKNOWN, *chain_sum.SYMBOLS)
LONGEST = len("1-2-3=") + len("-17") + 1  # tokens of prompt, answer and end
SETTINGS, STOP = PretrainSettings(steps=4000), 200
TRAIN_ROWS, TEST_ROWS = 2048, 256
DRAWS = 16  # completions per test prompt


def batches(seed: int, rows: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """What `fit` asks for: token ids (rows, LONGEST), padded on the right where causal attention never looks, and
    loss weights (rows, LONGEST - 1): 1 on the answer and its end token."""
    stream = chain_sum.stream("train", seed)
    ids = {symbol: i for i, symbol in enumerate(SYMBOLS)}

    def batch(step: int) -> tuple[Tensor, Tensor]:
        tokens = torch.full((rows, LONGEST), ids[PAD])
        weights = torch.zeros(rows, LONGEST - 1)
        for i, row in enumerate(islice(stream, rows)):
            text = [ids[c] for c in row["prompt"] + row["answer"]] + [ids[EOS]]
            tokens[i, : len(text)] = torch.tensor(text)
            weights[i, len(row["prompt"]) - 1 : len(text) - 1] = 1.0  # weight j belongs to token j + 1
        return tokens, weights

    return batch


def success(model: torch.nn.Module, rows: list[dict], draws: int = DRAWS) -> dict[int, list[float]]:
    """Number of terms -> rewards of `draws` completions of each row of that many terms, drawn at temperature 1."""
    rows = [row for row in rows for _ in range(draws)]
    tokenizer = build_tokenizer(SYMBOLS)
    ids, _, _ = sample(
        model,
        tokenizer([row["prompt"] for row in rows])["input_ids"],
        Decoding(LONGEST),
        eos_token_ids=[tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    rewards = chain_sum.correct([row["prompt"] for row in rows], texts, [row["answer"] for row in rows])
    by_terms: dict[int, list[float]] = {}
    for row, reward in zip(rows, rewards, strict=True):
        by_terms.setdefault(row["terms"], []).append(reward)
    return dict(sorted(by_terms.items()))


def build(
    out: Path,
    seed: int,
    settings: PretrainSettings = SETTINGS,
    stop: int = STOP,
    counts: tuple[int, int] = (TRAIN_ROWS, TEST_ROWS),
) -> dict[int, list[float]]:
    """Write the whole folder by one rename and return what `success` says of its reference.

    The same arguments give the same files; reseeds torch. `counts` are rows of train and of test.

    Raises:
        ValueError: `out` holds something.
        ImportError: reasoning-gym is not installed.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ValueError(f"--out: {out} is not empty; nothing is overwritten; write another path")
    rows = {split: chain_sum.rows(split, count, seed) for split, count in zip(("train", "test"), counts, strict=True)}
    torch.manual_seed(seed)
    model = new_model(settings, SYMBOLS)
    fit(model, batches(seed, settings.batch_size), settings, "the chain_sum reference", stop)
    measured = success(model.eval(), rows["test"])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staging:
        whole = Path(staging) / out.name
        whole.mkdir()
        for split, found in rows.items():
            (whole / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        build_tokenizer(SYMBOLS).save_pretrained(whole / "reference")
        model.save_pretrained(whole / "reference")
        whole.rename(out)
    return measured


def main() -> None:
    """Build the folder and print the table of p."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new or empty")
    parser.add_argument("--seed", type=int, default=0, help="of rows and weights (default 0)")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()  # of writing a file of half a megabyte
    torch.set_num_threads(1)  # more are slower at this size, and sum in another order
    start = time.process_time()
    try:
        measured = build(args.out, args.seed)
    except (ValueError, ImportError) as error:
        sys.exit(str(error))
    print("terms  prompts      p")
    for terms, rewards in measured.items():
        print(f"{terms:5}  {len(rewards) // DRAWS:7}  {mean(rewards):.3f}")
    everything = [reward for rewards in measured.values() for reward in rewards]
    print(f"  all  {len(everything) // DRAWS:7}  {mean(everything):.3f}")
    print(f"{args.out}: train.jsonl, test.jsonl and reference, in {time.process_time() - start:.0f} CPU-seconds")


if __name__ == "__main__":
    main()
