"""Each private name of TRL and transformers that we lean on, as it must look. When one of these fails, the library
moved: read what it does now before changing the expectation."""

import inspect

import pytest
import small
import torch
from accelerate.optimizer import AcceleratedOptimizer
from peft import LoraConfig, get_peft_model
from transformers import Trainer
from transformers.cache_utils import DynamicLayer
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import GRPOTrainer, SFTTrainer
from trl.trainer import sft_trainer, utils
from trl.trainer.base_trainer import _BaseTrainer

SIGNATURES = {
    (GRPOTrainer, "_generate_and_score_completions"): ["self", "inputs"],
    (GRPOTrainer, "_calculate_rewards"): ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    (GRPOTrainer, "_compute_loss"): ["self", "model", "inputs"],
    (GRPOTrainer, "_prepare_inputs"): ["self", "generation_batch"],
    (GRPOTrainer, "_get_train_sampler"): ["self", "dataset"],
    (GRPOTrainer, "_get_eval_sampler"): ["self", "eval_dataset"],
    (GRPOTrainer, "_tokenize_prompts"): ["self", "prompts"],
    (GRPOTrainer, "_set_signature_columns_if_needed"): ["self"],
    (_BaseTrainer, "_send_telemetry"): ["self"],
    (Trainer, "_clip_grad_norm"): ["self", "model"],
    (Trainer, "_prepare_inputs"): ["self", "inputs"],
    (Trainer, "_save_checkpoint"): ["self", "model", "trial"],
    (Trainer, "_get_output_dir"): ["self", "trial"],
    (Trainer, "_load_best_model"): ["self"],
    (Trainer, "get_batch_samples"): ["self", "epoch_iterator", "num_batches", "device"],
    (SFTTrainer, "_prepare_dataset"): [
        "self",
        "dataset",
        "processing_class",
        "args",
        "packing",
        "formatting_func",
        "dataset_name",
    ],
    (SFTTrainer, "compute_loss"): ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
}


@pytest.mark.parametrize(("owner", "name"), SIGNATURES, ids=lambda x: getattr(x, "__name__", x))
def test_signatures(owner, name):
    found = list(inspect.signature(inspect.unwrap(getattr(owner, name))).parameters)
    assert found == SIGNATURES[owner, name], f"{owner.__name__}.{name} takes {found} now"


def test_the_log_prob_primitive_starts_with_what_we_pass():
    found = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    wanted = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
    assert found[: len(wanted)] == wanted


def test_the_rollout_path_reads_what_we_return():
    source = inspect.getsource(GRPOTrainer._generate)
    assert "self.rollout_func(prompts, self)" in source and '"logprobs"' in source


def test_tokens_that_a_rollout_did_not_write_are_masked_by_env_mask():
    assert 'tool_mask = extra_fields.pop("env_mask", None)' in inspect.getsource(GRPOTrainer._generate)
    loss = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'completion_mask * inputs["tool_mask"]' in loss and "(per_token_loss * mask).sum() / (per_token_loss" in loss


