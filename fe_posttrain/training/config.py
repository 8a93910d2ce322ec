"""FreeEnergyConfig: TRL's GRPOConfig, the demonstration keys of SFTConfig, and ours, with their checks."""

import re
from dataclasses import dataclass, field

import torch
from peft import PeftConfig
from trl import GRPOConfig, ModelConfig, SFTConfig, get_quantization_config
from trl import get_peft_config as trl_peft_config

from fe_posttrain.theory.schedules import BETA_SCHEDULES, beta_at
from fe_posttrain.training import prefix_settings
from fe_posttrain.training.limits import out_of_limits
from fe_posttrain.training.prefix_settings import Entry

__all__ = [  # TRL's three: for recipes
    "FreeEnergyConfig",
    "ModelConfig",
    "get_peft_config",
    "get_quantization_config",
    "what_changes_the_optimum",
]

# GRPOConfig and SFTConfig give these different defaults. `None` stands for "that of the method that the run is".
_SHARED = ("learning_rate", "shuffle_dataset", "remove_unused_columns")


def _key(default, help_text: str):
    return field(default=default, metadata={"help": help_text})


def _sft_key(name: str):
    """A key of SFTConfig, with its own default and help."""
    original = SFTConfig.__dataclass_fields__[name]
    return field(default=original.default, metadata=dict(original.metadata))


