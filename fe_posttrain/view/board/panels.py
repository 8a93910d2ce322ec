"""What the wandb dashboard shows, as data: twelve panels in the order in which a person asks.

Names are those of the catalogue, which gives each its unit and meaning; `workspace` and `report` are both made from
this.
"""

import re
from dataclasses import dataclass

from fe_posttrain.view.board.charts import ATTRIBUTION, REGIME_FLOW, SAMPLES
from fe_posttrain.view.catalogue import Metric, in_wandb, named


@dataclass(frozen=True)
class Panel:
    """One panel: lines over the steps, or what a run logs under `key`.

    Args:
        heading: in words.
        says: what to look for.
        metrics: names of the catalogue. They are drawn, or, beside a `key`, explain what is.
        evaluated: names of the catalogue whose values in evaluation are drawn too.
        log: logarithmic y axis; values of 0 and less are then not drawn.
        key: of a chart or a table, see `charts`.
    """

    heading: str
    says: str
    metrics: tuple[str, ...]
    evaluated: tuple[str, ...] = ()
    log: bool = False
    key: str = ""

    @property
    def explained(self) -> tuple[Metric, ...]:
        return tuple(map(named, self.metrics))

    @property
    def unit(self) -> str:
        """Units of the y axis, each once."""
        units = dict.fromkeys(named(name).unit for name in (*self.metrics, *self.evaluated))
        return ", ".join(filter(None, units))

    @property
    def lines(self) -> tuple[str, ...]:
        """Keys of the lines in wandb, `*` for the parts that a recipe names."""
        return (*map(in_wandb, self.metrics), *(in_wandb(f"eval_{name}") for name in self.evaluated))

    @property
    def pattern(self) -> str | None:
        """A regular expression for all of the lines, where one of their names has a `*`."""
        if not any("*" in line for line in self.lines):
            return None
        return f"^({'|'.join('.+'.join(map(re.escape, line.split('*'))) for line in self.lines)})$"


PANELS = (
    Panel(
        "Free energy and its optimum",
        "Does F fall, and how far is it still from the least it can be? The optimum and the gap are drawn where they "
        "are known: rollouts with the column `reference_p`, beta > 0, no demonstrations. At probes of a 0/1 reward, F "
        "on the probe prompts and the ends between which its optimum lies.",
        (
            "free_energy/total",
            "free_energy/optimum",
            "free_energy/gap",
            "support/free_energy",
            "support/optimum_low",
            "support/optimum_high",
        ),
    ),
    Panel(
        "Terms of the free energy",
        "What F is made of. The third term is beta · KL, whose factors are in the next panel.",
        ("free_energy/reward", "free_energy/demonstration"),
    ),
    Panel(
        "KL and beta",
        "How far the policy has moved from the reference, and the price of moving. The axis is logarithmic.",
        ("free_energy/kl", "free_energy/demonstration_penalty", "support/probe_kl", "free_energy/beta"),
        log=True,
    ),
    Panel(
        "Accuracy",
        "Does it solve more? Exact on the testbed, the share of correct rollouts in RL, of correct tokens in SFT, and "
        "the mean reward where a run evaluates.",
        ("testbed/p/*", "support/correct", "mean_token_accuracy"),
        evaluated=("reward",),
    ),
    Panel(
        "Where the gain came from",
        "The verdict at each probe round. The three lower ends are certified; the gain is what was measured.",
        ("support/gain", "support/elicited_low", "support/created_low", "support/lost_low", "support/undetermined"),
    ),
    Panel(
        "Displacement",
        "How far the last updates moved what the policy reaches.",
        ("support/displacement", "support/displacement_rms", "support/closure"),
    ),
    Panel(
        "Regimes, before and now",
        "Rows are the regimes before training, columns those at the last probes; a prompt that is easier to reach now "
        "stands left of the diagonal. The last row and column count every prompt.",
        ("support/calls/*", "support/entered", "support/left"),
        key=REGIME_FLOW,
    ),
    Panel(
        "Attribution curve",
        "How much of the gain B draws of the reference would have shown, over B. It is drawn from plain shares and "
        "claims nothing; the verdict above does.",
        ("support/gain",),
        key=ATTRIBUTION,
    ),
    Panel(
        "Ledger",
        "For how many prompts training's own rollouts prove that the reference had them in reach.",
        ("support/ledger_in", "support/outside_mass"),
    ),
    Panel(
        "Throughput",
        "What a step costs, and what was processed so far. The axis is logarithmic.",
        ("step_time", "num_tokens"),
        log=True,
    ),
    Panel(
        "Samples",
        "Completions of the last probes or of some rollouts: energy, log-ratio ln(pi/ref) in nats, and the regime of "
        "the prompt. A correct completion with a large log-ratio is one that the reference would hardly have written.",
        ("support/outside_mass",),
        key=SAMPLES,
    ),
    Panel(
        "Health",
        "Is training itself well? A gradient that grows, an entropy that dies, groups without signal and completions "
        "that are cut off show first here.",
        (
            "alarms/*",
            "grad_norm",
            "entropy",
            "frac_reward_zero_std",
            "support/zero_hit_prompts",
            "completions/clipped_ratio",
            "rewards/*/faults",
        ),
    ),
)