def test_the_loss_reads_advantages_after_its_forward():
    """`_refresher` puts new advantages into the batch between the two."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert source.index("_get_per_token_logps_and_entropies(") < source.index('advantages = inputs["advantages"]')


def test_sft_preparation_reads_three_attributes_of_its_trainer():
    source = inspect.getsource(SFTTrainer._prepare_dataset)
    read = {word.split("(")[0] for word in _words_after(source, "self.")}
    assert read == {"_tokenizer", "chat_template", "completion_only_loss"}


def test_a_generation_batch_keeps_its_keys():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"):
        assert f'"{key}": {key}' in source
    for key in ("old_per_token_logps", "sampling_per_token_logps", "ref_per_token_logps", "tool_mask"):
        assert f'output["{key}"]' in source


def test_a_checkpoint_is_written_where_get_output_dir_says_and_its_state_last():
    source = inspect.getsource(Trainer._save_checkpoint)
    assert "run_dir = self._get_output_dir(trial=trial)" in source
    assert "output_dir = os.path.join(run_dir, checkpoint_folder)" in source
    best = source.index("self.state.best_global_step\n")  # set to None meanwhile: no barrier, no staged path kept
    assert best < source.index("self.state.save_to_json(")


def test_training_sets_its_accumulators_before_on_train_begin_and_saves_after_on_step_end():
    source = inspect.getsource(Trainer._inner_training_loop)
    begin = source.index("callback_handler.on_train_begin(")
    for name in ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_initial_global_step"):
        assert 0 < source.index(f"self.{name} =") < begin, name
    assert "self._run_epoch(" in source
    step = inspect.getsource(Trainer._run_epoch)
    assert step.index("on_step_end(") < step.index("self._maybe_log_save_evaluate(")


def test_grpo_counts_micro_steps_and_generates_at_multiples_of_a_block():
    assert "self._step += 1" in inspect.getsource(GRPOTrainer.training_step)
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self.args.steps_per_generation * self.num_iterations" in source
    assert "self._step % generate_every == 0 or self._buffered_inputs is None" in source
    assert "self._total_train_tokens = 0" in inspect.getsource(GRPOTrainer.__init__)


def test_the_repeat_sampler_draws_one_permutation_an_epoch_from_its_own_generator():
    sampler = utils.RepeatSampler(range(6), 1, shuffle=True, seed=3)
    assert {"generator", "seed", "shuffle", "num_samples"} <= set(vars(sampler))
    first, second = list(sampler), list(sampler)
    sampler.generator.manual_seed(3)
    torch.randperm(6, generator=sampler.generator)
    assert list(sampler) == second != first


def test_a_faulty_reward_row_is_one_that_no_function_scored():
    assert "torch.isnan(rewards_per_func).all(dim=1)" in inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert list(inspect.signature(utils.get_callable_name).parameters) == ["func"]
    assert list(inspect.signature(utils.is_async_callable).parameters) == ["func"]


def test_sft_takes_its_loss_from_the_fused_forward_that_it_makes_first():
    """`_first_output` keeps what that forward returned; label smoothing and DFT need another `loss_type`."""
    source = inspect.getsource(SFTTrainer.compute_loss)
    fused = source.rindex("outputs = model(**inputs, fused_lm_head=True)\n")
    assert (
        fused
        < source.index("per_token_loss = -outputs.log_probs")
        < source.index("model(**logits_inputs)\n        return")
    )
    assert 'self.label_smoother is not None and self.args.loss_type == "nll"' in source


def test_a_flat_batch_says_where_its_sequences_are():
    collate = sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collate([{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}])
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5] and batch["seq_idx"].tolist() == [[0, 0, 0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5]]
    assert "attention_mask" in sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0)([{"input_ids": [1]}])


def test_rows_of_like_length_are_grouped_by_a_generator():
    found = list(inspect.signature(get_length_grouped_indices).parameters)
    assert found == ["lengths", "batch_size", "mega_batch_mult", "generator"]
    order = get_length_grouped_indices([1, 5, 3, 2] * 4, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(16))


def test_groups_travel_whole_through_the_shuffle_and_the_split():
    """`_by_group` hands TRL tensors of (groups, G, ...); `_sorted` reorders what it buffered."""
    groups = {"a": torch.arange(24).view(4, 2, 3), "count": torch.tensor(5)}
    parts = utils.split_tensor_dict(utils.shuffle_sequence_dict(groups), 2)
    assert [part["a"].shape for part in parts] == [(2, 2, 3)] * 2 and all(part["count"] == 5 for part in parts)
    assert sorted(group.tolist() for part in parts for group in part["a"]) == groups["a"].tolist()
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in source


def test_the_fused_head_scores_shifted_labels_against_a_cache_that_is_passed():
    source = inspect.getsource(utils.add_fused_lm_head)
    assert "shift_labels is None" in source and "labels = shift_labels" in source
    assert 'kwargs["past_key_values"]' not in source


def test_a_plain_cache_layer_is_what_repeats_a_prompt():
    layer, keys = DynamicLayer(), torch.ones(1, 2, 3, 4)
    assert not layer.is_initialized
    layer.lazy_initialization(keys, keys)
    layer.keys, layer.values = keys, keys
    assert layer.is_initialized and layer.get_seq_length() == 3
    assert layer.update(keys, keys)[0].shape == (1, 2, 6, 4)


def test_a_step_begins_before_it_makes_rollouts_and_after_the_last_checkpoint():
    """Where a reset of the reference lies; `optimizer.state` is cleared through accelerate's wrapper."""
    source = inspect.getsource(Trainer._run_epoch)
    assert source.index("on_step_begin(") < source.index("self.training_step(") < source.index("on_step_end(")
    assert "return self.optimizer.state" in inspect.getsource(AcceleratedOptimizer.state.fget)


def test_an_adapter_called_ref_is_the_reference_and_a_second_adapter_is_frozen():
    assert '"ref" if "ref" in model.peft_config else None' in inspect.getsource(
        GRPOTrainer._generate_and_score_completions
    )
    model = get_peft_model(small.model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.add_adapter("ref", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with utils.use_adapter(model, "ref"):
        pass
    trained = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"default"} and model.active_adapter == "default"


def test_helpers_that_we_call():
    fused = list(inspect.signature(utils.add_fused_lm_head).parameters)
    assert fused == ["model", "temperature", "cast_lm_head_to_fp32", "outputs"]
    collator = inspect.signature(sft_trainer.DataCollatorForLanguageModeling).parameters
    assert {"pad_token_id", "padding_free", "pad_to_multiple_of"} <= set(collator)
    assert list(inspect.signature(utils.use_adapter).parameters) == ["model", "adapter_name"]


def _words_after(source: str, mark: str) -> list[str]:
    found = []
    for piece in source.split(mark)[1:]:
        word = ""
        for letter in piece:
            if not (letter.isalnum() or letter == "_"):
                break
            word += letter
        found.append(word)
    return found
