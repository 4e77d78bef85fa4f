"""Tiny random dual encoders of the real architectures, saved and loaded as a user's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch.nn import functional as F

from fwd2bot_eval.clip import ClipSubject
from fwd2bot_eval.scorers import scorer_names
from fwd2bot_eval.subjects import Picture
from fwd2bot_index.errors import InputError, ModelError

LENGTH = 12
SETTINGS = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def build(kind: str, folder: Path) -> Any:
    import transformers as t

    torch.manual_seed(0)
    words = tiny_models.tokenizer()
    text = SETTINGS | {
        "vocab_size": len(words), "max_position_embeddings": LENGTH, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 0, "projection_size": 16,
    }  # fmt: skip
    vision = SETTINGS | {"image_size": 32, "patch_size": 8}
    if kind == "clip":
        model = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))
        processor = t.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    else:
        model = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision))
        processor = t.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    words.save_pretrained(folder)
    return model, processor, words


def shown() -> list[Picture]:
    return [Picture(image=i, content_id=str(n)) for n, i in enumerate(tiny_models.pictures(3))]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_embeddings_are_those_of_a_direct_computation(kind: str, tmp_path: Path) -> None:
    model, processor, words = build(kind, tmp_path)
    subject = ClipSubject.from_pretrained(tmp_path)
    pictures = shown()
    with torch.no_grad():
        pixels = processor([p.image for p in pictures], return_tensors="pt")["pixel_values"]
        images = model.get_image_features(pixel_values=pixels)
        ids = words(
            ["a dog"], return_tensors="pt", padding="max_length" if kind == "siglip" else False, max_length=LENGTH
        )
        mask = {} if kind == "siglip" else {"attention_mask": ids["attention_mask"]}
        texts = model.get_text_features(input_ids=ids["input_ids"], **mask)
    plain = [x if isinstance(x, torch.Tensor) else x.pooler_output for x in (images, texts)]
    found = subject.see(pictures).embedding
    np.testing.assert_allclose(found, F.normalize(plain[0], dim=-1).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(subject.embed_text(["a dog"]), F.normalize(plain[1], dim=-1).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_batch_of_texts_is_its_texts(kind: str, tmp_path: Path) -> None:
    build(kind, tmp_path)
    subject = ClipSubject.from_pretrained(tmp_path)
    texts = ["a dog", "x", "two cats"]
    alone = np.concatenate([subject.embed_text([t]) for t in texts])
    np.testing.assert_allclose(subject.embed_text(texts), alone, atol=1e-5)
    assert subject.notes == []


def test_texts_that_are_cut_are_counted(tmp_path: Path) -> None:
    build("clip", tmp_path)
    subject = ClipSubject.from_pretrained(tmp_path)
    assert np.isfinite(subject.embed_text(["a dog", "a dog that is far too long"])).all()
    assert "1 texts were longer" in subject.notes[0]


def test_it_embeds_and_answers_nothing(tmp_path: Path) -> None:
    build("clip", tmp_path)
    subject = ClipSubject.from_pretrained(tmp_path)
    assert scorer_names(subject) == ["cosine"]
    with pytest.raises(InputError, match="answers no questions"):
        subject.see(shown()).reader("k=16")
    assert subject.fingerprint == ClipSubject.from_pretrained(tmp_path).fingerprint
    assert subject.name == f"clip:{tmp_path}"


def test_what_is_no_dual_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model"):
        ClipSubject.from_pretrained(tmp_path / "absent")
    base, processor = tiny_models.build("llava")
    base.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    with pytest.raises(ModelError, match="no dual encoder"):
        ClipSubject.from_pretrained(tmp_path / "llava")
    build("clip", tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_config.json").write_text("{}")
    with pytest.raises(ModelError, match="OpenCLIP's own format"):
        ClipSubject.from_pretrained(tmp_path / "clip")
