"""Whether there is a wandb server that takes a run, found out without waiting on it."""

import os
import threading
from contextlib import suppress

import requests
import wandb
from requests.utils import get_netrc_auth

PATIENCE = 3  # seconds that the server has to answer


def server() -> str:
    """Address of the server in force: WANDB_BASE_URL, wandb's settings files, or its own."""
    return wandb.setup().settings.base_url


def logged_in() -> bool:
    """Whether there are credentials, without asking the server (`wandb.login` waits for it) or the person."""
    named = any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"))
    return named or get_netrc_auth(server()) is not None


def answers(url: str, patience: float = PATIENCE) -> bool:
    """Whether a server says anything at all within so many seconds, name look-up included."""
    found: list[bool] = []

    def ask() -> None:
        with suppress(requests.RequestException):
            requests.get(url, timeout=patience, stream=True).close()
            found.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return bool(found)
