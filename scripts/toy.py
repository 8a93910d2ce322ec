"""Watch a free energy fall onto -beta log Z: a tabular policy, sampled gradients, no language model.

The policy writes words of up to four letters over a, b, c; a word earns 1 when it is a palindrome of three letters
or more. Each step draws G words, takes one gradient step on the estimator and redraws the *exact* F of the policy,
which the estimator never sees. The dashed line is the lowest F there is, -beta log Z.

    python scripts/toy.py                               # the default estimator reaches the line
    python scripts/toy.py --estimator k3_token_ratio    # a KL per token (TRL 1.16) rests above it
    python scripts/toy.py --estimator k1_in_loss        # no regularisation at all: F turns and climbs
"""

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, pairwise, product

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import Tensor

from fe_posttrain.theory.advantages import sequence_advantages, sum_to_go_advantages
from fe_posttrain.theory.free_energy import exact_free_energy
from fe_posttrain.theory.gibbs import bernoulli_optimum, free_energy_gap, optimal_free_energy
from fe_posttrain.theory.kl import KL_ESTIMATORS

LENGTH, END = 4, 3  # letters are 0, 1, 2 and END ends a word
ROWS = sum(END**t for t in range(LENGTH))  # one row of logits for each beginning of a word
IN_LOSS = [name for name, estimator in KL_ESTIMATORS.items() if estimator.placement == "loss"]
ESTIMATORS = ["sequence", "sequence_to_go", *IN_LOSS]
BRAILLE = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # dots of a cell, by column and row


@dataclass(frozen=True)
class Words:
    """Drawn or enumerated words: rows of the table that each token was drawn from, the tokens, the mask; (N, T)."""

    node: Tensor
    token: Tensor
    mask: Tensor

    @classmethod
    def all(cls) -> "Words":
        spelled = [word for size in range(LENGTH + 1) for word in product(range(END), repeat=size)]
        token = torch.tensor([(word + (END,) * LENGTH)[:LENGTH] for word in spelled])
        node, mask = torch.zeros_like(token), torch.ones_like(token, dtype=torch.bool)
        for t in range(1, LENGTH):
            mask[:, t] = mask[:, t - 1] & (token[:, t - 1] != END)
            node[:, t] = torch.where(mask[:, t], node[:, t - 1] * END + token[:, t - 1] + 1, 0)
        return cls(node, token, mask)

    @classmethod
    def drawn(cls, table: Tensor, count: int, generator: torch.Generator) -> "Words":
        probabilities, node = table.softmax(-1), torch.zeros(count, dtype=torch.long)
        alive, columns = torch.ones(count, dtype=torch.bool), []
        for _ in range(LENGTH):
            token = torch.multinomial(probabilities[node], 1, generator=generator)[:, 0]
            columns.append((node, token, alive))
            alive = alive & (token != END)
            node = torch.where(alive, node * END + token + 1, 0).clamp(max=len(table) - 1)
        return cls(*(torch.stack(parts, dim=1) for parts in zip(*columns, strict=True)))

    def log_probs(self, table: Tensor) -> Tensor:
        """Log-prob of each token, (N, T), zero where masked."""
        return torch.where(self.mask, table.log_softmax(-1)[self.node, self.token], 0.0)

    def reward(self) -> Tensor:
        """1 for a palindrome of three letters or more, else 0; (N,)."""
        letters, t = (self.mask & (self.token != END)).sum(-1), self.token.T
        three = (letters == 3) & (t[0] == t[2])
        four = (letters == 4) & (t[0] == t[3]) & (t[1] == t[2])
        return (three | four).double()


