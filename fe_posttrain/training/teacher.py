"""A reference that is a model of its own: loaded, and held against the policy's vocabulary."""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def load_teacher(trainer) -> PreTrainedModel:
    """The model of `reference_model_name_or_path`, from safetensors, in the policy's precision.

    Raises:
        ValueError: weights are missing, or it has not the policy's tokens.
    """
    args, policy = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    name = args.reference_model_name_or_path
    model, info = AutoModelForCausalLM.from_pretrained(
        Path(name).expanduser() if name.startswith("~") else name,
        use_safetensors=True,
        dtype=policy.dtype,
        attn_implementation=policy.config._attn_implementation,
        trust_remote_code=args.trust_remote_code,
        output_loading_info=True,
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"reference_model_name_or_path: {name}: no weights for {', '.join(missing[:3])}; they would be random; "
            "name a whole language model"
        )
    require_same_tokens(name, model, trainer)
    return model


def require_same_tokens(name: str, model: PreTrainedModel, trainer) -> None:
    """KL(policy || reference) compares the probabilities of the same tokens, so each must have the same id.

    A model may have more rows of embeddings than the policy, as large ones of a family are padded further. A folder
    without a tokenizer is taken at its size.

    Raises:
        ValueError: with both sizes.
    """
    ours = trainer._tokenizer.get_vocab()
    theirs = _vocabulary(name, trainer.args.trust_remote_code)
    rows, own_rows = (
        one.get_input_embeddings().weight.shape[0] for one in (model, trainer.accelerator.unwrap_model(trainer.model))
    )
    if theirs is None:
        problem = None if rows == own_rows else "and no tokenizer that would tell which are the same"
    elif differs := [token for token, number in ours.items() if theirs.get(token) != number]:
        first = min(differs, key=ours.__getitem__)
        problem = f"{first!r} is token {ours[first]} of the policy and {theirs.get(first, 'none')} there"
    else:
        problem = None if rows >= own_rows else "fewer than the policy may draw"
    if problem:
        tokens = "" if theirs is None else f" and {len(theirs):,} tokens"
        raise ValueError(
            f"reference_model_name_or_path: {name} has {rows:,} embeddings{tokens}, the policy {own_rows:,} and "
            f"{len(ours):,}: {problem}; the KL compares probabilities of the same tokens; name a model of the policy's "
            "family"
        )


def _vocabulary(name: str, trust_remote_code: bool) -> dict[str, int] | None:
    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).exists() for file in ("tokenizer_config.json", "tokenizer.json")):
        return None
    return AutoTokenizer.from_pretrained(
        folder if folder.is_dir() else name, trust_remote_code=trust_remote_code
    ).get_vocab()
