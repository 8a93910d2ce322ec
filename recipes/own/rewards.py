"""An example of a reward: TRL's signature, one number for each completion; every column of the rows comes by name."""


def digits_in_order(prompts, completions, wanted, **columns) -> list[float]:
    """The share of places at which a completion holds the digit that its row wants there."""
    return [sum(a == b for a, b in zip(y, z, strict=False)) / len(z) for y, z in zip(completions, wanted, strict=True)]
