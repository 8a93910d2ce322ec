"""A demonstrated token from both sides: values, gradients, where they end, what they keep in memory."""

from math import exp, inf, log, nan

import pytest
import torch
from torch.nn.functional import cross_entropy
from toy_policy import minimise

from fe_posttrain.theory.projections import demonstration_loss, soft_target

VOCABULARY = 5
TARGETS = torch.tensor([[1, 4, 0], [2, 2, 3]])


def _logits(seed, shape=(*TARGETS.shape, VOCABULARY), dtype=torch.float64):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


LOG_REFERENCE = _logits(1).log_softmax(-1)


def _tilt(log_reference, targets, beta):
    """The target by its definition: a softmax of the tilted reference."""
    shown = torch.nn.functional.one_hot(targets, log_reference.shape[-1]).double()
    return (log_reference.double() + shown / beta).softmax(-1)


def _loss_and_gradient(loss, seed=2):
    logits = _logits(seed).requires_grad_()
    value = loss(logits.log_softmax(-1))
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def _ours(projection, beta, reference=LOG_REFERENCE):
    return lambda log_pi: demonstration_loss(
        log_pi, TARGETS, projection=projection, demonstration_beta=beta, log_reference=reference
    )


def _sft(log_pi):
    return cross_entropy(log_pi.flatten(0, 1), TARGETS.flatten(), reduction="none").view(TARGETS.shape)


def _dft(log_pi):
    nll = _sft(log_pi)
    return (-nll).exp().detach() * nll


# -- the target ------------------------------------------------------------------------------------------------------


def test_soft_target_by_hand():
    log_reference = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    target = soft_target(log_reference, torch.tensor(1), 1 / log(2))  # .25 counts twice: .5, .5, .25
    assert target.exp().tolist() == pytest.approx([0.4, 0.4, 0.2], abs=1e-15)


@pytest.mark.parametrize("beta", [10.0, 1.0, 0.05, 1e-3])
def test_soft_target_is_a_tilted_softmax(beta):
    target = soft_target(LOG_REFERENCE, TARGETS, beta)
    assert torch.allclose(target.exp(), _tilt(LOG_REFERENCE, TARGETS, beta), rtol=1e-12, atol=1e-300)


def test_soft_target_far_out_in_single_precision():
    log_reference = torch.tensor([[0.0, -300.0], [0.0, -300.0], [0.0, -inf]])
    target = soft_target(log_reference[:1], torch.tensor([1]), 1 / 200)
    assert target[0].tolist() == pytest.approx([0.0, -100.0], abs=1e-40)  # e^-300 e^200
    target = soft_target(log_reference[1:], torch.tensor([1, 1]), 1 / 1000)
    assert target.tolist() == [[-700.0, 0.0], [0.0, -inf]]  # e^-300 e^1000 wins; what is impossible stays so


def test_a_log_prob_that_rounding_left_above_zero():
    log_reference = torch.tensor([1e-7, -40.0])
    assert soft_target(log_reference, torch.tensor(0), 0.5).tolist() == pytest.approx([0, -42], abs=1e-6)


# -- values and gradients --------------------------------------------------------------------------------------------


def test_losses_by_hand():
    log_pi, log_ref = (torch.tensor([row], dtype=torch.float64).log() for row in ([0.2, 0.8], [0.5, 0.5]))
    target, beta = torch.tensor([0]), 1 / log(3)  # soft target: .75, .25

    def loss(projection, beta):
        return float(
            demonstration_loss(log_pi, target, projection=projection, demonstration_beta=beta, log_reference=log_ref)
        )

    assert loss("forward", 0.0) == pytest.approx(log(5))
    assert loss("forward", beta) == pytest.approx(0.75 * log(5) + 0.25 * log(1.25))
    assert loss("reverse", 0.0) == pytest.approx(-0.2)
    assert loss("reverse", beta) == pytest.approx(-0.2 + beta * (0.2 * log(0.4) + 0.8 * log(1.6)))


def test_forward_at_zero_is_sft():
    value, gradient = _loss_and_gradient(_ours("forward", 0.0, None))
    expected, expected_gradient = _loss_and_gradient(_sft)
    assert torch.equal(value, expected)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-14, atol=1e-16)


