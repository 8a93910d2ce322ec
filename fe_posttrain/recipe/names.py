"""Names of keys: what a mistyped key, or one of another trainer, is called here, and keys that no recipe may hold."""

import difflib
import re
from collections.abc import Iterable

# our key: what TRL and transformers called it once, or open-r1, verl, LLaMA-Factory, OpenRLHF and axolotl call it
_OTHER_NAMES = {
    "model_name_or_path": "model model_name model_path base_model pretrained pretrain pretrained_model actor_model",
    "attn_implementation": "flash_attn flash_attention use_flash_attention use_flash_attention_2 attention",
    "dtype": "torch_dtype model_dtype bnb_4bit_compute_dtype",
    "bf16": "bfloat16 precision mixed_precision pure_bf16 bf_16",
    "use_cpu": "no_cuda cpu device use_cuda",
    "use_peft": "finetuning_type finetuning lora use_lora peft adapter",
    "lora_r": "lora_rank peft_r rank",
    "lora_target_modules": "lora_target target_modules lora_modules",
    "lora_modules_to_save": "modules_to_save additional_target",
    "load_in_4bit": "quantization_bit qlora use_4bit",
    "dataset_name": "dataset dataset_path data_path train_file train_files train_data train_dataset data datasets "
    "dataset_id_or_path prompt_data dataset_mixture",
    "dataset_config": "dataset_config_name dataset_subset subset",
    "dataset_train_split": "train_split split dataset_split",
    "dataset_test_split": "test_split eval_split validation_split val_split",
    "eval_dataset_name": "eval_dataset val_files val_data eval_data eval_file validation_file test_file",
    "demonstration_dataset_name": "sft_dataset sft_data demo_dataset demonstration_dataset demos",
    "demonstrations_paired": "paired_demonstrations",
    "overlong_prompts": "max_prompt_length filter_overlong_prompts truncate_prompt max_prompt_len prompt_max_len",
    "max_length": "cutoff_len max_seq_length max_seq_len sequence_len max_len block_size model_max_length",
    "max_completion_length": "max_new_tokens max_response_length response_length max_tokens generate_max_len "
    "completion_length max_generation_length",
    "chat_template_path": "template chat_template",
    "num_generations": "group_size n_samples_per_prompt num_samples num_return_sequences rollout_n n_rollouts "
    "num_rollouts rollouts_per_prompt",
    "num_iterations": "ppo_epochs num_ppo_epochs mu updates_per_batch",
    "reward_funcs": "reward reward_fn reward_fns reward_function reward_functions rewards custom_reward_function "
    "verifier",
    "reference_model_name_or_path": "ref_model ref_model_path ref_model_name_or_path reference_model "
    "reference_model_path teacher teacher_model teacher_model_path teacher_model_name_or_path",
    "reference_resets": "reset_reference reference_reset ref_model_reset_steps reset_ref_model_steps",
    "reward_model_name_or_path": "reward_model reward_model_path",
    "reward_energy_weight": "reward_weight reward_scale reward_coef rl_weight rl_coef",
    "demonstration_energy_weight": "sft_weight sft_coef sft_loss_weight demonstration_weight ptx_coef bc_coef",
    "beta": "kl_coef init_kl_coef kl_coeff kl_loss_coef kl_beta kl_penalty kl_weight kl pref_beta kl_ctl alpha",
    "beta_schedule": "beta_final kl_coef_final beta_end final_beta kl_schedule",
    "estimator": "algorithm adv_estimator advantage_estimator",
    "epsilon": "epsilon_low clip_ratio clip_ratio_low cliprange clip_range clip_eps eps_clip",
    "epsilon_high": "clip_ratio_high clip_range_high eps_clip_high",
    "entropy_coef": "entropy_coeff entropy_loss_coef ent_coef entropy_bonus",
    "failure_buffer": "sft_data_size sft_buffer_size buffer_size",
    "failure_buffer_batch_size": "sft_mini_batch_size",
    "reward_timeout": "reward_timeout_seconds verifier_timeout",
    "learning_rate": "lr actor_learning_rate actor_lr max_lr",
    "lr_scheduler_type": "lr_scheduler scheduler scheduler_type lr_schedule warmup_style",
    "warmup_steps": "warmup_ratio lr_warmup_steps lr_warmup_steps_ratio warmup num_warmup_steps",
    "optim": "optimizer optimiser optimizer_type",
    "weight_decay": "wd l2",
    "max_grad_norm": "grad_clip clip_grad gradient_clipping grad_norm gradient_clip_val clip_grad_norm",
    "num_train_epochs": "epochs epoch num_epochs n_epochs total_epochs max_epochs",
    "max_steps": "steps total_steps total_training_steps num_steps train_steps max_train_steps num_train_steps "
    "max_iters",
    "per_device_train_batch_size": "batch_size train_batch_size micro_batch_size micro_train_batch_size "
    "per_gpu_train_batch_size ppo_micro_batch_size_per_gpu batch bs",
    "per_device_eval_batch_size": "eval_batch_size val_batch_size micro_eval_batch_size per_gpu_eval_batch_size",
    "per_device_demonstration_batch_size": "demonstration_batch_size demo_batch_size sft_batch_size",
    "generation_batch_size": "rollout_batch_size",
    "gradient_accumulation_steps": "grad_accum grad_accumulation accumulation_steps gradient_accumulation ga_steps",
    "gradient_checkpointing": "enable_gradient_checkpointing grad_checkpointing activation_checkpoint",
    "eval_strategy": "evaluation_strategy evaluate eval_mode",
    "eval_steps": "test_freq eval_interval eval_freq evaluate_every eval_every",
    "save_steps": "save_freq save_interval checkpoint_every save_every ckpt_interval checkpoint_interval",
    "save_total_limit": "keep_checkpoints max_ckpt_to_keep max_ckpt_num",
    "save_strategy": "checkpoint_strategy saving_strategy",
    "merge_adapter": "merge_lora merge_and_unload export_merged",
    "logging_steps": "log_steps log_interval logging_interval log_freq log_every",
    "report_to": "logger loggers tracker log_with use_wandb wandb",
    "wandb_project": "project_name",
    "wandb_entity": "entity wandb_team",
    "wandb_run_group": "wandb_group run_group",
    "wandb_job_type": "job_type",
    "run_name": "experiment_name exp_name wandb_run_name wandb_name name",
    "output_dir": "output_path save_dir save_path out_dir default_local_dir logging_dir overwrite_output_dir",
    "seed": "random_seed manual_seed",
    "train_sampling_strategy": "group_by_length",
    "vllm_gpu_memory_utilization": "gpu_memory_utilization vllm_gpu_util vllm_util",
    "vllm_tensor_parallel_size": "tensor_parallel_size tensor_model_parallel_size",
    "vllm_structured_outputs_regex": "vllm_guided_decoding_regex guided_regex",
    "vllm_max_model_length": "vllm_max_model_len max_model_len",
    "push_to_hub": "push_to_hub_model hub_push",
    "hub_model_id": "push_to_hub_model_id hub_repo",
    "prompts": "families tasks task prompt_families",
    "demonstrations": "demo demonstration demonstration_families",
}
OTHER_NAMES = {other: ours for ours, others in _OTHER_NAMES.items() for other in others.split()}

