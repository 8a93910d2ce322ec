"""Exact values on the testbed: success probability, KL and free-energy gap, without drawing a sample.

Teacher forcing prices every correct completion, end token included, so p(x) is exact at any size; the KL expands
the tree of completions by breadth. All on held-out prompts, in nats, accumulated in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from fe_posttrain.sequences.scoring import score
from fe_posttrain.tasks.digits import answers
from fe_posttrain.theory.gibbs import bernoulli_log_partition

_TREES_AT_ONCE = 32  # bounds memory: a tree may have thousands of live prefixes


def exact_probabilities(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_size: int = 512
) -> Tensor:
    """p(x) = sum over the prompt's answers y of pi(y, end token | x); float64, shape (n,).

    The model is used in the mode it is in; call it in evaluation mode if it has dropout.
    """
    pairs = [(i, y) for i, x in enumerate(prompts) for y in answers(x)]
    prompt_ids = tokenizer(list(prompts))["input_ids"]
    answer_ids = tokenizer([y for _, y in pairs])["input_ids"]
    log_probs, _ = score(
        model,
        [prompt_ids[i] for i, _ in pairs],
        [[*ids, tokenizer.eos_token_id] for ids in answer_ids],
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
    )
    owner = torch.tensor([i for i, _ in pairs])
    by_answer = log_probs.double().sum(-1).exp().cpu()
    return torch.zeros(len(prompts), dtype=torch.float64).index_add_(0, owner, by_answer)


def family_means(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: dict[str, list[str]]
) -> dict[str, float]:
    """Mean exact p(x) of each family's prompts, all scored in one go."""
    p = exact_probabilities(model, tokenizer, [x for family in prompts.values() for x in family])
    parts = p.split([len(family) for family in prompts.values()])
    return {name: part.mean().item() for name, part in zip(prompts, parts, strict=True)}


@dataclass(frozen=True)
class ExactTerms:
    """Terms of F, one per prompt; each a float64 tensor of shape (n,).

    `probability` is p(x) under the policy, `kl` is KL(policy||reference) in nats per sequence less what lies
    below the pruned prefixes, and `unexplored` is their policy mass: never negative terms, so `kl` is a lower
    bound, exact where `unexplored` is 0.
    """

    probability: Tensor
    kl: Tensor
    unexplored: Tensor


@torch.no_grad()
def exact_terms(
    policy: torch.nn.Module,
    reference: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    tolerance: float = 1e-5,
    max_length: int,
) -> ExactTerms:
    """Exact p(x) and KL = sum over prefixes h of pi(h) KL(pi(.|h) || ref(.|h)), level by level.

    Args:
        tolerance: prefixes of less policy mass are not expanded; 0 enumerates everything.
        max_length: completion tokens, end token included; completions are cut there, as generation cuts them.

    Raises:
        ValueError: `max_length` cuts correct answers off.
    """
    needed = 1 + max(len(y) for x in prompts for y in answers(x))
    if max_length < needed:
        raise ValueError(f"max_length {max_length} cuts answers off; these prompts need {needed}")
    by_length: dict[int, list[int]] = {}
    prompt_ids = tokenizer(list(prompts))["input_ids"]
    for i, ids in enumerate(prompt_ids):
        by_length.setdefault(len(ids), []).append(i)
    kl = torch.zeros(len(prompts), dtype=torch.float64)
    unexplored = torch.zeros_like(kl)
    device = next(policy.parameters()).device
    for same_length in by_length.values():
        for start in range(0, len(same_length), _TREES_AT_ONCE):
            rows = same_length[start : start + _TREES_AT_ONCE]
            ids = torch.tensor([prompt_ids[i] for i in rows], device=device)
            kl[rows], unexplored[rows] = _expand(
                (policy, reference), ids, tokenizer.eos_token_id, tolerance, max_length
            )
    return ExactTerms(exact_probabilities(policy, tokenizer, prompts), kl, unexplored)


def _expand(
    models: tuple[torch.nn.Module, torch.nn.Module], tokens: Tensor, end: int, tolerance: float, max_length: int
) -> tuple[Tensor, Tensor]:
    """KL and pruned mass of prompts (n, P) of one length. A row is a live prefix; `owner` is its prompt."""
    caches = [DynamicCache(config=model.config.get_text_config()) for model in models]
    owner = torch.arange(len(tokens), device=tokens.device)
    mass = torch.ones(len(tokens), dtype=torch.float64, device=tokens.device)
    kl, unexplored = torch.zeros_like(mass), torch.zeros_like(mass)
    for level in range(max_length):
        log_policy, log_reference = (
            model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            .logits[:, -1]
            .double()
            .log_softmax(-1)
            for model, cache in zip(models, caches, strict=True)
        )
        probs = log_policy.exp()
        nats = torch.where(probs > 0, probs * (log_policy - log_reference), 0.0)  # 0 log 0 = 0
        kl.index_add_(0, owner, mass * nats.sum(-1))
        if level + 1 == max_length:
            break
        children = mass[:, None] * probs
        children[:, end] = 0.0  # complete
        live = (children >= tolerance) & (children > 0)
        unexplored.index_add_(0, owner, children.masked_fill(live, 0.0).sum(-1))
        parent, drawn = live.nonzero(as_tuple=True)
        if len(parent) == 0:
            break
        for cache in caches:
            cache.batch_select_indices(parent)
        owner, mass, tokens = owner[parent], children[live], drawn[:, None]
    return kl.cpu(), unexplored.cpu()


def exact_gap(terms: ExactTerms, p_reference: Tensor, *, beta: float, reward_energy_weight: float = 1.0) -> Tensor:
    """F(pi) - F* per prompt = beta KL - w_r p + beta log Z(p_ref), in energy units; shape (n,).

    A lower bound where `terms.unexplored` is not 0. ValueError unless beta > 0.
    """
    log_z = bernoulli_log_partition(p_reference, reward_energy_weight=reward_energy_weight, beta=beta)
    return beta * (terms.kl + log_z) - reward_energy_weight * terms.probability
