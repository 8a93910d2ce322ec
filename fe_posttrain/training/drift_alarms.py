"""Alarms about where a run is going: KL that nothing pays for, entropy and signal that are gone with nothing learned.

An alarm sees every logged row and answers with a `Finding`. It compares the median or mean of a window
(`series.Series`) with where the run began or with its own best, by margins in standard errors; of rewards, entropies
and KL no absolute scale is known. Why each threshold: beside it. How often healthy runs reach them:
`scripts/evidence.py alarms`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fe_posttrain.training.series import FIRST, Finding, Series

SUCCESS = "support/correct"  # share of correct rollouts: a truth that the reward need not be
SOME = 0.2  # of the reward's spread within a batch: less is no difference that anybody would act on
SURE = 5.0  # standard errors: the best of hundreds of overlapping windows is above the rest by less


@dataclass
class Progress:
    """Whether a run gets anywhere, by its reward, or by the share of correct rollouts where `prefers_success`."""

    prefers_success: bool = False
    worth: Series = field(default_factory=Series)
    spread: float = 0.0  # largest standard deviation within a batch
    by_success: bool = False

    def add(self, step: int, row: Mapping[str, float]) -> None:
        if self.worth.seen == 0:
            self.by_success = self.prefers_success and SUCCESS in row
        value = row.get(SUCCESS if self.by_success else "reward", math.nan)
        if math.isfinite(value):
            spread = math.sqrt(max(0.0, value * (1 - value))) if self.by_success else row.get("reward_std", 0.0)
            self.spread = max(self.spread, spread)
            self.worth.add(step, value)

    @property
    def stalled(self) -> bool:
        """Below the ceiling, and not above the start or below what the run had once.

        The ceiling is 1 for a share of correct rollouts and for a reward that never varied (what verifiers pay), else
        the reward of the best row.
        """
        worth, some = self.worth, SOME * self.spread
        if not worth.ready:
            return False
        ceiling = 1.0 if self.by_success or self.spread == 0 else worth.highest_row
        risen = worth.rise > max(worth.rise_se, 0.0)
        fallen = worth.mean < worth.highest - max(SURE * worth.se, some)
        return worth.mean < ceiling - some and (fallen or not risen)

    @property
    def words(self) -> str:
        name = "share of correct rollouts" if self.by_success else "reward"
        return f"{name} {self.worth.mean:.2f}, {self.worth.start:.2f} at the start"


@dataclass
class KLRunaway:
    """Nats of KL that nothing was got for.

    K is the mean KL of 16 rows, E that of the energy without KL (reward and demonstration terms). An anchor (K0, E0),
    KL 0 and the first row at the start, moves to the present when E has fallen since by 3 standard errors and by at
    least beta (K - K0), for then those nats were paid for, and when K falls below K0. K0 drifts towards K by 1/64 a
    row, so that only growth of some speed counts. Fires at K - K0 > max(10 nats, 1.5 K0, 5 standard errors of K).
    Where the reference is another model the KL starts where it starts: K0 = inf becomes the first mean.
    """

    name: ClassVar[str] = "kl_runaway"
    needs: ClassVar[str] = "free_energy/kl: rollouts and beta > 0"
    advice: ClassVar[str] = "lower learning_rate or raise beta, and start again from a checkpoint before that step"
    rows: ClassVar[int] = 16  # KL depends on which prompts a step holds: fewer jump, more answer late
    floor: ClassVar[float] = 10.0  # nats: the policy's completions are e^10 times rarer in the reference
    ratio: ClassVar[float] = 1.5  # a plateau wanders by less than that of itself
    drift: ClassVar[float] = 1 / 64

    kl: Series = field(default_factory=lambda: Series(KLRunaway.rows))
    energy: Series = field(default_factory=lambda: Series(KLRunaway.rows))
    level: float = 0.0
    paid_energy: float = 0.0
    paid_se: float = 0.0
    since: int = 0

    def see(self, step: int, row: Mapping[str, float]) -> Finding | None:
        if "free_energy/kl" not in row:
            return None
        self.kl.add(step, row["free_energy/kl"])
        self.energy.add(step, row.get("free_energy/reward", 0.0) + row.get("free_energy/demonstration", 0.0))
        if self.kl.seen < FIRST:
            return None
        kl = self.kl.mean
        if self.kl.seen == FIRST:
            self.since, self.paid_energy = self.kl.steps[0], self.energy.first[0]
            self.level = kl if math.isinf(self.level) else self.level
            self.paid_se = self.energy.se * math.sqrt(FIRST)  # of one row
        elif kl < self.level or self._paid(kl, row.get("free_energy/beta", 0.0)):
            self.level, self.since = kl, step
            self.paid_energy, self.paid_se = self.energy.mean, self.energy.se
        self.level += self.drift * (kl - self.level)
        value, threshold = kl - self.level, max(self.floor, self.ratio * self.level, SURE * self.kl.se)
        return Finding(value > threshold, value < threshold / 2, value, threshold, self.since)

    def _paid(self, kl: float, beta: float) -> bool:
        fall = self.paid_energy - self.energy.mean
        return fall > max(3 * math.hypot(self.energy.se, self.paid_se), beta * (kl - self.level))

    @property
    def what(self) -> str:
        return (
            f"KL(policy ‖ reference) grew from {self.level:.1f} to {self.kl.mean:.1f} nats per sequence, and reward "
            "and demonstrations got no better for it"
        )


@dataclass
class EntropyCollapse:
    """The policy has become deterministic and gained nothing by it.

    Fires when the median entropy per token of 24 rows is below a tenth of the first 8 rows' mean while
    `Progress.stalled`, by the share of correct rollouts where it is measured. A run that converges loses its entropy
    too, and has something to show for it.
    """

    name: ClassVar[str] = "entropy_collapse"
    needs: ClassVar[str] = "entropy and reward: rollouts"
    advice: ClassVar[str] = "lower learning_rate or raise beta, and start again from a checkpoint before that step"
    ratio: ClassVar[float] = 0.1  # nine of ten nats of choice are gone

    entropy: Series = field(default_factory=Series)
    progress: Progress = field(default_factory=lambda: Progress(prefers_success=True))

    def see(self, step: int, row: Mapping[str, float]) -> Finding | None:
        if not {"entropy", "reward"} <= row.keys():
            return None
        self.entropy.add(step, row["entropy"])
        self.progress.add(step, row)
        if not (self.entropy.ready and self.progress.worth.ready):
            return None
        value, threshold = self.entropy.median, self.ratio * self.entropy.start
        stalled = self.progress.stalled
        over = value > 2 * threshold or not stalled
        return Finding(value < threshold and stalled, over, value, threshold, self.entropy.steps[0])

    @property
    def what(self) -> str:
        return (
            f"entropy per token fell from {self.entropy.start:.3g} to {self.entropy.median:.3g} nats with nothing to "
            f"show for it ({self.progress.words})"
        )


@dataclass
class ZeroSignal:
    """The reward teaches nothing: within every group all completions are paid the same, below the ceiling.

    Fires when `frac_reward_zero_std`, a mean of 24 rows, is .98 or more while `Progress.stalled`. Steps with
    demonstrations do not count: those teach.
    """

    name: ClassVar[str] = "zero_signal"
    needs: ClassVar[str] = "frac_reward_zero_std and reward: rollouts without demonstrations"
    advice: ClassVar[str] = "give easier prompts, a graded reward, more num_generations, or demonstrations"
    share: ClassVar[float] = 0.98  # one group in fifty still teaches, slowly

    without: Series = field(default_factory=Series)
    progress: Progress = field(default_factory=Progress)

    def see(self, step: int, row: Mapping[str, float]) -> Finding | None:
        if not {"frac_reward_zero_std", "reward"} <= row.keys() or "free_energy/demonstration" in row:
            return None
        self.without.add(step, row["frac_reward_zero_std"])
        self.progress.add(step, row)
        if not (self.without.ready and self.progress.worth.ready):
            return None
        value, stalled = self.without.mean, self.progress.stalled
        over = value < self.share - 0.05 or not stalled
        return Finding(value >= self.share and stalled, over, value, self.share, self.without.steps[0])

    @property
    def what(self) -> str:
        return (
            f"in {self.without.mean:.0%} of the groups every completion got the same reward, so that it teaches "
            f"nothing ({self.progress.words})"
        )
