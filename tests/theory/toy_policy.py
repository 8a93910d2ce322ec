"""An autoregressive policy small enough to write every completion down: the oracle of this folder.

A table holds one row of logits per prefix. `Toy` enumerates the completions and turns tables into token log-probs;
the reference quantities below (KL, F, its optimum) are written with NumPy-like sums here, never with the package.
"""

from itertools import product

import torch
from torch import Tensor


class Toy:
    """All completions over `vocabulary` symbols, up to `length` tokens.

    With `ends`, symbol 0 ends a completion (an empty one is the single token 0) and one of `length` tokens may lack
    it; without, every completion has `length` tokens.

    Attributes:
        tokens, prefix: shape (Y, T): drawn token and number of the prefix that it was drawn after; 0 where padded.
        mask: shape (Y, T), True on tokens.
        prefixes: number of rows of a table.
    """

    def __init__(self, vocabulary: int, length: int, *, ends: bool) -> None:
        completions = {self._cut(word, ends) for word in product(range(vocabulary), repeat=length)}
        self.completions = sorted(completions)
        self.vocabulary, self.length = vocabulary, length
        heads = sorted({word[:t] for word in self.completions for t in range(len(word))})
        number = {head: row for row, head in enumerate(heads)}
        self.prefixes = len(heads)
        shape = (len(self.completions), length)
        self.tokens, self.prefix = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        self.mask = torch.zeros(shape, dtype=torch.bool)
        for row, word in enumerate(self.completions):
            for t, token in enumerate(word):
                self.tokens[row, t], self.prefix[row, t] = token, number[word[:t]]
                self.mask[row, t] = True

    @staticmethod
    def _cut(word: tuple[int, ...], ends: bool) -> tuple[int, ...]:
        return word[: word.index(0) + 1] if ends and 0 in word else word

    def table(self, seed: int, scale: float = 1.0) -> Tensor:
        """Random logits, (prefixes, vocabulary), float64."""
        generator = torch.Generator().manual_seed(seed)
        return scale * torch.randn(self.prefixes, self.vocabulary, generator=generator, dtype=torch.float64)

    def reward(self, seed: int) -> Tensor:
        """Random rewards in [0, 1), (Y,), float64."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(len(self.completions), generator=generator, dtype=torch.float64)

    def token_log_probs(self, table: Tensor) -> Tensor:
        """(..., prefixes, vocabulary) -> (..., Y, T), zero where padded."""
        chosen = table.log_softmax(-1)[..., self.prefix, self.tokens]
        return torch.where(self.mask, chosen, 0.0)

    def log_probs(self, table: Tensor) -> Tensor:
        """(..., prefixes, vocabulary) -> log pi(y), (..., Y)."""
        return self.token_log_probs(table).sum(-1)

    def table_of(self, probabilities: Tensor) -> Tensor:
        """The table whose policy is the given law (Y,): log of the mass behind each continuation."""
        mass = torch.zeros(self.prefixes, self.vocabulary, dtype=torch.float64)
        for row, p in enumerate(probabilities):
            inside = self.mask[row]
            mass[self.prefix[row, inside], self.tokens[row, inside]] += p
        return mass.log()

    def next_token_kl(self, table: Tensor, reference: Tensor) -> Tensor:
        """KL(pi || ref) of the next token after each prefix, (prefixes,)."""
        log_p, log_q = table.log_softmax(-1), reference.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def prefix_probs(self, table: Tensor) -> Tensor:
        """Probability that a completion passes through each prefix, (prefixes,)."""
        reached = torch.zeros(self.prefixes, dtype=torch.float64)
        for row, p in enumerate(self.log_probs(table).exp()):
            reached[self.prefix[row, self.mask[row]]] += p
        return reached


def plain_free_energy(log_policy: Tensor, log_reference: Tensor, reward: Tensor, beta: float | Tensor) -> Tensor:
    """F = E[-reward] + beta KL(pi || ref) over the last axis, term by term."""
    return (log_policy.exp() * (beta * (log_policy - log_reference) - reward)).sum(-1)


def descend(gradient_field, start: Tensor, *, steps: int, rate: float) -> Tensor:
    """Follow a gradient field with Adam and a rate that falls to 0, so that it comes to rest at a fixed point."""
    table = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=rate, betas=(0.9, 0.99), foreach=False)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 2)
    for _ in range(steps):
        table.grad = gradient_field(table)
        optimizer.step()
        schedule.step()
    return table.detach()


def minimise(loss, start: Tensor) -> Tensor:
    """Where a differentiable loss of one tensor is smallest, by L-BFGS from `start`."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point], max_iter=500, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(point)
        value.backward()
        return value

    optimizer.step(closure)
    return point.detach()