def test_reverse_at_zero_has_the_gradient_of_dft():
    value, gradient = _loss_and_gradient(_ours("reverse", 0.0, None))
    _, expected_gradient = _loss_and_gradient(_dft)
    assert torch.allclose(gradient, expected_gradient, rtol=1e-14, atol=1e-16)
    assert torch.allclose(value, -_logits(2).softmax(-1).gather(-1, TARGETS[..., None])[..., 0])


@pytest.mark.parametrize("beta", [3.0, 0.3, 0.05])
def test_forward_is_the_cross_entropy_to_the_soft_target(beta):
    value, gradient = _loss_and_gradient(_ours("forward", beta))
    target = _tilt(LOG_REFERENCE, TARGETS, beta)
    expected = cross_entropy(_logits(2).flatten(0, 1), target.flatten(0, 1), reduction="none")
    assert torch.allclose(value.flatten(), expected, rtol=1e-12)
    assert torch.allclose(gradient, _logits(2).softmax(-1) - target, atol=1e-12)


@pytest.mark.parametrize("beta", [3.0, 0.3, 0.05])
def test_reverse_is_the_energy_and_the_kl(beta):
    """Gradient of sum_v pi_v c_v with c_v = beta (log pi_v - log ref_v) - 1[v = y*]: pi_v (c_v - mean c)."""
    value, gradient = _loss_and_gradient(_ours("reverse", beta))
    pi = _logits(2).softmax(-1)
    shown = torch.nn.functional.one_hot(TARGETS, VOCABULARY)
    cost = beta * (pi.log() - LOG_REFERENCE) - shown
    mean = (pi * cost).sum(-1, keepdim=True)
    assert torch.allclose(value, mean[..., 0], rtol=1e-12)
    assert torch.allclose(gradient, pi * (cost - mean), atol=1e-12)


def test_forward_becomes_sft_as_the_temperature_falls():
    expected, expected_gradient = _loss_and_gradient(_sft)
    errors = []
    for beta in (0.2, 0.05, 0.02, 1e-3):
        value, gradient = _loss_and_gradient(_ours("forward", beta))
        errors.append(float((value - expected).abs().max() + (gradient - expected_gradient).abs().max()))
    assert errors[0] > 0.1 and errors == sorted(errors, reverse=True)
    assert errors[2] < 1e-12 and errors[3] < 1e-14


