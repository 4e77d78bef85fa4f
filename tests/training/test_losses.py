"""Closed forms: what the losses are where arithmetic tells it."""

import math

import pytest
import torch

from fwd2bot_training.losses import autoregressive, info_nce, words


def test_uniform_logits_cost_log_v() -> None:
    loss = autoregressive(torch.zeros(5, 11), torch.arange(5))
    assert loss.item() == pytest.approx(math.log(11), rel=1e-6)


def test_weights_are_relative() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    labels = torch.tensor([0, 0])
    first, second = math.log(2), math.log(1 + math.exp(-3))
    for scale in (1.0, 7.0):
        loss = autoregressive(logits, labels, torch.tensor([3.0, 1.0]) * scale)
        assert loss.item() == pytest.approx((3 * first + second) / 4, rel=1e-6)


def test_indistinguishable_embeddings_cost_log_b() -> None:
    same = torch.nn.functional.normalize(torch.ones(6, 4), dim=-1)
    assert info_nce(same, same, torch.tensor(2.0)).item() == pytest.approx(math.log(6), rel=1e-6)


def test_orthogonal_pairs_have_the_closed_form_of_clip() -> None:
    eye, scale = torch.eye(4), math.log(5.0)
    expected = math.log(1 + 3 * math.exp(-5.0))
    assert info_nce(eye, eye, torch.tensor(scale)).item() == pytest.approx(expected, rel=1e-5)


def test_contrast_is_exact_under_autocast() -> None:
    """Cosines are compared to more digits than bfloat16 has."""
    images = torch.nn.functional.normalize(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), dim=-1)
    texts = torch.nn.functional.normalize(images + 0.01, dim=-1)
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
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0]]), dim=-1)
    hot, capped = info_nce(images, images, torch.tensor(9.0)), info_nce(images, images, torch.tensor(math.log(100.0)))
    assert hot.item() == pytest.approx(capped.item())


def test_word_loss_closed_forms() -> None:
    targets = torch.zeros(3, 7)
    targets[:, 2] = 1
    assert words(torch.randn(3, 4), torch.zeros(7, 4), targets).item() == pytest.approx(math.log(7), rel=1e-6)
    feature = torch.tensor([[6.0, 0.0, 0.0, 0.0]])  # one of two right words scores 6, the others 0
    loss = words(feature, torch.eye(4), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    assert loss.item() == pytest.approx(math.log(math.exp(6) + 3) - 3, rel=1e-4)