@dataclass
class FreeEnergyConfig(GRPOConfig):
    """Settings of a run that descends

        F(pi) = w_r E_{y~pi}[-reward] + w_d E_{demonstrations}[-log pi(y|x)] + beta KL(pi || reference).

    Every key of `trl.GRPOConfig` keeps its name and meaning; `packing`, `max_length` and the other preparation
    keys of `trl.SFTConfig` apply to demonstrations. A key left at `None` takes TRL's default for what the run
    is: SFTConfig's when `is_sft`, GRPOConfig's otherwise.

    Args:
        reward_energy_weight: w_r, weight of the reward energy (energy units per unit of reward).
        demonstration_energy_weight: w_d, weight of the demonstrations' negative log-likelihood.
        beta: KL coefficient = temperature, in energy units per nat (0: no KL, no reference, no gap).
        beta_schedule: how beta moves from `beta` to `beta_final` over the run: constant, linear or cosine.
        beta_final: last value of beta; needed by every schedule but constant.
        kl_sampler: what the KL is taken on: `policy` (default; rollouts, exact), or `demonstrations`: no rollouts are
            made, and beta KL is replaced by beta/2 E_demonstrations[l^2], l = log pi(y|x) - log reference(y|x). Its
            optimum is l = w_d/beta on every demonstration, where normalisation leaves room; mass elsewhere is not
            held. Needs w_r = 0, w_d > 0 and beta > 0.
        reference_cache_mib: MiB on disk for the reference's log-probs of demonstrations, shared by all runs (folder
            `log_probs` in FE_POSTTRAIN_CACHE, default ~/.cache/fe_posttrain); 0: score them at every step.
        estimator: `sequence` (shaped reward of the whole completion; exact gradient of F), `sequence_to_go`
            (each token is charged the KL that follows it; exact too), or `trl` (TRL's own GRPO step, unchanged).
        share_prompts: forward each prompt once for all completions of its group, in the update too; default on, off
            under `estimator: trl`. The gradient is the same.
        compile_generation: on a GPU without vLLM, decode by a compiled forward over a cache of fixed size. Off by
            default: tested on a CPU, not yet run on a GPU.
        quiet_group_rate: q, the probability with which a group whose rewards are all equal is trained on, weighted by
            1/q: its KL is then estimated from fewer groups, without bias. Under beta = 0 such groups have no gradient
            and are left out whatever q is.
        prefix_share: share of its demonstration, without the end token, that a rollout starts with; 0: none does. Needs
            a column `demonstration`. The policy gradient and the KL run over what follows; see `prefixes`.
        prefix_schedule: how `prefix_share` moves over the run, as `{cosine: {final: 0.05, until: 0.6}}`; default: it
            does not.
        prefix_law: `fixed` (that share, rounded), or `binomial` (each token of the demonstration with that
            probability), drawn once for all rollouts of a prompt.
        prefix_rollouts: how many rollouts of each group start so; default all.
        prefix_update: what of a prefix joins the reward term with the rollout's advantage: `none`, or `uncertain`: the
            `prefix_update_share` of its tokens with the highest entropy under the policy.
        prefix_likelihood_weight: w, weight of -log pi(prefix): its sum over tokens, averaged over all rollouts, at the
            sampling temperature.
        loss_divisor: the one constant that F is divided by in the loss; default `max_completion_length`.
        per_device_demonstration_batch_size: demonstrations a device reads per micro-batch when they are a stream
            of their own beside rollouts; default `per_device_train_batch_size`.
        reward_fault_policy: what follows when a reward function raises, hangs or returns what is no reward: `stop`
            (default), or `mask`: the row is left out of the loss and counted, and the other rows' advantages are
            as if it were absent.
        reward_fault_limit: under `mask`, the share of a batch's rows above which the run stops all the same.
        reward_timeout: seconds a reward function may take for the rows of one process; None: no limit.

    Raises:
        ValueError: one message with every problem, each as `key: what; why; what to write`.
    """

    reward_energy_weight: float = _key(1.0, "w_r: weight of the reward energy.")
    demonstration_energy_weight: float = _key(0.0, "w_d: weight of the demonstrations' -log pi.")
    estimator: str = _key("sequence", "Gradient estimator: sequence, sequence_to_go or trl.")
    beta_schedule: str = _key("constant", "How beta moves to beta_final: constant, linear or cosine.")
    beta_final: float | None = _key(None, "Value of beta at the last step.")
    share_prompts: bool | None = _key(None, "Forward a prompt once for its group; default on, off under trl.")
    compile_generation: bool = _key(False, "On a GPU: compiled decoding over a static cache (not yet run there).")
    quiet_group_rate: float = _key(1.0, "Share of the groups without reward signal to train on, weighted by 1/share.")
    kl_sampler: str = _key("policy", "What the KL is taken on: policy (rollouts), or demonstrations (no rollouts).")
    reference_cache_mib: int = _key(1024, "MiB on disk for the reference's log-probs of demonstrations; 0: none.")
    prefix_share: float = _key(0.0, "Share of its demonstration that a rollout starts with; 0: none.")
    prefix_schedule: Entry = _key(None, "How prefix_share moves: {cosine: {final: 0.05, until: 0.6}}.")  # noqa: RUF009
    prefix_law: str = _key("fixed", "Length of a prefix: fixed (the share, rounded) or binomial.")
    prefix_rollouts: int | None = _key(None, "Rollouts of each group that start so; default all.")
    prefix_update: str = _key("none", "What of a prefix joins the reward term: none or uncertain.")
    prefix_update_share: float = _key(0.2, "Under uncertain: the share of a prefix's tokens, by entropy.")
    prefix_likelihood_weight: float = _key(0.0, "Weight of the prefix tokens' -log pi.")
    loss_divisor: float | None = _key(None, "Constant that F is divided by; default max_completion_length.")
    per_device_demonstration_batch_size: int | None = _key(None, "Demonstrations per device and micro-batch.")
    reward_fault_policy: str = _key("stop", "When a reward function fails on a row: stop, or mask the row.")
    reward_fault_limit: float = _key(0.1, "Under mask: the share of failed rows in a batch above which to stop.")
    reward_timeout: float | None = _key(300.0, "Seconds a reward function may take for a batch; null: no limit.")

    packing: bool = _sft_key("packing")
    packing_strategy: str = _sft_key("packing_strategy")
    padding_free: bool = _sft_key("padding_free")
    max_length: int | None = _sft_key("max_length")
    truncation_mode: str = _sft_key("truncation_mode")
    completion_only_loss: bool | None = _sft_key("completion_only_loss")
    assistant_only_loss: bool = _sft_key("assistant_only_loss")
    dataset_text_field: str = _sft_key("dataset_text_field")
    dataset_num_proc: int | None = _sft_key("dataset_num_proc")
    eos_token: str | None = _sft_key("eos_token")
    pad_token: str | None = _sft_key("pad_token")
    chat_template_path: str | None = _sft_key("chat_template_path")

    learning_rate: float | None = _key(None, "Learning rate; default 1e-6, or SFTConfig's 2e-5 in a pure SFT run.")
    shuffle_dataset: bool | None = _key(None, "Shuffle the training rows; default as in the TRL trainer.")
    remove_unused_columns: bool | None = _key(None, "Drop columns nobody reads; default as in the TRL trainer.")
    disable_dropout: bool | None = _key(None, "Default: on when rollouts are made (KL = 0 at step 0 needs it).")
    scale_rewards: str | bool | None = _key(None, "Advantage scaling; default none (group under estimator: trl).")
    loss_type: str | None = _key(None, "Only under estimator: trl; default TRL's dapo.")
    logging_nan_inf_filter: bool = _key(False, "Off, so that a NaN loss is not logged as a healthy one.")

    @property
    def generates(self) -> bool:
        """Whether training makes rollouts: for the reward energy, and for a KL that is taken on them."""
        return not self.is_sft

    @property
    def is_sft(self) -> bool:
        """Whether the whole run reads demonstrations alone, as SFTTrainer does and by its token mean.

        With beta = 0 it *is* SFTTrainer's; with `kl_sampler: demonstrations` the penalty is added to its loss.
        """
        return self.reward_energy_weight == 0 and (self.kl_sampler == "demonstrations" or not self.uses_reference)

    @property
    def uses_reference(self) -> bool:
        """Whether beta is positive at any step."""
        return self.beta > 0 or bool(self.beta_final)

    def faults_to_look_for(self, rows: int) -> int:
        """Faulty rewards among `rows` of one process from which the run stops, whatever the others hold."""
        return 1 if self.reward_fault_policy == "stop" else int(self.reward_fault_limit * rows * self.world_size) + 1

    def beta_at(self, step: int, total_steps: int) -> float:
        """beta in force at optimizer step `step` (from 0) of `total_steps`."""
        return beta_at(step, total_steps, beta=self.beta, beta_final=self.beta_final, schedule=self.beta_schedule)

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ValueError("FreeEnergyConfig:\n" + "\n".join(f"  - {line}" for line in problems))
        like = SFTConfig if self.is_sft else GRPOConfig
        for name in _SHARED:
            if getattr(self, name) is None:
                setattr(self, name, like.__dataclass_fields__[name].default)
        if self.disable_dropout is None:
            self.disable_dropout = self.uses_reference if self.is_sft else self.estimator != "trl"
        if self.scale_rewards is None:
            self.scale_rewards = "group" if self.estimator == "trl" else "none"
        if self.loss_type is None:
            self.loss_type = "dapo" if self.estimator == "trl" else "dr_grpo"
        if self.data_seed is None:
            self.data_seed = self.seed  # GRPO seeds torch per rank; a loader without this shuffles per rank
        if self.bf16 is None and (self.use_cpu or not torch.accelerator.is_available()):
            self.bf16 = False
        if self.is_sft:
            self._satisfy_grouping()
        super().__post_init__()

    def __getstate__(self) -> dict:
        """Without the access token: transformers pickles its settings beside the weights, and pushes them."""
        return vars(self) | {"hub_token": None}

    def _satisfy_grouping(self) -> None:
        """Pure SFT makes no groups; give GRPOConfig's divisibility checks numbers that they accept."""
        if self.num_generations_eval is None and self.per_device_eval_batch_size % self.num_generations:
            self.num_generations_eval = 1
        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if batch % self.num_generations and self.generation_batch_size is None:
            self.num_generations, self.steps_per_generation = 2, 2

    def _problems(self) -> list[str]:
        found = [f"{key}: {text}" for key, text in out_of_limits(FreeEnergyConfig, vars(self))]
        if not any((self.reward_energy_weight, self.demonstration_energy_weight, self.beta, self.beta_final)):
            found.append(
                "reward_energy_weight: 0, like demonstration_energy_weight and beta; F would be constant; "
                "write 1 for one of them"
            )
        if self.loss_type not in (None, "dr_grpo") and self.estimator.startswith("sequence") and not self.is_sft:
            found.append(
                f"loss_type: {self.loss_type!r}; estimator {self.estimator} divides F by one constant (dr_grpo) "
                "and by nothing else; leave it out, or write estimator: trl"
            )
        if self.beta_schedule in BETA_SCHEDULES and (self.beta_schedule == "constant") != (self.beta_final is None):
            found.append(
                f"beta_final: {self.beta_final} with beta_schedule {self.beta_schedule}; a schedule needs its last "
                "value and a constant has none; write both or neither"
            )
        if self.quiet_group_rate != 1 and self.estimator == "trl":
            found.append(
                f"quiet_group_rate: {self.quiet_group_rate} with estimator trl; TRL's step is left as it is; leave it "
                "out, or take another estimator"
            )
        if self.kl_sampler == "demonstrations":
            found += self._problems_on_demonstrations()
        found += prefix_settings.problems(self)
        if self.packing and self.packing_strategy == "wrapped" and not self.is_sft:
            found.append(
                "packing_strategy: wrapped; it cuts sequences, and beside rollouts each one is a term of F; write bfd"
            )
        return found

    def _problems_on_demonstrations(self) -> list[str]:
        """What `kl_sampler: demonstrations` cannot stand."""
        found = []
        if self.reward_energy_weight or not (self.demonstration_energy_weight and self.uses_reference):
            beta = self.beta if self.beta_final is None else f"{self.beta} -> {self.beta_final}"
            found.append(
                f"kl_sampler: demonstrations with reward_energy_weight {self.reward_energy_weight}, "
                f"demonstration_energy_weight {self.demonstration_energy_weight} and beta {beta}; it makes no rollouts "
                "and penalises how far demonstrations move; write reward_energy_weight: 0 and the other two positive, "
                "or kl_sampler: policy"
            )
        if self.packing and self.packing_strategy != "bfd":
            found.append(
                f"packing_strategy: {self.packing_strategy}; it cuts sequences, and under kl_sampler: demonstrations "
                "the log-ratio of each whole one is a term of F; write bfd"
            )
        return found


