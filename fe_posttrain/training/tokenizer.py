"""What a recipe says about the tokenizer: `eos_token`, `pad_token`, `chat_template_path`, by SFTConfig's names."""

from pathlib import Path

from transformers import AutoTokenizer

from fe_posttrain.training.config import FreeEnergyConfig


def with_settings(processing_class, model, args: FreeEnergyConfig):
    """The tokenizer with the settings of `args` applied, loaded from the model's name if none was passed.

    Raises:
        ValueError: a token that the vocabulary lacks, or a template path that is no Jinja file.
    """
    if not (args.eos_token or args.pad_token or args.chat_template_path):
        return processing_class
    if processing_class is None:
        name = model if isinstance(model, str) else model.config._name_or_path
        processing_class = AutoTokenizer.from_pretrained(
            name, padding_side="left", trust_remote_code=args.trust_remote_code
        )
    for key in ("eos_token", "pad_token"):
        token = getattr(args, key)
        if token is None:
            continue
        if token not in processing_class.get_vocab():
            raise ValueError(f"{key}: {token!r}; the tokenizer has no such token; write one of its vocabulary")
        setattr(processing_class, key, token)
    if args.chat_template_path is not None:
        path = Path(args.chat_template_path)
        if path.suffix not in (".jinja", ".j2") or not path.is_file():
            raise ValueError(
                f"chat_template_path: {path}; no Jinja file is there; write the path of a .jinja or .j2 file"
            )
        processing_class.chat_template = path.read_text(encoding="utf-8")
    return processing_class
