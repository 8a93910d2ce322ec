"""A trainer's step, and what to compare it with: log-probs row by row without padding, gradients by autograd."""

import small
import torch

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.sequences.scoring import score

BETA, WEIGHT, LENGTH = 0.2, 1.5, 8


def fixed_rollouts(prompts, trainer):
    """The same completions at every call, with the log-probs of the policy of now."""
    generator = torch.Generator().manual_seed(7)
    tokenizer = small.TOKENIZER
    prompt_ids = tokenizer(prompts)["input_ids"]
    completion_ids = []
    for _ in prompts:
        length = int(torch.randint(0, LENGTH - 1, (1,), generator=generator))
        drawn = torch.randint(4, len(tokenizer), (length,), generator=generator).tolist()
        completion_ids.append([*drawn, tokenizer.eos_token_id])
    log_probs, mask = score(trainer.model, prompt_ids, completion_ids, pad_token_id=0)
    trainer.drawn = prompt_ids, completion_ids
    kept = [row[m].tolist() for row, m in zip(log_probs, mask, strict=True)]
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": kept}


def train(folder, *, settings=None, **arguments):
    defaults = {"max_steps": 1, "beta": BETA, "max_grad_norm": 0.0, **small.ROLLOUTS, **(settings or {})}
    arguments = {
        "model": small.model(),
        "reward_funcs": [small.length_reward],
        "train_dataset": small.prompts(),
        **arguments,
    }
    return small.run(FreeEnergyTrainer, FreeEnergyConfig, folder, settings=defaults, **arguments)


def log_probs_with_grad(model, prompt_ids, completion_ids) -> list[torch.Tensor]:
    """Row by row, without padding: the log-probs of each completion's tokens."""
    rows = []
    for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        rows.append(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0])
    return rows


def gradients_of(loss, model) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found, wanted, tolerance=2e-5):
    assert found.keys() == wanted.keys()
    scale = max(g.abs().max() for g in wanted.values())
    assert scale > 0
    for name in wanted:
        assert (found[name] - wanted[name]).abs().max() <= tolerance * scale, name
