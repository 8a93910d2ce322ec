"""Whether this machine can talk to wandb as somebody."""

import os

import wandb
from requests.utils import get_netrc_auth


def logged_in() -> bool:
    """Whether there are credentials, without asking the server (`wandb.login` waits for it) or the person."""
    named = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    return named or get_netrc_auth(wandb.Settings().base_url) is not None
