#!/usr/bin/env python3
"""Train what a recipe says.

    accelerate launch scripts/train.py --config recipes/quickstart.yaml
    accelerate launch scripts/train.py --config recipes/rl.yaml --beta 0.1 --max_steps 40

Every key of a recipe can be overridden as `--key value`, the value read as YAML. Keys are those of
FreeEnergyConfig (all of TRL's GRPOConfig, and ours), of TRL's ModelConfig, and of RunSettings
(fe_posttrain/recipe/settings.py). recipes/README.md explains them, --schema lists all.

Exit codes: 0 trained, 2 the recipe cannot be run, 3 stopped because a term of F or a gradient was not finite.
"""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is first imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/train.py",
        usage="%(prog)s --config RECIPE.yaml [--key value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `--s 1` is a key of a recipe that nobody knows, not --schema
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--config", metavar="RECIPE.yaml", help="the recipe to run")
    action.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe, for an editor")
    words, overrides = parser.parse_known_args()

    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")

    if words.schema:
        with redirect_stdout(sys.stderr):  # libraries that greet when imported
            from fe_posttrain.recipe.schema import schema

        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return 0

    from fe_posttrain.recipe.launch import launch
    from fe_posttrain.recipe.reading import RecipeError

    try:
        launch(words.config, overrides)
    except RecipeError as error:
        print(f"The recipe cannot be run:\n{error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"The run was stopped:\n{error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