def get_peft_config(model_config: ModelConfig) -> PeftConfig | None:
    """TRL's adapter of a recipe, with a list of one target module taken for its name.

    TRL turns `[q_proj]` into the string `q_proj`, which peft reads as a regular expression that matches nothing.
    """
    config = trl_peft_config(model_config)
    name = model_config.lora_target_modules
    if config is not None and isinstance(name, str) and name != "all-linear" and re.fullmatch(r"[\w.]+", name):
        config.target_modules = {name}
    return config


_MOVING_REFERENCE = "sync_ref_model: the reference moves, so F is measured against a target that moves too."
_PENALISES_DEMONSTRATIONS = (
    "kl_sampler: demonstrations penalises the squared log-ratio of demonstrations, not KL(pi || reference): it ends at "
    "log pi - log reference = demonstration_energy_weight / beta on each of them, where normalisation leaves room, and "
    "holds no probability elsewhere."
)

# Settings under which the run does not end at the written optimum, and what they do, in plain words.
_CHANGES_OPTIMUM = (
    (
        lambda a: a.scale_rewards != "none",
        "scale_rewards: {scale_rewards} divides advantages by the reward's standard deviation: the temperature "
        "becomes beta * std(reward | prompt) and shrinks as the policy sharpens.",
    ),
    (
        lambda a: a.estimator == "trl" and a.uses_reference,
        "estimator: trl takes the KL per token (k3 times ratio): it forgets a token's effect on later KL.",
    ),
    (
        lambda a: a.estimator == "trl" and a.loss_type != "dr_grpo",
        "loss_type: {loss_type} divides by lengths that vary: terms of F are reweighted by completion length.",
    ),
    (
        lambda a: a.top_p < 1 or a.top_k > 0 or a.min_p or a.repetition_penalty != 1.0,
        "top_p, top_k, min_p or repetition_penalty: samples come from a truncated policy, log-probs from the whole.",
    ),
    (
        lambda a: bool(a.generation_kwargs),
        "generation_kwargs: {generation_kwargs} may change what is sampled, and log-probs do not know of it.",
    ),
    (
        lambda a: a.temperature != 1.0,
        "temperature: {temperature}: reward and KL are those of the policy at this temperature, not of the model.",
    ),
    (
        lambda a: a.gradient_accumulation_steps % (a.steps_per_generation * a.num_iterations) != 0,
        "num_iterations, steps_per_generation: steps on older rollouts weigh tokens by a ratio clipped at epsilon.",
    ),
    (
        lambda a: a.use_vllm and a.vllm_importance_sampling_correction,
        "use_vllm: the ratio between trainer and vLLM is {vllm_importance_sampling_mode} and capped.",
    ),
    (
        lambda a: a.mask_truncated_completions,
        "mask_truncated_completions: completions without an end token have no term in F.",
    ),
    (
        lambda a: a.top_entropy_quantile < 1.0,
        "top_entropy_quantile: only tokens of high entropy are trained.",
    ),
    (
        lambda a: a.entropy_coef != 0 or a.use_adaptive_entropy,
        "entropy_coef: an entropy bonus is added to F.",
    ),
    (
        lambda a: a.off_policy_mask_threshold is not None,
        "off_policy_mask_threshold: rows are left out by their own advantage.",
    ),
    (lambda a: a.prefix_share > 0, prefix_settings.CHANGES_OPTIMUM),
    (
        lambda a: a.sync_ref_model,
        _MOVING_REFERENCE,
    ),
)


def what_changes_the_optimum(args: FreeEnergyConfig) -> list[str]:
    """One sentence for each setting of `args` that moves the run's fixed point away from the optimum of F."""
    if args.is_sft:
        moving = [_MOVING_REFERENCE] if args.sync_ref_model else []
        return [_PENALISES_DEMONSTRATIONS, *moving] if args.uses_reference else []
    return [text.format(**vars(args)) for applies, text in _CHANGES_OPTIMUM if applies(args)]
