#!/usr/bin/env python3
"""Train what a recipe says.

    accelerate launch scripts/train.py --config recipes/quickstart.yaml
    accelerate launch scripts/train.py --config recipes/rl.yaml --beta 0.1 --max_steps 40
    accelerate launch scripts/train.py --config recipes/rl.yaml --output_dir runs/mine --resume

Every key of a recipe can be overridden as `--key value`, the value read as YAML; recipes/README.md explains them and
--schema lists all.

Exit codes: 0 trained, 2 the recipe cannot be run, 3 stopped: a reward failed, a term of F or a gradient was not
finite, an alarm of stop_on_alarm, or no room for the final model; 128 + N stopped by signal N after a checkpoint.
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
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `--s 1` is a key of a recipe that nobody knows, not --schema
        usage="%(prog)s --config RECIPE.yaml [--dry-run] [--resume] [--key value ...]",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--config", metavar="RECIPE.yaml", help="the recipe to run")
    action.add_argument("--schema", action="store_true", help="print the JSON schema of a recipe, for an editor")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, and stop")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output_dir")
    parser.add_argument("--allow-changed-recipe", action="store_true", help="resume although the recipe differs")
    words, overrides = parser.parse_known_args()

    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")

    if words.schema:
        with redirect_stdout(sys.stderr):  # libraries that greet when imported
            from fe_posttrain.recipe.schema import schema

        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return 0

    from fe_posttrain.recipe.launch import NotSaved, Options, Stopped, StoppedByAlarm, launch
    from fe_posttrain.recipe.reading import RecipeError
    from fe_posttrain.training.reward_faults import RewardError

    options = Options(words.resume, words.allow_changed_recipe, words.dry_run)
    try:
        launch(words.config, overrides, options)
    except RecipeError as error:
        return _leave(f"The recipe cannot be run:\n{error}", 2)
    except (FloatingPointError, RewardError, StoppedByAlarm, NotSaved) as error:
        return _leave(f"The run was stopped:\n{error}", 3)
    except Stopped as stopped:
        return _leave(str(stopped), 128 + stopped.signal)
    return 0


def _leave(message: str, code: int) -> int:
    """Say why, once for all processes of a launch."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
