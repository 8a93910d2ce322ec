"""Alarms about what a run is for: prompts that are no longer solved, a reward that rises without what it stands for.

As in `drift_alarms`, each sees every logged row and answers with a `Finding`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fe_posttrain.training.drift_alarms import SUCCESS
from fe_posttrain.training.series import ROWS, Finding, Series

GAIN_HIGH = "probe/gain_high"  # upper end of support/gain, from the event of the probe


@dataclass
class SupportCollapse:
    """Prompts that were solved are not any more: among the rollouts, or certified at probes.

    Fires when the share of prompts without a correct rollout, a mean of 24 rows, is above the lowest such mean by
    more than max(.25, 6 standard errors), or when `support/lost_low` is 10 points or more.
    """

    name: ClassVar[str] = "support_collapse"
    needs: ClassVar[str] = "support/zero_hit_prompts or support/lost_low: support: true"
    advice: ClassVar[str] = "lower learning_rate or raise beta; the probes' samples show which prompts went"
    rise: ClassVar[float] = 0.25  # a quarter of the prompts
    errors: ClassVar[float] = 6.0  # against the lowest of many windows, which luck has lowered
    lost: ClassVar[float] = 10.0  # points, certified; a healthy mixture was seen to pass through 3

    zero_hits: Series = field(default_factory=Series)
    lost_low: float = 0.0
    lost_at: int = 0

    def see(self, step: int, row: Mapping[str, float]) -> Finding | None:
        if "support/lost_low" in row:
            self.lost_low, self.lost_at = row["support/lost_low"], step
        if "support/zero_hit_prompts" in row:
            self.zero_hits.add(step, row["support/zero_hit_prompts"])
        elif "support/lost_low" not in row:
            return None
        if self._certified:
            return Finding(True, False, self.lost_low, self.lost, self.lost_at)
        kept = self.lost_low < self.lost / 2
        if not self.zero_hits.full:
            return Finding(False, kept, self.lost_low, self.lost, self.lost_at)
        value = self.zero_hits.mean - self.zero_hits.lowest
        threshold = max(self.rise, self.errors * self.zero_hits.se)
        return Finding(value > threshold, kept and value < threshold / 2, value, threshold, self.zero_hits.steps[0])

    @property
    def _certified(self) -> bool:
        return self.lost_low >= self.lost

    @property
    def what(self) -> str:
        if self._certified:
            return f"at least {self.lost_low:.0f} points of what the reference solves are lost on the probe prompts"
        return (
            f"{self.zero_hits.mean:.0%} of the prompts have no correct rollout, after {self.zero_hits.lowest:.0%} in "
            "the best stretch"
        )


@dataclass
class VerifierExploitation:
    """The training reward rises, and what it should stand for does not.

    d is the reward's rise (24 newest rows above the first 8) in units of its largest spread within a batch (of the
    start's it would be huge where the start is rare success). It is clear when d >= .5 and beyond 4 standard errors; a
    0/1 reward then gains about 50 d points. Fires while it is clear and

    * 24 rows running, the share of correct rollouts is up by less than 5 d points (never, where `support_signal` is
      the reward itself);
    * or two probes running, the upper end of the held-out gain is below 5 d points (`testbed/p` is such a probe);
    * or two probes running, .8 of what is correct also passes for another prompt (`support/guess_floor`).
    """

    name: ClassVar[str] = "verifier_exploitation"
    needs: ClassVar[str] = "a reward beside probes in mid-run (support_steps) or a support_signal of its own"
    advice: ClassVar[str] = "read the sampled completions and mend the reward before you go on"
    effect: ClassVar[float] = 0.5  # of a batch's spread: less may be the first easy things
    errors: ClassVar[float] = 4.0
    share: ClassVar[float] = 5.0  # points per d: a tenth of what the rise of a 0/1 reward would be
    guessed: ClassVar[float] = 0.8  # a balanced yes-or-no task, all of it right, has .5
    least_floor: ClassVar[float] = 0.05  # below, nothing was guessed
    running: ClassVar[tuple[int, int, int]] = (ROWS, 2, 2)

    reward: Series = field(default_factory=Series)
    correct: Series = field(default_factory=Series)
    spread: float = 0.0  # largest `reward_std`
    same: bool = True  # whether reward and share of correct rollouts are one number so far
    testbed_start: float = -1.0  # mean exact p; negative before it is known
    bound: float = 0.0
    still: list[int] = field(default_factory=lambda: [0, 0, 0])  # how long each of the three holds
    since: list[int] = field(default_factory=lambda: [0, 0, 0])
    shown: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def see(self, step: int, row: Mapping[str, float]) -> Finding | None:
        if "reward" in row:
            self.reward.add(step, row["reward"])
            self.spread = max(self.spread, row.get("reward_std", 0.0))
        if SUCCESS in row:
            self.correct.add(step, row[SUCCESS])
            self.same = self.same and abs(row[SUCCESS] - row.get("reward", row[SUCCESS])) < 1e-6
        gain = self._gain(row)
        if not self.reward.ready:
            return None
        d = self.reward.rise / self.spread if self.spread > 0 else 0.0
        clear = d >= self.effect and self.reward.rise > self.errors * self.reward.rise_se
        self.bound = self.share * d
        if SUCCESS in row and self.correct.ready:
            self._count(0, step, clear and 100 * self.correct.rise < self.bound, 100 * self.correct.rise)
        if gain is not None:
            self._count(1, step, clear and gain < self.bound, gain)
        floor = row.get("support/guess_floor")
        if floor is not None and self.correct.full:
            passing = min(1.0, floor / max(self.correct.mean, 1e-9))
            self._count(2, step, clear and passing >= self.guessed and floor > self.least_floor, passing)
        if gain is None and floor is None and (self.same or SUCCESS not in row):
            return None  # nothing that could speak against the reward
        kind = self._kind
        threshold = self.guessed if kind == 2 else self.bound
        return Finding(kind is not None, not any(self.still), self.shown[kind or 0], threshold, self.since[kind or 0])

    @property
    def _kind(self) -> int | None:
        return next((i for i in range(3) if self.still[i] >= self.running[i]), None)

    def _count(self, kind: int, step: int, holds: bool, shown: float) -> None:
        if holds and not self.still[kind]:
            self.since[kind] = step
        self.still[kind], self.shown[kind] = self.still[kind] + 1 if holds else 0, shown

    def _gain(self, row: Mapping[str, float]) -> float | None:
        """Upper end of the held-out gain in points, where this row tells one."""
        if "support/gain" in row:
            return row.get(GAIN_HIGH, row["support/gain"])
        exact = [value for key, value in row.items() if key.startswith("testbed/p/")]
        if not exact:
            return None
        mean = sum(exact) / len(exact)
        if self.testbed_start < 0:
            self.testbed_start = mean
        return 100 * (mean - self.testbed_start)

    @property
    def what(self) -> str:
        rest = (
            f"the share of correct rollouts changed by {self.shown[0]:+.0f} points",
            f"held-out prompts gained {self.shown[1]:+.0f} points at most",
            f"{self.shown[2]:.0%} of what is correct would also pass for another prompt",
        )[self._kind or 0]
        return f"the reward rose from {self.reward.start:.2f} to {self.reward.mean:.2f} while {rest}"
