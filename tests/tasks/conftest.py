"""Fixtures of the testbed: its tokenizer and its real reference."""

from pathlib import Path

import pytest

from fe_posttrain.tasks.pretraining import reference_model
from fe_posttrain.tasks.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The real reference, from the user's cache (pretrained there on first use)."""
    return reference_model()
