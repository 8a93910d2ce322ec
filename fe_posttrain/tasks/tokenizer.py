"""The testbed's tokenizer: 26 symbols, one character a token, built in code."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fe_posttrain.tasks.digits import DIGITS, LETTERS, SEPARATOR

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SYMBOLS = (PAD, BOS, EOS, UNKNOWN, SEPARATOR, *DIGITS, *LETTERS)


def build_tokenizer(symbols: Sequence[str] = SYMBOLS) -> "PreTrainedTokenizerFast":
    """A word-level tokenizer over single characters, padding on the left.

    It adds no special token by itself, so that encode(prompt) + encode(completion) == encode(prompt +
    completion), and decodes without spaces. Characters outside the vocabulary become `<unk>`. `<bos>` is there
    for libraries that ask for one; the testbed never writes it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers  # only where a model is loaded
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
