"""The catalogue of metrics: every number that a run logs, once. Tables, wandb and the report take its words.

Keys of `metrics.jsonl`, rows of one step each, plotted against `step` (in wandb: `train/` before them, against
`train/global_step`). A `*` in a name stands for what a recipe names: a family, a reward function, a label. Evaluation
logs the same numbers with `eval_` before them. What TRL and transformers log keeps their name and definition.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

STEP = "train/global_step"  # what everything in wandb is plotted against
UP, DOWN, ZERO = "up", "down", "to 0"


@dataclass(frozen=True)
class Metric:
    """One logged number.

    Args:
        name: its key; `*` for a part that a recipe names.
        unit: of its values; empty for plain numbers.
        meaning: its definition, in a sentence or two.
        goal: where a run wants it: `UP`, `DOWN`, `ZERO`, or empty for neither.
        group: a key of `GROUPS`.
        source: who logs it: trainer, support, testbed, alarms, TRL or transformers.
    """

    name: str
    unit: str
    meaning: str
    goal: str
    group: str
    source: str

    def matches(self, key: str) -> bool:
        """Whether a logged key is this metric, in training or in evaluation."""
        return _pattern(self.name).fullmatch(key.removeprefix("eval_")) is not None


GROUPS = {
    "objective": "Free energy and its terms",
    "testbed": "The testbed's exact values",
    "verdict": "Verdict and calls, at probes",
    "support": "Accessible support, on rollouts and at probes",
    "reward": "Rewards",
    "completions": "Completions and sampling",
    "alarms": "Alarms",
    "optimisation": "Optimisation",
    "throughput": "Throughput",
}


def _of(group: str, source: str, rows: Iterable[tuple[str, str, str, str]]) -> tuple[Metric, ...]:
    return tuple(Metric(name, unit, meaning, goal, group, source) for name, unit, goal, meaning in rows)


CATALOGUE: tuple[Metric, ...] = (
    *_of("objective", "trainer", (
        ("free_energy/total", "energy", DOWN, "F of the step: reward + demonstration + beta · (kl or "
         "demonstration_penalty), undivided"),
        ("free_energy/optimum", "energy", "", "F*, the least F that the step's prompts allow: mean of -beta log Z, "
         "exact where p_ref is known (column `reference_p`), beta > 0 and w_d = 0"),
        ("free_energy/gap", "energy", ZERO, "F - F* of the step's prompts, where F* is known; a sample mean, so it "
         "scatters around the true gap and may dip below 0"),
        ("free_energy/reward", "energy", DOWN, "w_r E[-reward] over the step's rollouts"),
        ("free_energy/demonstration", "energy", DOWN, "w_d E[-log pi], summed over tokens, averaged over the step's "
         "demonstrations"),
        ("free_energy/kl", "nats/sequence", "", "KL(pi ‖ reference), from the step's rollouts"),
        ("free_energy/demonstration_penalty", "nats²/sequence", "", "mean of l²/2 over the step's demonstrations, "
         "l = log pi - log reference of a whole one (`kl_sampler: demonstrations`)"),
        ("free_energy/beta", "energy/nat", "", "beta in force"),
        ("gate/reward", "", "", "mean factor that the gate gives to the reward of the step's rollouts"),
        ("gate/demonstration", "", "", "mean factor that it gives to the demonstrations of the step's prompts"),
        ("failure_buffer/size", "demonstrations", DOWN, "demonstrations of failed prompts that wait to be trained on "
         "(`failure_buffer`)"),
        ("failure_buffer/steps", "steps", "", "optimizer steps that the buffer has made since the start, beside the "
         "run's own"),
        ("failure_buffer/loss", "energy", DOWN, "w_d E[-log pi], summed over tokens, averaged over the demonstrations "
         "that the buffer read after this step; only where it read some"),
    )),
    *_of("objective", "support", (
        ("support/free_energy", "energy", DOWN, "F on the probe prompts, w_r p_t taken from their draws: of a 0/1 "
         "reward, with beta > 0 and w_d = 0"),
        ("support/optimum_low", "energy", "", "least that F* of the probe prompts can be: -beta log Z at "
         "upper bounds on each p_ref that hold together"),
        ("support/optimum_high", "energy", "", "most that it can be, at lower bounds on p_ref"),
    )),
    *_of("testbed", "testbed", (
        ("testbed/p/*", "probability", UP, "exact mean p of a family's held-out prompts, every `probe_steps` steps"),
        ("testbed/kl/*", "nats/sequence", "", "exact KL(pi ‖ reference) of the same prompts, at start and end; misses "
         "at most what lies below prefixes of probability 1e-5"),
        ("testbed/gap/*", "energy", ZERO, "exact F - F* of the same prompts, at start and end"),
    )),
    *_of("verdict", "support", (
        ("support/gain", "points", UP, "mean of p_t - p_ref over the probe prompts"),
        ("support/elicited_low", "points", "", "certified lower end of the gain that B draws of the reference reach"),
        ("support/created_low", "points", "", "certified lower end of the gain out of reach of B draws"),
        ("support/lost_low", "points", DOWN, "certified lower end of what the reference solves more often"),
        ("support/undetermined", "points", "", "gain - elicited - created + lost: what no bound certifies as either"),
        ("support/calls/*", "prompts", "", "prompts in each regime; SIDE/REGIME, SIDE is `reference` or `trained`"),
        ("support/entered", "prompts", UP, "prompts that came into the support since the last probes"),
        ("support/left", "prompts", DOWN, "prompts that left the support since the last probes"),
        ("support/jaccard_low", "share", UP, "least that the supports of reference and policy can overlap, as far as "
         "is known"),
        ("support/jaccard_high", "share", "", "most that they can"),
        ("support/labels/*", "share", "", "share of the policy's probe draws that your labelling function calls so"),
    )),
    *_of("support", "support", (
        ("support/correct", "share", UP, "share of correct rollouts"),
        ("support/zero_hit_prompts", "share", DOWN, "share of the step's prompts without a correct rollout"),
        ("support/ledger_in", "share", "", "share of the step's prompts that the *ledger* has certified in the "
         "support: a lower bound on p_ref from rollouts that training makes anyway. A correct rollout of the sampler q "
         "counts ref(y)/q(y), a wrong one 0. It says \"in\", never \"out\""),
        ("support/displacement", "nats", "", "ln(P_t / P_{t-k}), P the mean of p over prompts: how far k updates "
         "moved it"),
        ("support/displacement_rms", "nats", "", "root mean square of the windows so far, from two halves of the rows, "
         "in which noise cancels"),
        ("support/closure", "nats", ZERO, "sum of displacements less the ln-ratio of P at both ends, by probes: 0 when "
         "both tell one story"),
        ("support/outside_mass", "share", "", "share of correct rollouts with ln(pi/ref) > ln B: those that B draws of "
         "the reference would hardly show in this very wording"),
        ("support/excess_kl", "nats/sequence", "", "KL(pi, ref) among correct completions: probability moved without "
         "any gain; past about ln(N p) + 2 the ledger grows weak"),
        ("support/kl_efficiency", "share", UP, "the KL that the rise of p needs at least, over the KL spent, 0 to 1"),
        ("support/gap_jarzynski", "energy", ZERO, "estimate of F - F* by Jarzynski's equality"),
        ("support/gap_cumulant", "energy", ZERO, "estimate of F - F* by the second cumulant; where the two differ by "
         "more than beta (a nat), believe neither"),
        ("support/bar_df", "nats", ZERO, "the BAR check: both models are normalised, so their free-energy difference "
         "must come out as 0. If it fails, the log-weights are wrong, what rests on them is void and nothing is "
         "certified. \"not checked\" is not \"passed\""),
        ("support/guess_floor", "share", DOWN, "how often an answer passes as that of *another* prompt; high, "
         "\"correct\" says little"),
        ("support/probe_kl", "nats/sequence", "", "mean ln(pi/ref) of the policy's probe draws: KL on held-out "
         "prompts"),
    )),
    *_of("reward", "TRL", (
        ("reward", "reward", UP, "mean weighted reward of the step's rollouts"),
        ("reward_std", "reward", "", "its standard deviation over the batch"),
        ("frac_reward_zero_std", "share", DOWN, "share of groups in which every reward is the same: no signal"),
        ("rewards/*/mean", "reward", UP, "mean of one reward function"),
        ("rewards/*/std", "reward", "", "its standard deviation"),
    )),
    *_of("reward", "trainer", (
        ("rewards/*/faults", "rows", ZERO, "rows that this reward failed on and that were left out, since the start "
         "(`reward_fault_policy: mask`)"),
    )),
    *_of("completions", "TRL", (
        ("kl", "nats/token", "", "TRL's k3 estimate of the KL, a mean per *token*"),
        ("entropy", "nats/token", "", "entropy of the policy's next-token distribution, mean per token"),
        ("completions/mean_length", "tokens", "", "length of completions"),
        ("completions/min_length", "tokens", "", "the shortest one"),
        ("completions/max_length", "tokens", "", "the longest one"),
        ("completions/clipped_ratio", "share", DOWN, "share of completions that were cut off without an end token"),
        ("completions/mean_terminated_length", "tokens", "", "length of completions that ended"),
        ("completions/min_terminated_length", "tokens", "", "the shortest of those"),
        ("completions/max_terminated_length", "tokens", "", "the longest of those"),
        ("clip_ratio/low_mean", "share", "", "share of tokens whose ratio is clipped from below"),
        ("clip_ratio/low_min", "share", "", "its minimum over processes"),
        ("clip_ratio/high_mean", "share", "", "share of tokens whose ratio is clipped from above"),
        ("clip_ratio/high_max", "share", "", "its maximum over processes"),
        ("clip_ratio/region_mean", "share", "", "share of tokens that are clipped at all"),
        ("cispo_clip_ratio", "share", "", "share of tokens that `loss_type: cispo` clips"),
        ("vespo/phi_seq_mean", "", "", "mean sequence weight under `loss_type: vespo`"),
        ("sampling/sampling_logp_difference/mean", "nats/token", ZERO, "difference between vLLM's log-probs and the "
         "trainer's"),
        ("sampling/sampling_logp_difference/max", "nats/token", ZERO, "its maximum"),
        ("sampling/importance_sampling_ratio/min", "", "", "least correction ratio between trainer and vLLM"),
        ("sampling/importance_sampling_ratio/mean", "", "", "its mean"),
        ("sampling/importance_sampling_ratio/max", "", "", "its maximum"),
        ("tools/call_frequency", "calls/completion", "", "tool calls per completion"),
        ("tools/failure_frequency", "share", DOWN, "share of tool calls that fail"),
    )),
    *_of("completions", "trainer", (
        ("prefix/share", "share", "", "share of a demonstration that rollouts may start with, in force"),
        ("prefix/tokens", "tokens", "", "mean length of these starts over the rollouts that may have one "
         "(`prefix_rollouts`); lengths of completions count what follows"),
    )),
    *_of("alarms", "alarms", (
        ("alarms/*", "count", ZERO, "how often this alarm has gone off so far; logged once the run logs what the alarm "
         "looks at"),
    )),
    *_of("optimisation", "transformers", (
        ("loss", "", "", "what was descended: F over its divisor, without its constant part, in RL a surrogate whose "
         "value means little"),
        ("grad_norm", "", "", "norm of the gradient before clipping"),
        ("learning_rate", "", "", "learning rate of the step"),
        ("epoch", "epochs", "", "passes over the training rows"),
        ("train_loss", "", "", "mean loss of the whole run, in its last row"),
    )),
    *_of("optimisation", "TRL", (
        ("policy_loss", "", "", "the policy's part of the loss where an entropy bonus is added"),
        ("entropy_coef", "", "", "coefficient of TRL's adaptive entropy bonus"),
        ("aux_loss", "", "", "load-balancing loss of a mixture of experts"),
        ("mean_token_accuracy", "share", UP, "share of demonstrated tokens that are the most likely ones"),
    )),
    *_of("throughput", "TRL", (
        ("num_tokens", "tokens", "", "tokens processed since the start"),
        ("step_time", "s", DOWN, "time of a step"),
    )),
    *_of("throughput", "transformers", (
        ("runtime", "s", "", "time of an evaluation"),
        ("samples_per_second", "rows/s", UP, "rows per second of an evaluation"),
        ("steps_per_second", "steps/s", UP, "batches per second of an evaluation"),
        ("train_runtime", "s", "", "time of the whole run, in its last row"),
        ("train_samples_per_second", "rows/s", UP, "rows per second of the whole run"),
        ("train_steps_per_second", "steps/s", UP, "steps per second of the whole run"),
        ("total_flos", "FLOP", "", "floating-point operations, as transformers estimates them"),
        ("num_input_tokens_seen", "tokens", "", "tokens seen (`include_num_input_tokens_seen`)"),
    )),
)  # fmt: skip


def find(key: str) -> Metric | None:
    """The metric of a logged key, or None; the key as in `metrics.jsonl`."""
    return next((metric for metric in CATALOGUE if metric.matches(key)), None)


def named(name: str) -> Metric:
    """The metric of a name of the catalogue.

    Raises:
        KeyError: there is none.
    """
    return _BY_NAME[name]


def in_wandb(key: str) -> str:
    """The key under which wandb shows a logged key: as transformers' own callback would name it."""
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def table(groups: Iterable[str]) -> str:
    """Markdown: one table of the metrics of these groups."""
    found = [metric for group in groups for metric in CATALOGUE if metric.group == group]
    lines = ["| key | unit | goal | logged by | meaning |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| `{m.name}` | {m.unit} | {m.goal} | {m.source} | {m.meaning} |" for m in found)])


def filled(text: str) -> str:
    """A document with the tables between its marks `<!-- metrics: GROUP ... -->` and `<!-- end -->` made anew."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{table(found[2].split())}\n{found[3]}", text)


@cache
def _pattern(name: str) -> re.Pattern:
    return re.compile(".+".join(map(re.escape, name.split("*"))))


_MARKED = re.compile(r"(<!-- metrics: ([\w ]+) -->).*?(<!-- end -->)", re.DOTALL)
_BY_NAME = {metric.name: metric for metric in CATALOGUE}
