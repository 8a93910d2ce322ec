"""Named methods as settings of the one objective: `method: NAME` in a recipe stands for the keys below.

A preset sets what makes the method: weights of F, projections, gates, sampling. Learning rates, batch sizes, data and
budget are the recipe's own, and so is every key that the recipe writes beside `method`. `departures` says where a run
differs from the paper or its public code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One named method.

    Attributes:
        title: the name that its authors gave it.
        source: arXiv number, or None where it is older than papers about language models, or ours.
        idea: what it does, one sentence.
        settings: key of a recipe -> value.
        demonstrations: `none`, `stream` (rows of their own), or `paired` (the column `demonstration` of the prompts).
        asks: keys that a recipe must write beside it.
        departures: from the paper, one sentence each.
    """

    title: str
    source: str | None
    idea: str
    settings: Mapping[str, Any]
    demonstrations: str = "none"
    asks: tuple[str, ...] = ()
    departures: tuple[str, ...] = field(default=())


_REWARD = {"reward_energy_weight": 1.0, "demonstration_energy_weight": 0.0}
_DEMONSTRATIONS = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}
_BANK = {**_REWARD, "reward_projection": "forward", "forward_sampler": "bank"}
_NO_STD = "advantages are rewards less the mean of the others in the group: not divided by a standard deviation"
_ON_POLICY = "no ratio clipping: rollouts are used once, by the policy that drew them"
_DIVISOR = "every term is a sum over tokens over one constant, where the paper's two terms are normalised differently"

