"""The models of the embedded testbed by the names that recipes give them; each is built on first use."""

from collections.abc import Callable
from pathlib import Path

from fe_posttrain.tasks.depths import depths_model
from fe_posttrain.tasks.formats_base import formats_model
from fe_posttrain.tasks.pretraining import reference_model

BASES: dict[str, Callable[..., Path]] = {  # name: gives the folder; may be given `cache_dir` and `seed`
    "testbed": reference_model,
    "testbed_depths": depths_model,
    "testbed_formats": formats_model,
}
