"""Closed forms: what the losses are where arithmetic tells it."""

import math

import pytest
import torch
import torch.nn.functional as F

from fwd2bot_training.losses import autoregressive, distillation, info_nce, matryoshka_info_nce, orthogonality, words


def test_uniform_logits_cost_log_v() -> None:
    assert autoregressive(torch.zeros(5, 11), torch.arange(5)).tolist() == pytest.approx([math.log(11)] * 5)


def test_distillation_closed_form() -> None:
    """KL of (1/2, 1/2) from (p, 1-p), and none from itself; the teacher's gradient is cut."""
    p = 1 / (1 + math.exp(-3))
    teacher = torch.tensor([[0.0, 3.0]], requires_grad=True)
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = distillation(logits, teacher)
    assert loss.item() == pytest.approx(p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)), rel=1e-5)
    assert distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    loss.sum().backward()
    assert logits.grad is not None
    assert teacher.grad is None


def test_orthogonality_closed_form() -> None:
    """Two equal tokens and one at right angles: 2 of 6 ordered pairs have cosine 1, whatever their lengths."""
    tokens = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    assert orthogonality(tokens).tolist() == pytest.approx([2 / 6, 4 * 0.5 / 6])
    assert orthogonality(tokens[:, :1]).tolist() == [0, 0]


def test_indistinguishable_embeddings_cost_log_b() -> None:
    same = F.normalize(torch.ones(6, 4), dim=-1)
    assert info_nce(same, same, torch.tensor(2.0)).item() == pytest.approx(math.log(6), rel=1e-6)


def test_orthogonal_pairs_have_the_closed_form_of_clip() -> None:
    eye, scale = torch.eye(4), math.log(5.0)
    expected = math.log(1 + 3 * math.exp(-5.0))
    assert info_nce(eye, eye, torch.tensor(scale)).item() == pytest.approx(expected, rel=1e-5)


def test_contrast_is_exact_under_autocast() -> None:
    """Cosines are compared to more digits than bfloat16 has."""
    images = F.normalize(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    texts = F.normalize(images + 0.01, dim=-1)
    exact = info_nce(images, texts, torch.tensor(4.6))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(images, texts, torch.tensor(4.6)), exact)


def test_hard_negatives_stand_beside_the_other_texts() -> None:
    """An orthogonal negative is one more rival for each image, and none for a text."""
    eye, scale = torch.eye(5), math.log(5.0)
    images_to_texts, texts_to_images = (math.log(1 + n * math.exp(-5.0)) for n in (4, 3))
    loss = info_nce(eye[:4], eye[:4], torch.tensor(scale), eye[4:])
    assert loss.item() == pytest.approx((images_to_texts + texts_to_images) / 2, rel=1e-5)
    assert info_nce(eye[:4], eye[:4], torch.tensor(scale), eye[:0]).item() == pytest.approx(texts_to_images, rel=1e-5)


def test_both_directions_count() -> None:
    """One text near two images: image->text is easy, text->image is not; the loss is their mean."""
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scale = 10.0
    to_text = (math.log(1 + math.exp(-scale)) + math.log(1 + math.exp(scale))) / 2
    to_image = math.log(2)
    assert info_nce(images, texts, torch.tensor(math.log(scale))).item() == pytest.approx((to_text + to_image) / 2)


def test_temperature_is_capped_at_one_hundredth() -> None:
    images = F.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0]]), dim=-1)
    hot, capped = info_nce(images, images, torch.tensor(9.0)), info_nce(images, images, torch.tensor(math.log(100.0)))
    assert hot.item() == pytest.approx(capped.item())


def test_matryoshka_is_the_mean_over_the_sizes() -> None:
    """In the first two numbers all are alike (log B); in all four they are orthogonal."""
    eye = torch.cat([torch.full((2, 2), 0.5), torch.tensor([[0.5, 0.5], [-0.5, -0.5]])], dim=1)
    whole = math.log(1 + math.exp(-5.0))
    loss = matryoshka_info_nce(eye, eye, torch.tensor(math.log(5.0)), eye[:0], (2,))
    assert loss.item() == pytest.approx((whole + math.log(2)) / 2, rel=1e-5)


def test_word_loss_closed_forms() -> None:
    targets = torch.zeros(3, 7)
    targets[:, 2] = 1
    assert words(torch.randn(3, 4), torch.zeros(7, 4), targets).tolist() == pytest.approx([math.log(7)] * 3)
    feature = torch.tensor([[6.0, 0.0, 0.0, 0.0]])  # one of two right words scores 6, the others 0
    loss = words(feature, torch.eye(4), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    assert loss.item() == pytest.approx(math.log(math.exp(6) + 3) - 3, rel=1e-4)
