"""The losses of distillation against the formulas in numpy, in float64."""

import numpy as np
import pytest
import torch

from ignite_prune.regularise import attention_error, hidden_error, logits_error, soft_targets


def softmax(values, axis):
    shifted = np.exp(values - values.max(axis, keepdims=True))
    return shifted / shifted.sum(axis, keepdims=True)


@pytest.mark.parametrize(
    ("shape", "dim", "temperature"), [((5, 7), -1, 1.0), ((3, 4, 6), -1, 4.0), ((2, 5, 3, 4), 1, 2.5)]
)
def test_soft_targets_are_hintons(shape, dim, temperature):
    dice = np.random.default_rng(0)
    student, teacher = dice.normal(0, 3, shape), dice.normal(0, 3, shape)
    p, q = softmax(teacher / temperature, dim), softmax(student / temperature, dim)
    wanted = temperature**2 * (p * (np.log(p) - np.log(q))).sum(dim).mean()
    given = torch.tensor(student, requires_grad=True)
    found = soft_targets(given, torch.tensor(teacher), temperature, dim)
    assert found.item() == pytest.approx(wanted, rel=1e-12)
    found.backward()  # T (q - p) / rows
    np.testing.assert_allclose(given.grad, temperature * (q - p) / (student.size / shape[dim]), rtol=1e-9, atol=1e-12)


def test_published_figures():
    """Hinton, section 2.1: at a high temperature the gradient is (z - v) / N for logits of zero mean."""
    z, v = torch.tensor([[1.0, -2.0, 1.0]], dtype=torch.float64, requires_grad=True), torch.tensor([[3.0, 0.0, -3.0]])
    soft_targets(z, v, temperature=1e4).backward()
    np.testing.assert_allclose(z.grad, (z.detach() - v) / 3, atol=1e-3)
    assert soft_targets(torch.tensor([[0.0, np.log(3.0)]]), torch.tensor([[0.0, 0.0]]), 1.0).item() == pytest.approx(
        0.5 * np.log(4 / 3), rel=1e-6
    )  # KL((1/2, 1/2) || (1/4, 3/4))


def test_squared_errors_are_means():
    dice = np.random.default_rng(1)
    s, t = dice.normal(size=(2, 3, 4)), dice.normal(size=(2, 3, 4))
    s_, t_ = torch.tensor(s), torch.tensor(t)
    assert logits_error(s_, t_).item() == pytest.approx(((s - t) ** 2).mean())
    assert hidden_error(s_, t_).item() == pytest.approx(((s - t) ** 2).mean())
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (s, t)]
    assert hidden_error(s_, t_, True, 1).item() == pytest.approx(((unit[0] - unit[1]) ** 2).sum(1).mean())


def test_attentions_of_other_heads_are_compared_by_their_mean():
    dice = np.random.default_rng(2)
    s, t = dice.random((2, 4, 3, 3)), dice.random((2, 2, 3, 3))
    wanted = ((s.mean(1) - t.mean(1)) ** 2).mean()
    assert attention_error(torch.tensor(s), torch.tensor(t)).item() == pytest.approx(wanted)
    assert attention_error(torch.tensor(s), torch.tensor(s[::-1].copy())).item() == pytest.approx(
        ((s - s[::-1]) ** 2).mean()
    )


def test_half_precision_is_computed_in_float32_and_the_teacher_has_no_gradient():
    student = torch.full((1, 2), 60000.0, dtype=torch.float16, requires_grad=True)
    teacher = torch.zeros(1, 2, dtype=torch.float16, requires_grad=True)
    found = logits_error(student, teacher)
    assert found.dtype == torch.float32 and found.item() == 60000.0**2
    found.backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: soft_targets(torch.zeros(3, 1), torch.zeros(3, 1)), "two classes"),
        (lambda: soft_targets(torch.zeros(3), torch.zeros(4)), r"\(3,\) and \(4,\)"),
        (lambda: soft_targets(torch.zeros(2), torch.zeros(2), 0.0), "temperature"),
        (lambda: hidden_error(torch.zeros(2, 3), torch.zeros(3)), "one shape"),
    ],
)
def test_bad_arguments(call, text):
    with pytest.raises(ValueError, match=text):
        call()
