"""Probe rounds: fresh draws of the policy on held-out prompts, against the reference's bank."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.support.bridges import bar, effective_sample_size, psis_khat
from fe_posttrain.support.budgets import Key, ladder_with, threshold
from fe_posttrain.support.calls import OUT, Evidence, jaccard, membership, regimes, transitions
from fe_posttrain.support.evidence import anytime_lower_bound, anytime_upper_bound, log_e_above, log_e_below
from fe_posttrain.support.gaps import log_partition
from fe_posttrain.support.intervals import lower_bound, upper_bound
from fe_posttrain.support.ledger import Ledger
from fe_posttrain.support.verdict import Bounds, Halves, Verdict, verdict
from fe_posttrain.tracking.bank import Bank, Batch, Plan, cached, labelled
from fe_posttrain.tracking.channels import Channel, known_answers, opened_by, text_of
from fe_posttrain.tracking.drawing import Drawing
from fe_posttrain.tracking.signal import Signal, call, rows_hash

LEDGER_PARTS = 4  # a round's draws enter the ledger in so many parts, so that later ones bet on what earlier ones show
FLOOR_DRAWS = 4  # draws of a prompt that are judged against another prompt's answer
CHANNEL_DRAWS = 64


def key_of(weights: str, decoding: Decoding, signal: Signal, budget: int, delta: float, alpha: float) -> Key:
    """The key of statements about these weights, drawn and judged so."""
    words = f"temperature {decoding.temperature:g}, at most {decoding.max_new_tokens} tokens"
    return Key(weights, words, signal.name, budget, delta, alpha)


@dataclass(frozen=True)
class Round:
    """One probe round: JSON values.

    step: optimizer steps made. correct: hits of each prompt in the first and the second half of its draws; drawn: of
    one half. kl: mean ln(pi/ref) of the draws, nats per sequence. bar: df, se and verdict of the density check.
    weights: of ref/pi over correct draws, the tail index k-hat (None: not checked; beyond .7 point estimates from
    weights are not to be believed, the ledger's bound is) and the effective share of the draws.
    guess_floor: how often a completion passes for another prompt. labels: label -> counts per prompt.
    """

    step: int
    correct: list[list[int]]
    drawn: int
    kl: float
    bar: dict
    weights: dict
    guess_floor: float
    labels: dict[str, list[int]]

    @property
    def halves(self) -> Halves:
        return Halves(np.array(self.correct), self.drawn)

    @property
    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        total = np.array(self.correct).sum(0)
        return total, np.full(total.shape, 2 * self.drawn)


class Probes:
    """Held-out prompts, what the reference makes of them, and the rounds of the policy so far.

    Args:
        rows: `prompt` and whatever columns the signal reads.
        labels: a function that labels completions; None for none.
    """

    def __init__(self, rows: Sequence[dict], drawing: Drawing, signal: Signal, labels, key: Key, seed: int = 0):
        self.rows, self.drawing, self.signal, self.labels, self.key = list(rows), drawing, signal, labels, key
        self.seed = seed
        self.ledger = Ledger(len(self.rows), key.budget, key.delta, key.alpha)
        self.rounds: list[Round] = []
        self.bank: Bank | None = None
        self.channels: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.demonstrated = np.zeros(len(self.rows), dtype=bool)
        self.singular = np.zeros(len(self.rows), dtype=bool)
        self.states: dict[int, np.ndarray] = {}
        self.at_start: np.ndarray | None = None

    def judged(self, model, rows: np.ndarray, *seed: object) -> Batch:
        """Draw, judge and label one completion for each of `rows`."""
        drawn = self.drawing.draw(model, rows, *seed)
        asked = [self.rows[i] for i in drawn.row]
        labels = call(self.labels, asked, drawn.completions, drawn.completion_ids) if self.labels else None
        correct = self.signal(asked, drawn.completions, drawn.completion_ids)
        return Batch(drawn.row, correct, labelled(labels, len(rows)), drawn.completion_ids, drawn.log_probs)

    @property
    def identity(self) -> dict[str, str]:
        """What the reference's draws depend on, beside how many are made."""
        return {
            "reference": self.key.reference,
            "decoding": repr(self.drawing.decoding),
            "verifier": self.signal.identity,
            "prompts": rows_hash(self.rows),
            "labels": Signal(self.labels).identity if self.labels else "",
        }

    def meet_reference(self, reference, screen: int, most: int, channels: Sequence[Channel], cache: Path) -> None:
        """Take the bank or draw it; try the channels where plain sampling is shut out, and look at known answers.

        Args:
            reference: model of the key's weights; every process calls this.
            screen, most: see `bank.Plan`.
        """
        key = self.key
        plan = Plan(screen, most, key.budget, key.delta, key.alpha)
        self.bank = bank = cached(
            self.identity, len(self.rows), plan, lambda *asked: self.judged(reference, *asked), cache
        )
        out = np.flatnonzero(bank.membership() == OUT)
        for channel in channels if len(out) else ():
            hits = channel.correct(reference, self.drawing, [self.rows[i] for i in out], CHANNEL_DRAWS, self.signal)
            correct, drawn = np.zeros(len(self.rows), dtype=int), np.zeros(len(self.rows), dtype=int)
            correct[out], drawn[out] = hits.sum(1), CHANNEL_DRAWS
            self.channels[channel.name] = (correct, drawn)
        answers = known_answers(self.rows)
        shown = [i for i, answer in enumerate(answers) if answer is not None]
        if shown:
            self.demonstrated[shown] = self.signal([self.rows[i] for i in shown], [answers[i] for i in shown])
            texts = {i: text for i in shown if self.demonstrated[i] and (text := text_of(answers[i])) is not None}
            self.singular[list(texts)] = [self.drawing.cannot_write(text) for text in texts.values()]
        for budget in ladder_with(self.key.budget):
            evidence = Evidence.of_counts(*bank.call_counts, budget, self.key.delta)
            self.states[budget] = membership(evidence, self.key.alpha)
        self.at_start = self.states[self.key.budget]

    def round(self, policy, reference, step: int, draws: int) -> tuple[Round, Batch, list[dict]]:
        """Draw, judge, score under the reference, and enter into the ledger; every process calls it.

        Returns the round, its draws, and some completions of both sides: of every prompt the first correct and the
        first wrong one, dicts of `row`, `model`, `completion`, `correct`, `log_ratio`.

        Args:
            policy: unwrapped.
            reference: a context manager that gives the reference model.
        """
        each = 2 * (draws // 2)
        rows = np.repeat(np.arange(len(self.rows)), each)
        found = self.judged(policy, rows, "probe", self.seed, step)
        kept_rows, kept_ids, kept_log = zip(*self.bank.samples, strict=True)
        kept_ratio = self.drawing.log_probs(policy, kept_rows, kept_ids) - np.array(kept_log)
        with reference() as model:
            log_reference = self.drawing.log_probs(model, rows, found.completion_ids)
        log_ratio = found.log_probs - log_reference
        check = bar(kept_ratio, log_ratio)
        hits = found.correct.reshape(len(self.rows), each)
        ratios = log_ratio.reshape(hits.shape)
        for part in np.array_split(np.arange(each), LEDGER_PARTS):
            if len(part):
                prompt = np.repeat(np.arange(len(self.rows)), len(part))
                self.ledger.update(prompt, hits[:, part].ravel(), -ratios[:, part].ravel())
        halves = Halves.in_order(hits)
        result = Round(
            step=step,
            correct=halves.correct.tolist(),
            drawn=halves.drawn,
            kl=float(log_ratio.mean()),
            bar={"df": check.df, "se": check.se if np.isfinite(check.se) else None, "verdict": check.verdict},
            weights=_spread(-log_ratio[found.correct]),
            guess_floor=self._guess_floor(found, each),
            labels={
                label: np.bincount(rows[[x == label for x in found.labels]], minlength=len(self.rows)).tolist()
                for label in sorted({x for x in found.labels if x is not None})
            },
        )
        self.rounds.append(result)
        shown = [
            *self._shown("reference", np.array(kept_rows), self.bank.samples_correct, kept_ids, kept_ratio),
            *self._shown("policy", rows, found.correct, found.completion_ids, log_ratio),
        ]
        return result, found, shown

    def _shown(self, model: str, rows: np.ndarray, correct: np.ndarray, ids: Sequence, ratio: np.ndarray) -> list[dict]:
        """Of every prompt the first correct and the first wrong completion."""
        first = np.sort(np.unique(2 * rows + correct, return_index=True)[1]).tolist()
        completions = self.drawing.completions(rows[first], [ids[i] for i in first])
        return [
            {
                "row": int(rows[i]),
                "model": model,
                "completion": completion,
                "correct": bool(correct[i]),
                "log_ratio": float(ratio[i]),
            }
            for i, completion in zip(first, completions, strict=True)
        ]

    def _guess_floor(self, found: Batch, each: int) -> float:
        """Completions of each prompt judged as answers to the prompt half the list away."""
        if len(self.rows) < 2:
            return float("nan")
        some = np.flatnonzero(np.arange(len(found.row)) % each < FLOOR_DRAWS)
        other = (found.row[some] + len(self.rows) // 2) % len(self.rows)
        ids = [found.completion_ids[i] for i in some]
        completions = self.drawing.completions(other, ids)
        return float(self.signal([self.rows[i] for i in other], completions, ids).mean())

    @property
    def trusts_ledger(self) -> bool:
        """Whether no density check has failed so far and the last one was conclusive."""
        return (
            bool(self.rounds)
            and all(r.bar["verdict"] != "failed" for r in self.rounds)
            and (self.rounds[-1].bar["verdict"] == "passed")
        )

    def reference_evidence(self) -> Evidence:
        """e-values of the reference: its own draws, with the ledger's where densities passed their check."""
        correct, drawn = self.bank.counts
        p = float(threshold(self.key.budget, self.key.delta))
        direct = Evidence.of_counts(correct, drawn, self.key.budget, self.key.delta)
        if not self.trusts_ledger:
            return direct
        return Evidence(
            self.ledger.log_combined(direct.inside, p),
            self.ledger.log_combined(direct.basin, max(0.1, p)),
            direct.outside,
        )

    def regimes(self, result: Round) -> dict[str, np.ndarray]:
        """Regime of every prompt on both sides."""
        key = self.key
        opened = opened_by(self.channels, self.demonstrated, key.budget, key.delta, key.alpha)
        trained = Evidence.of_counts(*result.totals, key.budget, key.delta)
        return {
            "reference": regimes(self.reference_evidence(), key.alpha, opened=opened, singular=self.singular),
            "trained": regimes(trained, key.alpha),
        }

    def free_energy(self, result: Round, weight: float, beta: float) -> dict[str, float]:
        """`free_energy` of the round and the ends between which its optimum lies, means over the prompts, energy units.

        F = -w p_t + beta KL of a 0/1 reward; F* = -beta ln Z of bounds on each p_ref that hold together at alpha/2.

        Args:
            weight: w_r times the reward's weight.
        """
        correct, drawn = self.bank.counts
        each = self.key.alpha / (4 * len(self.rows))
        ends = anytime_lower_bound(correct, drawn, each), anytime_upper_bound(correct, drawn, each)
        high, low = (-beta * float(log_partition(p, weight, beta).mean()) for p in ends)
        hits, tries = result.totals
        energy = -weight * float(hits.sum() / tries.sum()) + beta * result.kl
        return {"free_energy": energy, "optimum_low": low, "optimum_high": high}

    def verdict(self, result: Round, prompts: np.ndarray | None = None) -> Verdict:
        """The verdict of a round over all prompts, or those at indices `prompts`."""
        chosen = np.arange(len(self.rows)) if prompts is None else prompts
        key, m = self.key, len(chosen)
        correct, drawn = (count[chosen] for count in self.bank.counts)
        each = key.alpha / (4 * m)
        share = key.alpha / (12 * m)  # l_x holds at alpha/6: half by the reference's own draws, half by the ledger
        low = anytime_lower_bound(correct, drawn, share)
        if self.trusts_ledger:
            low = np.maximum(low, self.ledger.lower_bound(share)[chosen])
        hits, tries = (count[chosen] for count in result.totals)
        deep = np.flatnonzero(np.isin(chosen, self.bank.deep_prompts))
        return verdict(
            Halves.in_order(self.bank.screened[chosen]),
            Halves(result.halves.correct[:, chosen], result.drawn),
            budget=key.budget,
            alpha=key.alpha,
            reference_bounds=Bounds(
                anytime_lower_bound(correct, drawn, each), anytime_upper_bound(correct, drawn, each)
            ),
            trained_bounds=Bounds(lower_bound(hits, tries, each), upper_bound(hits, tries, each)),
            reference_low=low,
            deep=Halves.in_order(self.bank.deep[chosen[deep]]),
            deep_prompts=deep,
        )

    def movements(self, result: Round) -> dict[str, dict]:
        """Entries, exits and shared support at every budget of the ladder, and the states for the next round."""
        key, found = self.key, {}
        for budget, state in self.states.items():
            moved = transitions(state, *result.totals, budget, key.delta, key.alpha)
            before = membership(Evidence.of_counts(*self.bank.call_counts, budget, key.delta), key.alpha)
            after = membership(Evidence.of_counts(*result.totals, budget, key.delta), key.alpha)
            shared = jaccard(before, after)
            found[str(budget)] = {
                "entered": moved.entered.tolist(),
                "left": moved.left.tolist(),
                "exits_testable": moved.exits_testable,
                "jaccard": None if shared is None else list(shared),
            }
            self.states[budget] = moved.state
        return found

    def label_movements(self, result: Round, pooled: bool) -> dict[str, dict]:
        """Each label as a behaviour of its own: shares on both sides, and whether it entered or left the support."""
        key, found = self.key, {}
        p = float(threshold(key.budget, key.delta))
        none = np.zeros(len(self.rows), dtype=int)
        for label in sorted({*self.bank.labels, *result.labels}):
            counts = [np.array(side.get(label, none)) for side in (self.bank.labels, result.labels)]
            draws = [np.full(none.shape, n) for n in (self.bank.plan.screen, 2 * result.drawn)]
            if pooled:
                counts, draws = ([np.atleast_1d(x.sum()) for x in xs] for xs in (counts, draws))
            in_before = log_e_above(counts[0], draws[0], p) >= -np.log(key.alpha)
            gone = log_e_below(counts[1], draws[1], p / 4) >= -np.log(key.alpha)
            out_before = log_e_below(counts[0], draws[0], p) >= -np.log(key.alpha)
            in_after = log_e_above(counts[1], draws[1], p) >= -np.log(key.alpha)
            shares = [float(c.sum() / n.sum()) for c, n in zip(counts, draws, strict=True)]
            found[label] = {
                "reference": shares[0],
                "trained": shares[1],
                "units": len(counts[0]),
                "left": int((in_before & gone).sum()),
                "entered": int((out_before & in_after).sum()),
            }
        return found

    def opened(self) -> dict[str, int]:
        """How many prompts that are OUT under plain sampling each declared channel reaches."""
        names = opened_by(self.channels, self.demonstrated, self.key.budget, self.key.delta, self.key.alpha)
        out = self.bank.membership() == OUT
        shown = [name for name, shut in zip(names, out, strict=True) if shut and name]
        return {name: shown.count(name) for name in sorted(set(shown))}

    def state(self) -> dict:
        return {
            "rounds": [asdict(r) for r in self.rounds],
            "states": {str(budget): state.tolist() for budget, state in self.states.items()},
        }

    def load_state(self, kept: dict) -> None:
        self.rounds = [Round(**r) for r in kept["rounds"]]
        self.states = {int(budget): np.array(state) for budget, state in kept["states"].items()}


def _spread(log_weights: np.ndarray) -> dict[str, float | None]:
    """k-hat and the effective share of weights; None where there are too few."""
    if len(log_weights) == 0:
        return {"khat": None, "effective_share": None}
    khat = psis_khat(log_weights)
    share = effective_sample_size(log_weights) / len(log_weights)
    return {"khat": float(khat) if np.isfinite(khat) else None, "effective_share": float(share)}
