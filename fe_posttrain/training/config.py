"""FreeEnergyConfig: TRL's GRPOConfig, the demonstration keys of SFTConfig, and ours, with their checks."""

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from trl import GRPOConfig, ModelConfig, SFTConfig, get_quantization_config
from trl import get_peft_config as trl_peft_config

from fe_posttrain.training.conflicts import problems
from fe_posttrain.training.gates import SCHEDULE_OF, Weights, schedule, values_of
from fe_posttrain.training.reference_keys import reset_steps

__all__ = [  # TRL's three: for recipes
    "FreeEnergyConfig",
    "ModelConfig",
    "get_peft_config",
    "get_quantization_config",
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
        reward_energy_schedule, demonstration_energy_schedule, beta_schedule: how the weight moves over the run; none:
            not at all. `{linear: {final: 0.0}}`, `{cosine: {...}}` or `{switch: {final: 1.0, until: 300}}`, reached
            at step `until` (default the last); `warmup` steps from `initial` to the weight go before (below 1: shares
            of the run). Or a function f(step, total_steps, value) by dotted path.
        gate: what the rewards of a prompt's group do to its terms: `threshold`, `failure_rate`, `unsolved`, `entropy`
            (theory/gates.py), or a function by dotted path. Multiplies the reward's advantages and the weight of the
            prompt's own demonstration. Such a run has no F of its own, and shows no gap.
        success_threshold: reward from which a completion counts as solved, for gates, selection and the buffer.
        reward_projection: `reverse` (descend F on the policy's samples), `forward` (fit the same target by weighted
            samples), or `alternating` between both every `projection_period` steps, reverse first.
        forward_sampler: what forward projection is fitted to: `policy`, its own rollouts, or `bank`: `bank_draws`
            completions of every prompt by the reference, drawn once, each weighted by e^{w_r r/beta} over the mean of
            all of its prompt's. At beta = 0 those with reward >= success_threshold count, and no others.
        bank_refresh_steps: steps after which the bank is drawn again, from the policy as it is, with weights corrected
            by ref/q; 0: never.
        demonstration_projection: the demonstration energy -1[y_t = y*_t] of each token, at temperature
            demonstration_beta: `forward` (cross-entropy; SFT at 0) or `reverse` (DFT at 0).
        demonstration_beta: 1/lambda, per token; above 0 the target is softmax(log reference + lambda 1[y*]).
        demonstration_shaping: phi, a factor of each demonstrated token's -log pi: `probability`, `uncertainty`,
            `shrinking`, `confidence` (theory/projections.py), or a function by dotted path.
        kl_sampler: what the KL is taken on: `policy` (default; rollouts, exact), or `demonstrations`: no rollouts are
            made, and beta KL is replaced by beta/2 E_demonstrations[l^2], l = log pi(y|x) - log reference(y|x). Its
            optimum is l = w_d/beta on every demonstration, where normalisation leaves room; mass elsewhere is not
            held. Needs w_r = 0, w_d > 0 and beta > 0.
        reference_resets: optimizer steps, counted from 0 (below 1: shares of the run), at whose beginning the policy
            as it stands becomes the reference and the optimizer starts fresh; the learning-rate schedule goes on.
            Inside a generation block a reset waits for its end. With beta = 0 the optimizer alone is reset.
        reference_model_name_or_path: folder or Hub name of another model that is the reference, a teacher; default:
            the policy as it is passed. With w_r = w_d = 0 the run is on-policy distillation. It needs the policy's
            tokenizer.
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
        failure_buffer: demonstrations that wait until they are trained on, 0: none do. Instead of at every step, a
            demonstration (column `demonstration`) is then read after all rollouts of its prompt failed, by an AdamW of
            its own between two steps (ReLIFT). Needs w_r > 0 and w_d > 0; w_d scales these steps alone.
        failure_buffer_batch_size: demonstrations in one of the buffer's optimizer steps, all devices together; default
            `per_device_train_batch_size`. A device forwards at most `per_device_demonstration_batch_size` at once.
        failure_buffer_learning_rate: of these steps, constant; default `learning_rate`.
        failure_buffer_max_grad_norm: to which their gradient is clipped; 0: it is not.
        failure_buffer_format: a function as in `reward_funcs`, above 0 where a completion is well-formatted: prompts
            with any other one stay out.
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
    reward_energy_schedule: str | dict[str, dict[str, Any]] | None = field(
        default=None, metadata={"help": "How w_r moves: {linear|cosine|switch: {final, until, warmup}}."}
    )
    demonstration_energy_schedule: str | dict[str, dict[str, Any]] | None = field(
        default=None, metadata={"help": "How w_d moves, likewise."}
    )
    beta_schedule: str | dict[str, dict[str, Any]] | None = field(
        default=None, metadata={"help": "How beta moves, likewise."}
    )
    gate: str | dict[str, dict[str, Any]] | None = field(
        default=None,
        metadata={"help": "Factors of a prompt's terms by its group's rewards: threshold, failure_rate, ..."},
    )
    success_threshold: float = _key(1.0, "Reward from which a completion counts as solved.")
    reward_projection: str = _key("reverse", "How the reward's target is approached: reverse, forward, alternating.")
    projection_period: int = _key(10, "Under alternating: optimizer steps of one projection.")
    forward_sampler: str = _key("policy", "What forward projection is fitted to: policy (rollouts) or bank.")
    bank_draws: int = _key(64, "Completions of each prompt in the bank.")
    bank_refresh_steps: int = _key(0, "Steps after which the bank is drawn from the policy as it is; 0: never.")
    demonstration_projection: str = _key("forward", "forward (SFT at temperature 0) or reverse (DFT).")
    demonstration_beta: float = _key(0.0, "Temperature per token of the demonstrations' target; 0: one token alone.")
    demonstration_shaping: str | dict[str, dict[str, Any]] | None = field(
        default=None, metadata={"help": "Factor of each demonstrated token: probability, uncertainty, ..."}
    )
    share_prompts: bool | None = _key(None, "Forward a prompt once for its group; default on, off under trl.")
    compile_generation: bool = _key(False, "On a GPU: compiled decoding over a static cache (not yet run there).")
    quiet_group_rate: float = _key(1.0, "Share of the groups without reward signal to train on, weighted by 1/share.")
    kl_sampler: str = _key("policy", "What the KL is taken on: policy (rollouts), or demonstrations (no rollouts).")
    reference_cache_mib: int = _key(1024, "MiB on disk for the reference's log-probs of demonstrations; 0: none.")
    reference_resets: list[float] = field(
        default_factory=list,
        metadata={"help": "Steps (below 1: shares of the run) at which the policy becomes the reference."},
    )
    reference_model_name_or_path: str | None = _key(None, "Another model as the reference (a teacher): folder or name.")
    prefix_share: float = _key(0.0, "Share of its demonstration that a rollout starts with; 0: none.")
    prefix_schedule: str | dict[str, dict[str, Any]] | None = field(
        default=None, metadata={"help": "How prefix_share moves: {cosine: {final: 0.05, until: 0.6}}."}
    )
    prefix_law: str = _key("fixed", "Length of a prefix: fixed (the share, rounded) or binomial.")
    prefix_rollouts: int | None = _key(None, "Rollouts of each group that start so; default all.")
    prefix_update: str = _key("none", "What of a prefix joins the reward term: none or uncertain.")
    prefix_update_share: float = _key(0.2, "Under uncertain: the share of a prefix's tokens, by entropy.")
    prefix_likelihood_weight: float = _key(0.0, "Weight of the prefix tokens' -log pi.")
    loss_divisor: float | None = _key(None, "Constant that F is divided by; default max_completion_length.")
    per_device_demonstration_batch_size: int | None = _key(None, "Demonstrations per device and micro-batch.")
    failure_buffer: int = _key(0, "Demonstrations of prompts that failed to collect before training on them; 0: off.")
    failure_buffer_batch_size: int | None = _key(None, "Demonstrations in an optimizer step of the failure buffer.")
    failure_buffer_learning_rate: float | None = _key(None, "Of the failure buffer's steps; default learning_rate.")
    failure_buffer_max_grad_norm: float = _key(1.0, "Clips the gradient of the failure buffer's steps; 0: no.")
    failure_buffer_format: str | None = _key(None, "As in reward_funcs: above 0 where a completion is well-formatted.")
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
        return not self.uses_reward and (self.kl_sampler == "demonstrations" or not self.uses_reference)

    @property
    def uses_reward(self) -> bool:
        """Whether w_r is positive at any step."""
        return self._ever_positive("reward_energy_weight")

    @property
    def uses_demonstrations(self) -> bool:
        """Whether w_d is positive at any step."""
        return self._ever_positive("demonstration_energy_weight")

    @property
    def reads_demonstrations(self) -> bool:
        """Whether demonstrations are read at all: for their own term of F, or to start rollouts inside them."""
        return self.uses_demonstrations or self.prefix_share > 0

    @property
    def uses_reference(self) -> bool:
        """Whether beta is positive at any step."""
        return self._ever_positive("beta")

    @property
    def keeps_reference(self) -> bool:
        """Whether the reference is needed at all: for the KL, or for the target of demonstrations."""
        return self.uses_reference or self.demonstration_beta > 0

    @property
    def has_gibbs_optimum(self) -> bool:
        """Whether F has the optimum of reward and KL alone, so that a gap can be shown where beta is positive.

        Not with demonstrations, a gate on the group's own rewards, a reference that moves or is another model, or a w_r
        that moves.
        """
        moves = not self.reference_is_base or self.reward_energy_schedule is not None
        return self.generates and self.uses_reward and not (self.uses_demonstrations or self.gate is not None or moves)

    def _ever_positive(self, weight: str) -> bool:
        values = self.values_of(weight)
        return values is None or any(value > 0 for value in values)

    def values_of(self, weight: str) -> tuple[float, ...] | None:
        """The values between which a weight moves; None where only a user's function knows."""
        return values_of(getattr(self, SCHEDULE_OF[weight]), getattr(self, weight))

    @property
    def reference_is_base(self) -> bool:
        """Whether the reference is, throughout, the policy that the run starts from."""
        return not (self.reference_resets or self.reference_model_name_or_path or self.sync_ref_model)

    def reset_steps(self, total_steps: int) -> list[int]:
        """The steps of `reference_resets` in a run of `total_steps`."""
        return reset_steps(self.reference_resets, total_steps)

    def faults_to_look_for(self, rows: int) -> int:
        """Faulty rewards among `rows` of one process from which the run stops, whatever the others hold."""
        return 1 if self.reward_fault_policy == "stop" else int(self.reward_fault_limit * rows * self.world_size) + 1

    def weights_at(self, step: int, total_steps: int) -> Weights:
        """w_r, w_d and beta in force at optimizer step `step` (from 0) of `total_steps`; at 0, not yet known: those
        that are written."""
        if total_steps < 1:
            return Weights(*(getattr(self, name) for name in SCHEDULE_OF))
        moving = (schedule(key, getattr(self, key), getattr(self, name)) for name, key in SCHEDULE_OF.items())
        return Weights(*(weight(step, total_steps) for weight in moving))

    def projects_forward(self, step: int) -> bool:
        """Whether the reward's target is approached by forward projection at optimizer step `step`."""
        if self.reward_projection == "alternating":
            return step // self.projection_period % 2 == 1
        return self.reward_projection == "forward"

    def __post_init__(self) -> None:
        if found := problems(self):
            raise ValueError("FreeEnergyConfig:\n" + "\n".join(f"  - {line}" for line in found))
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


def get_peft_config(model_config: ModelConfig) -> PeftConfig | None:
    """TRL's adapter of a recipe, with a list of one target module taken for its name.

    TRL turns `[q_proj]` into the string `q_proj`, which peft reads as a regular expression that matches nothing.
    """
    config = trl_peft_config(model_config)
    name = model_config.lora_target_modules
    if config is not None and isinstance(name, str) and name != "all-linear" and re.fullmatch(r"[\w.]+", name):
        config.target_modules = {name}
    return config
