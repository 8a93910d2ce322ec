"""Exact values against enumeration of every completion, and against sampling on the real reference."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from random_llama import random_llama
from transformers import AutoModelForCausalLM

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.sampling import sample
from fe_posttrain.sequences.scoring import score
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.exact import ExactTerms, exact_gap, exact_probabilities, exact_terms, family_means

PROMPT, LENGTH = "R12345", 6  # the shortest length that holds its answer 54321 and the end token
SPOKEN = "12345"


class Restricted(torch.nn.Module):
    """A model that can only say five digits and the end token: 19,531 completions of at most six tokens."""

    def __init__(self, model, allowed: list[int]):
        super().__init__()
        self.model, self.config = model, model.config
        self.register_buffer("mask", torch.full((model.config.vocab_size,), -math.inf))
        self.mask[allowed] = 0.0

    def forward(self, *args, **kwargs):
        return SimpleNamespace(logits=self.model(*args, **kwargs).logits + self.mask)


@pytest.fixture(scope="module")
def pair(tokenizer):
    allowed = [*tokenizer.encode(SPOKEN), tokenizer.eos_token_id]
    return tuple(Restricted(random_llama(seed, spread=0.6), allowed).eval() for seed in (1, 2))


@pytest.fixture(scope="module")
def world(pair, tokenizer):
    """Every completion with its log-prob under policy and reference, by one plain forward each."""
    spoken, end = tokenizer.encode(SPOKEN), tokenizer.eos_token_id
    ended = [(*y, end) for n in range(LENGTH) for y in itertools.product(spoken, repeat=n)]
    completions = ended + list(itertools.product(spoken, repeat=LENGTH))
    prompt = tokenizer.encode(PROMPT)
    totals = []
    for model in pair:
        log_probs = []
        for n in range(1, LENGTH + 1):
            rows = torch.tensor([prompt + list(y) for y in completions if len(y) == n])
            with torch.no_grad():
                law = model(rows).logits[:, len(prompt) - 1 : -1].double().log_softmax(-1)
            log_probs.append(law.gather(-1, rows[:, len(prompt) :, None]).sum((1, 2)))
        totals.append(torch.cat(log_probs))
    completions.sort(key=len)  # stable: the order in which the log-probs were joined
    answer = torch.tensor([y == (*tokenizer.encode("54321"), end) for y in completions])
    return *totals, answer


def test_terms_equal_enumeration(pair, world, tokenizer):
    log_policy, log_reference, answer = world
    policy = log_policy.exp()
    assert policy.sum().item() == pytest.approx(1.0, abs=1e-6)  # logits are float32
    kl = (policy * (log_policy - log_reference)).sum().item()
    assert kl > 0.5  # the two models differ
    terms = exact_terms(*pair, tokenizer, [PROMPT, PROMPT], tolerance=0.0, max_length=LENGTH)
    assert terms.unexplored.tolist() == [0.0, 0.0]
    assert terms.kl.tolist() == pytest.approx([kl, kl], rel=1e-6)
    assert terms.probability.tolist() == pytest.approx([policy[answer].item()] * 2, rel=1e-5)


def test_gap_equals_enumeration(pair, world, tokenizer):
    log_policy, log_reference, answer = world
    beta, weight = 0.3, 2.0
    policy, reward = log_policy.exp(), weight * answer.double()
    free_energy = (policy * (beta * (log_policy - log_reference) - reward)).sum()
    optimum = -beta * torch.logsumexp(log_reference + reward / beta, 0)
    terms = exact_terms(*pair, tokenizer, [PROMPT], tolerance=0.0, max_length=LENGTH)
    p_reference = exact_probabilities(pair[1], tokenizer, [PROMPT])
    gap = exact_gap(terms, p_reference, beta=beta, reward_energy_weight=weight)
    assert gap.item() == pytest.approx((free_energy - optimum).item(), rel=1e-5)
    at_reference = exact_terms(pair[1], pair[1], tokenizer, [PROMPT], max_length=LENGTH)
    assert at_reference.kl.item() == 0.0


def test_gap_by_hand():
    # p_ref = 1/2 and e^{1/beta} = 3: Z = 2, and the optimum has p* = 3/4 at KL = 3/4 log 3/2 + 1/4 log 1/2
    beta, kl = 1 / math.log(3), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    half, zero, p_end, kl_end = torch.tensor([[0.5], [0.0], [0.75], [kl]], dtype=torch.float64)
    assert exact_gap(ExactTerms(p_end, kl_end, zero), half, beta=beta).item() == pytest.approx(0.0, abs=1e-12)
    expected = beta * math.log(2) - 0.5
    assert exact_gap(ExactTerms(half, zero, zero), half, beta=beta).item() == pytest.approx(expected)


def test_pruning_only_lowers_kl_and_says_how_much_mass_it_skipped(pair, tokenizer):
    full = exact_terms(*pair, tokenizer, [PROMPT], tolerance=0.0, max_length=LENGTH)
    pruned = exact_terms(*pair, tokenizer, [PROMPT], tolerance=1e-3, max_length=LENGTH)
    assert 0.0 < pruned.kl.item() < full.kl.item()
    assert 0.0 < pruned.unexplored.item() < 1.0


def test_length_that_cuts_answers_off_is_refused(pair, tokenizer):
    with pytest.raises(ValueError, match="need 12"):
        exact_terms(*pair, tokenizer, ["RT12345"], max_length=11)


def test_probability_sums_both_answers_of_prompts_of_any_length(tokenizer):
    model = random_llama(3, spread=0.3)
    prompts = ["RT31425", "R31425", "XT90817", "U12345"]
    expected = []
    for prompt in prompts:
        p = 0.0
        for answer in digits.answers(prompt):  # one row at a time: nothing is padded
            ids = torch.tensor([[*tokenizer.encode(prompt + answer), tokenizer.eos_token_id]])
            with torch.no_grad():
                law = model(ids).logits.double().log_softmax(-1)[0, len(prompt) - 1 : -1]
            p += law.gather(-1, ids[0, len(prompt) :, None]).sum().exp().item()
        expected.append(p)
    got = exact_probabilities(model, tokenizer, prompts, batch_size=3)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(expected, rel=1e-4)
    means = family_means(model, tokenizer, {"a": prompts[:3], "b": prompts[3:]})
    assert means == pytest.approx({"a": sum(expected[:3]) / 3, "b": expected[3]}, rel=1e-4)


def test_agrees_with_sampling_on_the_testbed(reference_folder, tokenizer):
    reference = AutoModelForCausalLM.from_pretrained(reference_folder).eval()
    policy = AutoModelForCausalLM.from_pretrained(reference_folder).eval()
    with torch.no_grad():
        policy.model.norm.weight *= 0.6  # the reference at temperature 1/.6
    prompts = digits.prompts("tail_10", 4, 0, "probe")
    terms = exact_terms(policy, reference, tokenizer, prompts, tolerance=1e-6, max_length=12)
    assert terms.unexplored.max() < 0.02  # below what 4 standard errors of the sampled KL let through
    n = 500
    ids = [row for row in tokenizer(prompts)["input_ids"] for _ in range(n)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn, _, _ = sample(policy, ids, Decoding(12), eos_token_ids=[tokenizer.eos_token_id], pad_token_id=0)
    by_model = (score(model, ids, drawn, pad_token_id=0)[0].double().sum(-1) for model in (policy, reference))
    log_policy, log_reference = by_model
    ratio = log_policy - log_reference
    assert terms.kl.mean().item() == pytest.approx(ratio.mean().item(), abs=4 * ratio.std().item() / len(ratio) ** 0.5)
    texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
    hits = digits.correct([x for x in prompts for _ in range(n)], texts)
    p = terms.probability.mean().item()
    assert sum(hits) / len(hits) == pytest.approx(p, abs=4 * (p / len(hits)) ** 0.5)
