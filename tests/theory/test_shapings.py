"""The factor of each demonstrated token: values by hand, the gradients that the papers name, padding."""

from math import exp, log

import pytest
import torch

from fe_posttrain.theory.projections import SHAPINGS

PROBS = torch.tensor([[0.5, 0.1, 0.9], [0.2, 1.0, 0.3]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, True, False]])
ENTROPIES = torch.tensor([[0.3, 0.6, 0.0], [1.0, 3.0, 50.0]], dtype=torch.float64)

BY_HAND = {
    "none": ({}, [[1, 1, 1], [1, 1, 0]]),
    "probability": ({}, [[0.5, 0.1, 0.9], [0.2, 1, 0]]),
    "uncertainty": ({}, [[0.25, 0.09, 0.09], [0.16, 0, 0]]),
    "shrinking": ({}, [[0.05 / 0.36, 0.25, 0.09], [0.02 / 0.09, 0.1 / 1.21, 0]]),
    "confidence": ({}, [[exp(-0.3)] * 3, [exp(-2), exp(-2), 0]]),
}


@pytest.mark.parametrize("name", SHAPINGS)
def test_values_by_hand(name):
    arguments, expected = BY_HAND[name]
    factor = SHAPINGS[name](PROBS.log(), ENTROPIES, MASK, **arguments)
    assert factor.dtype == torch.float64
    assert torch.allclose(factor, torch.tensor(expected, dtype=torch.float64), atol=1e-15)


def test_arguments_by_hand():
    factor = SHAPINGS["shrinking"](PROBS.log(), None, MASK, gamma=0.5)
    assert float(factor[0, 0]) == pytest.approx(0.25)  # .5 .5 / 1
    factor = SHAPINGS["confidence"](PROBS.log(), ENTROPIES, MASK, scale=0.5)
    assert float(factor[1, 0]) == pytest.approx(0.5 * exp(-2))


@pytest.mark.parametrize("name", SHAPINGS)
def test_factors_are_constants_and_never_read_padding(name):
    log_probs, entropies = PROBS.log(), ENTROPIES.clone()
    log_probs[1, 2] = entropies[1, 2] = float("nan")
    log_probs.requires_grad_(), entropies.requires_grad_()
    factor = SHAPINGS[name](log_probs, entropies, MASK)
    assert not factor.requires_grad
    assert torch.allclose(factor, torch.tensor(BY_HAND[name][1], dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("probability", lambda p: -p),  # the 0/1 energy
        ("uncertainty", lambda p: -p + p**2 / 2),  # (1 - p) dp
        ("shrinking", lambda p: -p / (p + 0.1)),
    ],
)
def test_a_shaped_log_likelihood_has_the_gradient_of_its_objective(name, objective):
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64).requires_grad_()
    log_p = torch.nn.functional.logsigmoid(logits)
    factor = SHAPINGS[name](log_p[None], None, torch.ones(1, 9, dtype=torch.bool))[0]
    (shaped,) = torch.autograd.grad(-(factor * log_p).sum(), logits)
    (expected,) = torch.autograd.grad(objective(logits.sigmoid()).sum(), logits)
    assert torch.allclose(shaped, expected, rtol=1e-12)


def test_uncertainty_keeps_its_digits_where_the_policy_is_sure():
    log_p = torch.tensor([[-1e-9]])  # float32, where 1 - e^-1e-9 would be 0
    assert float(SHAPINGS["uncertainty"](log_p, None, torch.tensor([[True]]))) == pytest.approx(1e-9, rel=1e-6)


def test_a_row_without_tokens_is_zero():
    none = torch.zeros(1, 2, dtype=torch.bool)
    for name, shaping in SHAPINGS.items():
        assert shaping(torch.tensor([[log(0.5)] * 2]), torch.ones(1, 2), none).tolist() == [[0.0, 0.0]], name


def test_confidence_needs_entropies():
    with pytest.raises(ValueError, match=r"entropies: None; .*; pass the policy's token entropies"):
        SHAPINGS["confidence"](PROBS.log(), None, MASK)