def test_a_position_knows_nothing_of_the_others():
    for projection in ("forward", "reverse"):
        whole, _ = _loss_and_gradient(_ours(projection, 0.3))
        one = demonstration_loss(
            _logits(2).log_softmax(-1)[1, 2],
            TARGETS[1, 2],
            projection=projection,
            demonstration_beta=0.3,
            log_reference=LOG_REFERENCE[1, 2],
        )
        assert one.shape == () and float(one) == pytest.approx(float(whole[1, 2]), abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("projection", ["forward", "reverse"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_the_dtype_is_that_of_the_policy(dtype, projection, beta):
    exact, _ = _loss_and_gradient(_ours(projection, beta))
    log_pi = _logits(2).log_softmax(-1).to(dtype)
    value = _ours(projection, beta, LOG_REFERENCE.to(dtype))(log_pi)
    assert value.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert torch.allclose(value.double(), exact, rtol=tolerance, atol=tolerance)


# -- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["forward", "reverse"])
def test_tokens_that_neither_can_produce_cost_nothing(projection):
    """A vocabulary padded with impossible tokens: the same loss, the same gradient, nothing on the padding."""
    value, gradient = _loss_and_gradient(_ours(projection, 0.3))
    impossible = torch.full((*TARGETS.shape, 2), -inf, dtype=torch.float64)
    padded = torch.cat([_logits(2), impossible], -1).requires_grad_()
    reference = torch.cat([LOG_REFERENCE, impossible], -1)
    loss = _ours(projection, 0.3, reference)(padded.log_softmax(-1))
    (padded_gradient,) = torch.autograd.grad(loss.sum(), padded)
    assert torch.allclose(loss, value, atol=1e-14)
    assert torch.allclose(padded_gradient[..., :VOCABULARY], gradient, atol=1e-14)
    assert not padded_gradient[..., VOCABULARY:].any()


def test_outside_the_reference():
    reference = torch.tensor([0.6, 0.4, 0.0], dtype=torch.float64).log()
    pi = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    arguments = {"demonstration_beta": 0.1, "log_reference": reference}
    shown = torch.tensor(2)  # no tilt reaches it: the target is the reference
    forward = demonstration_loss(pi, shown, projection="forward", **arguments)
    assert float(forward) == pytest.approx(-0.6 * log(0.5) - 0.4 * log(0.3))
    assert float(demonstration_loss(pi, shown, projection="reverse", **arguments)) == inf
    pi = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    assert float(demonstration_loss(pi, shown, projection="forward", **arguments)) == pytest.approx(log(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projection": "both"}, "projection: 'both'; unknown; write one of reverse, forward"),
        ({"demonstration_beta": -1.0}, "demonstration_beta: -1.0; .*; write a positive number, or 0"),
        ({"demonstration_beta": inf}, "demonstration_beta: inf; .*; write a positive number, or 0"),
        ({"demonstration_beta": nan}, "demonstration_beta: nan; .*; write a positive number, or 0"),
        ({"demonstration_beta": 0.1}, "log_reference: None at demonstration_beta 0.1; .*; pass its log-probs"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        demonstration_loss(LOG_REFERENCE, TARGETS, **{"projection": "forward", **changes})


def test_a_soft_target_needs_a_temperature():
    with pytest.raises(ValueError, match=r"demonstration_beta: 0.0; .*; write a positive number"):
        soft_target(LOG_REFERENCE, TARGETS, 0.0)


# -- where they end --------------------------------------------------------------------------------------------------


def _end(projection, targets, log_reference, beta):
    """Next-token law where the mean loss over several demonstrations of one prefix is smallest."""

    def loss(logits):
        log_pi = logits.log_softmax(-1).expand(len(targets), -1)
        return demonstration_loss(
            log_pi,
            targets,
            projection=projection,
            demonstration_beta=beta,
            log_reference=log_reference.expand(len(targets), -1),
        ).mean()

    return minimise(loss, torch.zeros(VOCABULARY, dtype=torch.float64)).softmax(-1)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_one_demonstration_both_sides_end_at_the_soft_target(beta):
    log_reference, target = LOG_REFERENCE[0, 0], torch.tensor([3])
    law = _tilt(log_reference, target[0], beta)
    assert (law - log_reference.exp()).abs().max() > 0.01
    for projection in ("forward", "reverse"):
        assert torch.allclose(_end(projection, target, log_reference, beta), law, atol=1e-6)


def test_several_demonstrations_forward_ends_at_the_mean_target_and_reverse_at_the_mean_energy():
    log_reference, targets, beta = LOG_REFERENCE[0, 0], torch.tensor([0, 0, 2]), 0.3
    mean_target = torch.stack([_tilt(log_reference, target, beta) for target in targets]).mean(0)
    frequency = torch.tensor([2 / 3, 0, 1 / 3, 0, 0], dtype=torch.float64)
    of_mean_energy = (log_reference + frequency / beta).softmax(-1)
    assert (mean_target - of_mean_energy).abs().max() > 0.05
    assert torch.allclose(_end("forward", targets, log_reference, beta), mean_target, atol=1e-6)
    assert torch.allclose(_end("reverse", targets, log_reference, beta), of_mean_energy, atol=1e-6)


def test_the_hot_limit_is_the_reference():
    end = _end("forward", torch.tensor([1]), LOG_REFERENCE[0, 0], 1e6)
    assert torch.allclose(end, LOG_REFERENCE[0, 0].exp(), atol=1e-5)
    assert exp(1 / 1e6) - 1 < 1e-5


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("projection", "beta", "floats"),
    [("forward", 0.0, 0), ("reverse", 0.0, 0), ("forward", 0.3, 1), ("reverse", 0.3, 2)],
)
def test_tensors_over_the_vocabulary_that_the_backward_pass_keeps(projection, beta, floats):
    log_pi = _logits(2).log_softmax(-1).requires_grad_()
    kept = {}

    def keep(tensor):
        if tensor.numel() == log_pi.numel() and tensor.is_floating_point():
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _ours(projection, beta)(log_pi)
    kept.pop(log_pi.data_ptr(), None)
    assert loss.requires_grad and len(kept) == floats
