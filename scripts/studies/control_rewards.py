"""Rewards that do not know the answers: negative controls. TRL's signature, deterministic in prompt and completion."""

import zlib

LENGTH = 5


def random_reward(prompts, completions, **columns) -> list[float]:
    """1 for half of all pairs of prompt and completion, whatever they say; the same pair always gets the same."""
    return [float(zlib.crc32(f"{x}|{y}".encode()) % 2) for x, y in zip(prompts, completions, strict=True)]


def format_reward(prompts, completions, **columns) -> list[float]:
    """1 for any five distinct digits and nothing else, right or wrong."""
    return [float(len(y) == LENGTH == len(set(y)) and y.isdecimal()) for y in completions]