def loss_of(estimator: str, words: Words, table: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Loss of one group of sampled words under the named estimator."""
    log_pi, log_ref = words.log_probs(table), words.log_probs(reference)
    log_ratio, settings = (log_pi - log_ref).detach(), {"group_size": len(words.token)}
    if estimator == "sequence_to_go":
        advantages, _ = sum_to_go_advantages(words.reward(), log_ratio, beta=beta, **settings)
        return -(advantages * log_pi).sum(-1).mean()
    in_reward = beta if estimator == "sequence" else 0.0
    advantages, _ = sequence_advantages(words.reward(), log_ratio.sum(-1), beta=in_reward, **settings)
    loss = -(advantages * log_pi.sum(-1)).mean()
    if estimator in KL_ESTIMATORS:
        loss = loss + beta * KL_ESTIMATORS[estimator].surrogate(log_pi, log_ref, words.mask).mean()
    return loss


class World:
    """The exact quantities, from all 121 words."""

    def __init__(self, reference: Tensor, beta: float) -> None:
        self.words, self.beta = Words.all(), beta
        self.energy = -self.words.reward()
        self.log_ref = self.words.log_probs(reference).sum(-1)
        self.optimum = float(optimal_free_energy(self.log_ref, self.energy, beta=beta))
        self.p_reference = float(self.log_ref.exp()[self.energy < 0].sum())
        self.p_optimum = float(bernoulli_optimum(self.p_reference, beta=beta))

    def measure(self, step: int, table: Tensor) -> dict[str, float]:
        log_pi = self.words.log_probs(table.detach()).sum(-1)
        terms = exact_free_energy(log_pi, self.log_ref, self.energy, beta=self.beta)
        gap = free_energy_gap(log_pi, self.log_ref, self.energy, beta=self.beta)
        return {
            "step": step,
            "F": float(terms.total),
            "gap": float(gap),
            "KL": float(terms.kl),
            "p": float(log_pi.exp()[self.energy < 0].sum()),
        }


def chart(history: list[dict[str, float]], optimum: float, steps: int, width: int, height: int) -> Text:
    """F over steps in braille dots, and the dashed line that it falls onto."""
    values = [point["F"] for point in history]
    margin = 0.08 * (max(values) - optimum)
    top, bottom = max(values) + margin, min(*values, optimum) - margin
    scale_x, scale_y = (2 * width - 1) / steps, (4 * height - 1) / (top - bottom)
    dots: dict[tuple[int, int], int] = {}
    for before, after in pairwise(history):
        for part in range(32):
            step, value = (before[key] + (after[key] - before[key]) * part / 32 for key in ("step", "F"))
            x, y = round(step * scale_x), round((top - value) * scale_y)
            cell = (y // 4, x // 2)
            dots[cell] = dots.get(cell, 0) | BRAILLE[x % 2][y % 4]
    text, line = Text(), round((top - optimum) * scale_y) // 4
    for row in range(height):
        on_line = row == line
        label = optimum if on_line else top - (4 * row + 2) / scale_y
        text.append(f"{label:7.3f} ", "bold yellow" if on_line else "dim")
        row_dots = [dots.get((row, column), 0) for column in range(width)]
        for drawn, cells in groupby(row_dots, key=bool):
            empty = "╌" if on_line else " "
            text.append("".join(chr(0x2800 + c) if c else empty for c in cells), "cyan" if drawn else "yellow")
        text.append("\n")
    return text


def picture(history: list[dict[str, float]], world: World, arguments: argparse.Namespace, width: int) -> Panel:
    """The chart with the numbers of the last point below it."""
    now, first = history[-1], history[0]
    numbers = Table.grid(padding=(0, 2))
    numbers.add_row(
        f"[dim]step[/] {now['step']:>5}",
        f"[dim]F[/] [bold cyan]{now['F']:.4f}[/]",
        f"[dim]F*[/] [bold yellow]{world.optimum:.4f}[/]",
        f"[dim]gap[/] [bold]{now['gap']:.5f}[/] [dim]({now['gap'] / first['gap']:.1%})[/]",
    )
    numbers.add_row(
        f"[dim]beta[/] {world.beta:>5}",
        f"[dim]KL[/] {now['KL']:.3f} nats",
        f"[dim]p(correct)[/] {first['p']:.3f} → [bold green]{now['p']:.4f}[/]",
        f"[dim]at F*[/] [green]{world.p_optimum:.4f}[/]",
    )
    body = Group(chart(history, world.optimum, arguments.steps, width - 13, 14), numbers)
    title = f"[bold]free energy of a tabular policy[/]  [dim]estimator[/] [bold]{arguments.estimator}[/]"
    subtitle = "[dim]F* = -beta log Z[/]"
    return Panel(body, title=title, subtitle=subtitle, width=width, border_style="dim")


def train(world: World, arguments: argparse.Namespace, reference: Tensor) -> Iterator[dict[str, float]]:
    """Descend with samples only; yield the exact numbers about 60 times."""
    generator = torch.Generator().manual_seed(arguments.seed)
    table = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=arguments.learning_rate, foreach=False)
    for step in range(arguments.steps):
        if step % max(1, arguments.steps // 60) == 0:
            yield world.measure(step, table)
        optimizer.param_groups[0]["lr"] = arguments.learning_rate * (1 - step / arguments.steps)
        words = Words.drawn(table.detach(), arguments.group_size, generator)
        table.grad = None
        loss_of(arguments.estimator, words, table, reference, world.beta).backward()
        optimizer.step()
    yield world.measure(arguments.steps, table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beta", type=float, default=0.25, help="temperature, energy units per nat (default .25)")
    parser.add_argument("--steps", type=int, default=1200, help="gradient steps (default 1200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the reference and of the samples")
    parser.add_argument("--group-size", type=int, default=16, help="G, words drawn a step (default 16)")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="falls linearly to 0 (default .05)")
    parser.add_argument("--estimator", choices=ESTIMATORS, default="sequence", help="how KL enters the gradient")
    arguments = parser.parse_args()
    if arguments.beta <= 0 or arguments.steps < 1 or arguments.group_size < 2:
        parser.error("--beta must be positive, --steps at least 1, --group-size at least 2")

    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    reference = torch.randn(ROWS, END + 1, generator=torch.Generator().manual_seed(arguments.seed))
    world, history, console = World(reference, arguments.beta), [], Console()
    width = min(console.width, 100)
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        for point in train(world, arguments, reference):
            history.append(point)
            if live:
                live.update(picture(history, world, arguments, width), refresh=True)
            elif len(history) % 6 == 1:
                print("  ".join(f"{key} {value:.5g}" for key, value in point.items()))
    rest = point["gap"] / history[0]["gap"]
    print(
        f"F = {point['F']:.5f}, -beta log Z = {world.optimum:.5f}: {rest:.2%} of the initial gap remains. "
        f"p(correct) = {point['p']:.4f}, bernoulli optimum {world.p_optimum:.4f}."
    )


if __name__ == "__main__":
    main()