METHODS: dict[str, Method] = {
    "sft": Method(
        "SFT",
        None,
        "The negative log-likelihood of demonstrations; TRL's SFTTrainer, step for step.",
        _DEMONSTRATIONS,
        "stream",
    ),
    "sft_then_rl": Method(
        "SFT then RL",
        None,
        "Half the run SFT, then KL-regularised RL from the SFT model as reference, with a fresh optimizer.",
        {
            "reward_energy_weight": 0.0,
            "reward_energy_schedule": {"switch": {"final": 1.0, "until": 0.5}},
            "demonstration_energy_weight": 1.0,
            "demonstration_energy_schedule": {"switch": {"final": 0.0, "until": 0.5}},
            "beta": 0.0,
            "beta_schedule": {"switch": {"final": 0.02, "until": 0.5}},
            "reference_resets": [0.5],
        },
        "stream",
        departures=("the SFT half is divided by the run's one constant, not by its tokens",),
    ),
    "rl": Method(
        "KL-regularised RL (RLOO)",
        "2402.14740",
        "The free energy of reward and KL, descended by its exact gradient.",
        {**_REWARD, "beta": 0.05, "estimator": "sequence"},
    ),
    "grpo": Method(
        "GRPO as TRL ships it",
        "2402.03300",
        "TRL's step unchanged: advantages over the group's standard deviation, loss dapo, no KL.",
        {**_REWARD, "beta": 0.0, "estimator": "trl", "scale_rewards": "group", "loss_type": "dapo"},
    ),
    "dr_grpo": Method(
        "Dr. GRPO",
        "2503.20783",
        "Policy gradient without KL, without the standard deviation and with one constant divisor.",
        {**_REWARD, "beta": 0.0, "estimator": "sequence"},
        departures=(
            "the baseline is the mean of the other rollouts; the paper's includes the rollout itself",
            _ON_POLICY,
        ),
    ),
    "rejection_sampling_sft": Method(
        "Rejection-sampling SFT",
        None,
        "SFT on the reference's own draws that reach success_threshold: what RL is fairly compared with.",
        {**_BANK, "beta": 0.0, "bank_refresh_steps": 0},
    ),
    "raft": Method(
        "RAFT, iterated rejection sampling",
        "2304.06767",
        "The same with the draws made anew from the policy every `bank_refresh_steps` steps.",
        {**_BANK, "beta": 0.0, "bank_refresh_steps": 25},
        departures=("every draw that reaches success_threshold counts, where the paper takes the best of each prompt",),
    ),
    "gibbs_sft": Method(
        "Gibbs-weighted SFT (AWR, BOLT)",
        "2605.02469",
        "Draws of the reference weighted by e^{r/beta}/Z: forward projection of the target of KL-regularised RL.",
        {**_BANK, "beta": 0.05, "bank_refresh_steps": 0},
        departures=("pi/ref is taken off the weights: the same mean gradient, without noise at the optimum",),
    ),
    "luffy": Method(
        "LUFFY",
        "2504.14945",
        "One demonstration in a group of eight, with reward 1: its weight falls as the prompt is solved.",
        {
            "reward_energy_weight": 49 / 64,
            "demonstration_energy_weight": 7 / 64,
            "beta": 0.0,
            "gate": "failure_rate",
            "demonstration_shaping": {"shrinking": {"gamma": 0.1}},
            "num_generations": 7,
        },
        "paired",
        departures=(
            "the demonstration is a term of its own with the weight that it has in the group's mean, 7 (1 - p) / 64",
            _NO_STD,
            _ON_POLICY,
        ),
    ),
    "hpt": Method(
        "HPT",
        "2509.04419",
        "SFT on the demonstration of a prompt that no rollout solves, RL on the others.",
        {
            "reward_energy_weight": 1.0,
            "demonstration_energy_weight": 1.0,
            "beta": 0.0,
            "gate": {"threshold": {"solved_at_most": 0}},
        },
        "paired",
        departures=(_NO_STD, _DIVISOR),
    ),
    "chord_mu": Method(
        "CHORD-mu",
        "2508.11408",
        "SFT and RL with weights mu and 1 - mu: mu rises to .9, then falls to .05.",
        {
            "reward_energy_weight": 0.1,
            "reward_energy_schedule": {"cosine": {"initial": 1.0, "warmup": 0.1, "final": 0.95}},
            "demonstration_energy_weight": 0.9,
            "demonstration_energy_schedule": {"cosine": {"initial": 0.0, "warmup": 0.1, "final": 0.05}},
            "beta": 0.0,
        },
        "stream",
        departures=(_NO_STD, _DIVISOR, "mu moves over shares of the run: a tenth to rise, the rest to fall"),
    ),
    "chord_phi": Method(
        "CHORD-phi",
        "2508.11408",
        "The same with a constant mu of .1 and each demonstrated token weighted by p (1 - p).",
        {
            "reward_energy_weight": 0.9,
            "demonstration_energy_weight": 0.1,
            "beta": 0.0,
            "demonstration_shaping": "uncertainty",
        },
        "stream",
        departures=(_NO_STD, _DIVISOR),
    ),
    "srft": Method(
        "SRFT",
        "2506.19767",
        "Both at once, weighted by entropy: demonstrations by e^-H, solved rollouts by e^H.",
        {
            "reward_energy_weight": 0.1,
            "demonstration_energy_weight": 0.5,
            "beta": 0.0,
            "gate": "entropy",
            "demonstration_shaping": "confidence",
        },
        "paired",
        departures=(
            "the demonstration is no member of the group as well",
            "unsolved rollouts have no term",
            _NO_STD,
            _ON_POLICY,
        ),
    ),
    "relift": Method(
        "ReLIFT",
        "2506.07527",
        "RL, and now and then an epoch of SFT on the demonstrations of prompts that no rollout solved.",
        {
            "reward_energy_weight": 1.0,
            "demonstration_energy_weight": 1.0,
            "beta": 0.0,
            "failure_buffer": 128,
            "failure_buffer_max_grad_norm": 1.0,
            "max_grad_norm": 0.7,
        },
        "paired",
        departures=(
            "its SFT steps are divided by the run's one constant, not by their tokens",
            "128 demonstrations and clips of 1 and .7; its public script holds 64 and .5",
        ),
    ),
    "dft": Method(
        "DFT",
        "2508.05629",
        "Each demonstrated token's gradient times its probability: reverse projection of the demonstration energy.",
        {**_DEMONSTRATIONS, "demonstration_projection": "reverse"},
        "stream",
    ),
    "gift": Method(
        "GIFT",
        "2601.09233",
        "Cross-entropy to the reference tilted towards the demonstrated token, as a start for RL.",
        {**_DEMONSTRATIONS, "demonstration_beta": 0.05},
        "stream",
    ),
    "uft": Method(
        "UFT",
        "2505.16984",
        "Rollouts start from a hint, part of the demonstration that shrinks to nothing; hints are trained on a little.",
        {
            **_REWARD,
            "beta": 0.001,
            "prefix_share": 0.95,
            "prefix_schedule": {"cosine": {"final": 0.0, "until": 0.6}},
            "prefix_law": "binomial",
            "prefix_update": "none",
            "prefix_likelihood_weight": 0.001,
        },
        "paired",
        departures=(_NO_STD,),
    ),
    "prefix_rft": Method(
        "Prefix-RFT",
        "2507.01679",
        "One rollout of each group starts inside the demonstration, whose least certain tokens are trained with it.",
        {
            **_REWARD,
            "beta": 0.0,
            "prefix_share": 0.95,
            "prefix_schedule": {"cosine": {"final": 0.05}},
            "prefix_law": "fixed",
            "prefix_rollouts": 1,
            "prefix_update": "uncertain",
            "prefix_update_share": 0.2,
        },
        "paired",
        departures=(_NO_STD, _ON_POLICY),
    ),
    "distillation": Method(
        "On-policy distillation",
        "2306.13649",
        "The KL term alone, to a teacher in the place of the reference.",
        {"reward_energy_weight": 0.0, "demonstration_energy_weight": 0.0, "beta": 1.0},
        asks=("reference_model_name_or_path",),
        departures=(
            "the gradient of the sequence's KL, estimated on what was drawn; the paper takes each token's divergence "
            "over the whole vocabulary, averages over tokens, and lets no gradient through the draws",
        ),
    ),
    "alternating": Method(
        "Alternating projections (ours, in the spirit of SPS, 2604.16995)",
        None,
        "RL, and every other ten steps SFT on the policy's own solved rollouts.",
        {**_REWARD, "beta": 0.0, "reward_projection": "alternating", "projection_period": 10},
        departures=(
            "SPS interleaves RL with inverse RL whose settings could not be read; this is a method of its own",
        ),
    ),
}


def expanded(name: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that `method: name` stands for, less those that the recipe writes itself."""
    return {key: value for key, value in METHODS[name].settings.items() if key not in written}