REFUSED = {
    "env": "a recipe sets no variables of the process; what they load (LD_PRELOAD) would run unseen; write them "
    "before the command, as NAME=value accelerate launch ...",
    "resume_from_checkpoint": "no setting of a recipe; what a run resumes from is no part of the experiment; "
    "remove it and write --resume after the recipe",
    "parallelism_config": "not settable in a recipe; GRPO cuts no sequences over processes; remove it",
    "dry_run": "no setting of a recipe but a word for the door; write --dry-run, without a value",
    "resume": "no setting of a recipe but a word for the door; write --resume, without a value",
    "local_rank": "not settable in a recipe; the launcher numbers the processes; remove it",
}


def suggestion(key: str, known: Iterable[str]) -> str | None:
    """The known key that `key` most likely stands for; None where nothing is near."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(key)).lower()
    name = re.sub(r"[\s.-]+", "_", name).strip("_")
    known = set(known)
    if (head := str(key).split(".")[0]) in known:  # `prompts.tail_10`
        return head
    if name in known:
        return name
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    words = sorted(known | set(OTHER_NAMES), key=lambda word: (word not in known, word))
    near = max(words, key=lambda word: _likeness(name, word, word in known))
    if _likeness(name, near, near in known) < 0.75:
        return None
    return near if near in known else OTHER_NAMES[near]


def _likeness(name: str, word: str, is_known: bool) -> float:
    """How alike two names are, from 0 to 1: letters in order; own names win over other trainers'."""
    matcher = difflib.SequenceMatcher(None, name, word, autojunk=False)
    if matcher.real_quick_ratio() < 0.7 or matcher.quick_ratio() < 0.7:
        return 0.0
    other_way = difflib.SequenceMatcher(None, word, name, autojunk=False).ratio()  # it is not symmetric
    same_letters = sorted(name) == sorted(word)  # swapped ones
    return max(matcher.ratio(), other_way, 0.9 if same_letters else 0.0) - (0.0 if is_known else 0.06)
