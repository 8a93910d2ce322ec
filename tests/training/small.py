"""A small model, its data, and trainers that log every step: shared by the tests of the training room."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback

from fe_posttrain.tasks import digits
from fe_posttrain.tasks.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()

SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "seed": 3,
}
ROLLOUTS = {"per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 8}


def model(seed: int = 0, **config) -> LlamaForCausalLM:
    """A two-layer Llama with random weights, built in memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(TOKENIZER),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                intermediate_size=64,
                tie_word_embeddings=True,
                pad_token_id=TOKENIZER.pad_token_id,
                bos_token_id=TOKENIZER.bos_token_id,
                eos_token_id=TOKENIZER.eos_token_id,
                **config,
            )
        )


def prompts(rows: int = 40):
    return digits.dataset(["basin", "tail_10"], rows, seed=0)


def demonstrations(rows: int = 100):
    return digits.dataset(["barrier", "tail_10"], rows, seed=0, demonstrations=True)


def length_reward(completion_ids, **_) -> list[float]:
    """A reward that differs within groups of a random model: the share of even tokens, and the length."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) + 0.1 * len(ids) for ids in completion_ids]


class Record(TrainerCallback):
    """Keeps what was logged, and every gradient as it stood before the optimizer's first steps."""

    def __init__(self):
        self.logs: list[dict] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logs.append(dict(logs))

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    def column(self, key: str) -> list[float]:
        return [row[key] for row in self.logs]


def run(trainer_class, config_class, output_dir, *, settings: dict, **arguments):
    """Train, and return the record and the trainer."""
    record = Record()
    args = config_class(output_dir=str(output_dir), **{**SETTINGS, **settings})
    arguments.setdefault("processing_class", TOKENIZER)
    trainer = trainer_class(args=args, callbacks=[record, *arguments.pop("callbacks", [])], **arguments)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return record, trainer


def same_weights(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
