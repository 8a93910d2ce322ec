"""Whether optimizer, scheduler and dashboards of a recipe can be built: found before a model is loaded."""

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations

from fe_posttrain.training.config import FreeEnergyConfig


def check_optimizer(args: FreeEnergyConfig) -> None:
    """Build what transformers would build, on one number.

    Raises:
        ValueError: `key: what; what to write`, for a package that is missing or arguments that are not taken.
    """
    low_rank = str(args.optim.value).startswith(("galore", "apollo"))  # cannot be built without the model
    try:
        if not low_rank:
            Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError, TypeError) as error:
        raise ValueError(
            f"optim: {args.optim.value}: {error}; install what it needs, mend optim_args, or write optim: adamw_torch"
        ) from error
    try:
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0),
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
    except (ValueError, TypeError) as error:
        name = args.lr_scheduler_type.value
        raise ValueError(f"lr_scheduler_type: {name}: {error}; write lr_scheduler_kwargs that it takes") from error
    known = get_available_reporting_integrations()
    if missing := [name for name in args.report_to if name not in known]:
        raise ValueError(
            f"report_to: {missing[0]}; it is not installed; pip install {missing[0]}, or write report_to: none"
        )
