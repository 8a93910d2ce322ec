"""Two models on a prompt file: the verdict of a training run, without the run."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.support.budgets import ALPHA, DELTA
from fe_posttrain.tasks.files import load_rows
from fe_posttrain.tasks.rows import check_prompts, with_system_prompt
from fe_posttrain.tracking.bank import banks_folder
from fe_posttrain.tracking.drawing import Drawing
from fe_posttrain.tracking.probes import Probes, key_of
from fe_posttrain.tracking.reporting import reported
from fe_posttrain.tracking.signal import Signal
from fe_posttrain.training.weights import weights_hash


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how.

    Args:
        reference, trained: model folders or Hub names, of one tokenizer.
        prompts: a file, folder, Hub name or task with the column `prompt` and those that the verifier reads.
        verifier: a function of TRL's reward signature; graded ones need `threshold`.
        draws: of the trained model per prompt; as many of the reference's are for all prompts.
        reference_draws: at most so many per prompt and phase; see `bank`.
        tag: column by which the verdict is also given.
        dtype: of both models; `auto` is what their files hold.
    """

    reference: str
    trained: str
    prompts: str
    verifier: Callable
    threshold: float | None = None
    split: str = "train"
    system_prompt: str | None = None
    rows: int = 256
    tag: str = "family"
    draws: int = 64
    reference_draws: int = 1024
    max_new_tokens: int = 512
    temperature: float = 1.0
    budget: int = 1024
    delta: float = DELTA
    alpha: float = ALPHA
    seed: int = 0
    batch_size: int = 64
    dtype: str = "auto"
    trust_remote_code: bool = False


def compare(asked: Comparison, say: Callable[[str], None]) -> dict[str, Any]:
    """Draw from both models, judge, and report; see `support.report` for the result.

    Raises:
        ValueError: rows, models or verifier that cannot be measured.
    """
    for name in (asked.reference, asked.trained):
        _check_named(name)
    rows = load_rows(asked.prompts, split=asked.split)
    check_prompts(rows)
    if asked.system_prompt:
        rows = with_system_prompt(rows, asked.system_prompt)
    rows = rows.select(range(min(asked.rows, len(rows)))).to_list()
    tokenizer = _one_tokenizer(asked)
    models = [_model(name, asked) for name in (asked.reference, asked.trained)]
    probes = probed(asked, rows, tokenizer, *models, banks_folder(), say)
    name = f"{Path(asked.reference).name} ({probes.key.reference})"
    return reported(probes, probes.rounds[-1], name, asked.tag, None, pooled_labels=True)


def probed(
    asked: Comparison, rows: list[dict], tokenizer, reference, trained, cache: Path, say: Callable[[str], None]
) -> Probes:
    """One round of probes of two loaded models on `rows`."""
    decoding = Decoding(asked.max_new_tokens, asked.temperature)
    signal = Signal(asked.verifier, asked.threshold)
    key = key_of(weights_hash(reference), decoding, signal, asked.budget, asked.delta, asked.alpha)
    drawing = Drawing(
        [row["prompt"] for row in rows],
        decoding,
        lambda prompts: _tokenize(tokenizer, prompts),
        lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True),
        eos_token_ids=_ends(reference, tokenizer),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        unk_token_id=tokenizer.unk_token_id,
        batch_size=asked.batch_size,
    )
    probes = Probes(rows, drawing, signal, None, key, asked.seed)
    say(f"drawing {asked.reference} on {len(rows)} prompts; cached in {cache}")
    probes.meet_reference(reference, asked.draws, asked.reference_draws, (), cache)
    say(f"drawing {asked.trained}: {asked.draws} completions of each prompt")
    probes.round(trained, lambda: nullcontext(reference), 0, asked.draws)
    return probes


def _check_named(model: str) -> None:
    """A folder that is meant is there; whether the Hub has a name shows when it is asked."""
    path = Path(model).expanduser()
    local = path.exists() or model.startswith((".", "~", "/")) or model.count("/") > 1
    if local and not (path / "config.json").is_file():
        raise ValueError(f"{model}: no folder with config.json; write one, or a name of the Hub")


def _one_tokenizer(asked: Comparison):
    first, second = (
        AutoTokenizer.from_pretrained(name, trust_remote_code=asked.trust_remote_code)
        for name in (asked.reference, asked.trained)
    )
    if first.get_vocab() != second.get_vocab():
        raise ValueError(
            f"{asked.trained}: its vocabulary is not that of {asked.reference}; log-probs of one's completions under "
            "the other mean nothing; count correct draws of both and use --reference-counts and --trained-counts"
        )
    return first


def _model(name: str, asked: Comparison):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        name, dtype=asked.dtype, use_safetensors=True, trust_remote_code=asked.trust_remote_code
    )
    return model.to(device).eval()


def _tokenize(tokenizer, prompts: list) -> list[list[int]]:
    """Token ids as GRPOTrainer makes them."""
    if isinstance(prompts[0], str):
        return tokenizer(prompts)["input_ids"]
    return tokenizer.apply_chat_template(prompts, add_generation_prompt=True, tokenize=True, return_dict=True)[
        "input_ids"
    ]


def _ends(model, tokenizer) -> list[int]:
    """Every token that ends a completion: the tokenizer's, and those of the model's generation settings."""
    declared = model.generation_config.eos_token_id if model.generation_config else None
    more = declared if isinstance(declared, list) else [declared]
    return sorted({token for token in (tokenizer.eos_token_id, *more) if token is not None})
