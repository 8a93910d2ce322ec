"""The models of the embedded testbed by the names that recipes give them; each is built on first use.

`python -m fe_posttrain.tasks.bases --base testbed_depths` builds one and prints exact p of its families.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from fe_posttrain.tasks import digits
from fe_posttrain.tasks.depths import depths_model
from fe_posttrain.tasks.formats_base import formats_model
from fe_posttrain.tasks.pretraining import reference_model

BASES: dict[str, Callable[..., Path]] = {  # name: gives the folder; may be given `cache_dir` and `seed`
    "testbed": reference_model,
    "testbed_depths": depths_model,
    "testbed_formats": formats_model,
}


def main() -> None:
    """Build the base of one seed; print its folder and a table of exact success probabilities."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fe_posttrain.tasks.exact import exact_probabilities

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", choices=BASES, default="testbed")
    words = parser.parse_args()
    folder = BASES[words.base](seed=words.seed)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    print(folder)
    print(f"{'family':10} {'letters':8} {'mean p':>9} {'log10 p: mean':>14} {'min':>7} {'max':>7}")
    for family in (digits.FAMILIES[name] for name in digits.measured((), words.base)):
        asked = digits.prompts(family.name, 128 * len(family.operations), seed=0, split="probe")
        p = exact_probabilities(model, tokenizer, asked)
        for i, letters in enumerate(family.operations):
            own = p[i :: len(family.operations)]
            low, mean, high = own.log10().min(), own.log10().mean(), own.log10().max()
            print(f"{family.name:10} {letters:8} {own.mean():9.5f} {mean:14.2f} {low:7.2f} {high:7.2f}")


if __name__ == "__main__":
    main()
