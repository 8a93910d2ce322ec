"""What one finished run of a comparison measured, read off its run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fe_posttrain.support.gaps import kl_efficiency
from fe_posttrain.support.intervals import pass_at_k

SPENT = ("generated_tokens", "verifier_calls", "gradient_tokens", "forward_tokens", "updates", "demonstrations")
CERTIFIED = ("elicited", "created", "lost")
OBJECTIVE = tuple(  # keys of a recipe: two runs that agree on them descend one F
    "reward_energy_weight demonstration_energy_weight beta reward_energy_schedule demonstration_energy_schedule "
    "beta_schedule reference_resets reference_model_name_or_path gate reward_funcs reward_weights "
    "demonstration_projection demonstration_beta demonstration_shaping".split()
)


class Folder(Protocol):
    """What is read of a run folder; `view.reading.RunData` is one."""

    path: Any
    recipe: dict[str, Any]
    summary: dict[str, Any]
    probes: list[dict[str, Any]]


@dataclass(frozen=True)
class Round:
    """A probe round: hits and draws of M prompts (M,), KL(policy||reference) in nats per sequence."""

    step: int
    kl: float
    correct: NDArray
    drawn: NDArray

    @property
    def success(self) -> float:
        return float((self.correct / self.drawn).mean())

    def success_on(self, picked: NDArray) -> float:
        """The same over the prompts that a mask (M,) picks."""
        return float((self.correct / self.drawn)[picked].mean())


@dataclass(frozen=True)
class Measured:
    """A finished run.

    rounds: its probe rounds, before them the reference itself (step 0, KL 0). report: of the last round. account:
    what the run spent, and the policy's `parameters`. energies: F and its terms, each start and end; objective: the
    keys that say which F it is.
    """

    rounds: tuple[Round, ...]
    report: Mapping[str, Any]
    account: Mapping[str, float]
    energies: Mapping[str, Mapping[str, float]]
    objective: Mapping[str, Any]

    @property
    def last(self) -> Round:
        return self.rounds[-1]

    @property
    def key(self) -> tuple:
        """What its claims are relative to, beside the budget."""
        return tuple(self.report["key"][name] for name in ("reference", "decoding", "verifier"))

    @property
    def budget(self) -> int:
        return self.report["key"]["budget"]

    @property
    def prompts(self) -> Sequence[str]:
        return self.report["points"]["prompt"]

    def low(self, term: str) -> float:
        """Certified lower end of a term of the verdict, percentage points."""
        return self.report["verdict"][term]["low"]

    def families(self) -> dict[str, dict[str, float]]:
        """Of every family of probe prompts: `pass_1`, and certified lower ends as in `numbers`, each at alpha alone."""
        names = self.report["points"].get("family", [])
        found = {}
        for name, body in self.report.get("families", {}).items():
            picked = np.array([own == name for own in names])
            lows = {f"{term}_low": body["verdict"][term]["low"] for term in CERTIFIED}
            reached = {"reference": self.rounds[0].success_on(picked), "pass_1": self.last.success_on(picked)}
            found[name] = reached | lows
        return found

    @property
    def flops(self) -> float:
        """6 N for every token that a gradient went through, 2 N for every one generated or scored; N parameters."""
        passed = self.account["generated_tokens"] + self.account["forward_tokens"]
        return self.account["parameters"] * (6.0 * self.account["gradient_tokens"] + 2.0 * passed)

    def numbers(self, k: int) -> dict[str, float | None]:
        """Its row of the table; probabilities, percentage points, nats, counts, seconds; None where not measured."""
        last, reference = self.last, self.rounds[0]
        efficiency = float(kl_efficiency(last.success, reference.success, last.kl))
        return {
            "pass_1": last.success,
            "pass_k": float(pass_at_k(last.correct, last.drawn, k).mean()),
            "gain": self.report["verdict"]["gain"]["value"],
            **{f"{term}_low": self.low(term) for term in CERTIFIED},
            "free_energy": self.energies.get("total", {}).get("end"),
            "gap": self.energies.get("gap", {}).get("end"),
            "kl": last.kl,
            "kl_efficiency": efficiency if np.isfinite(efficiency) else None,
            **{name: self.account[name] for name in SPENT},
            "flops": self.flops,
            "train_seconds": self.account["train_seconds"],
        }


def measured(folder: Folder) -> Measured:
    """What the run in this folder measured.

    Raises:
        ValueError: it has no probe round with counts of every prompt, or no account of what it spent.
    """
    lacks = None
    if reason := folder.summary.get("support", {}).get("off"):
        lacks = f"tracking was switched off ({reason})"
    elif not folder.probes:
        lacks = "no probe round"
    elif "screened" not in folder.probes[-1]["report"]["points"]:
        lacks = "its probes do not tell the reference's counts of a fixed number of draws"
    elif missing := sorted({*SPENT, "parameters", "train_seconds"} - folder.summary.get("account", {}).keys()):
        lacks = f"summary.json has no account of {', '.join(missing)}"
    if lacks:
        raise ValueError(
            f"{folder.path}: {lacks}; a comparison needs what every run reached and spent; remove that folder and run "
            "it again, with support: true"
        )
    reports = [probe["report"] for probe in folder.probes]
    screened = reports[-1]["points"]["screened"]
    first = Round(0, 0.0, np.array(screened["correct"]), np.array(screened["drawn"]))
    rounds = [_round(report) for report in reports]
    return Measured(
        rounds=(first, *rounds),
        report=reports[-1] | {"ledger": folder.summary["support"].get("ledger", {})},
        account=folder.summary["account"],
        energies=folder.summary.get("free_energy", {}),
        objective={name: folder.recipe.get(name) for name in OBJECTIVE},
    )


def _round(report: Mapping[str, Any]) -> Round:
    points = report["points"]
    return Round(
        report["step"], report["kl"], np.array(points["correct"]["trained"]), np.array(points["drawn"]["trained"])
    )
