"""Tiny random dual encoders of the real architectures, saved and loaded as a user's would be."""

from __future__ import annotations

import json
from importlib.util import find_spec
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
    (note,) = subject.notes
    assert note.endswith("reads the first 12 tokens of a text.")
    assert subject.settings["text_tokens"] == LENGTH


def test_texts_that_are_cut_are_counted(tmp_path: Path) -> None:
    build("clip", tmp_path)
    subject = ClipSubject.from_pretrained(tmp_path)
    assert np.isfinite(subject.embed_text(["a dog", "a dog that is far too long"])).all()
    subject.embed_text(["a dog that is far too long", "another dog that is far too long"])
    assert subject.notes[0].endswith("at least 2 texts were longer.")
    np.testing.assert_allclose(subject.embed_text(["abcdefghijkl"]), subject.embed_text(["abcdefghijklmno"]), atol=1e-6)


def test_a_wide_picture_reaches_the_model_as_it_is(tmp_path: Path) -> None:
    """CLIP scales the short side: reduced by its long side before, a wide picture would lose what the model sees."""
    _, processor, _ = build("clip", tmp_path)
    subject = ClipSubject.from_pretrained(tmp_path)
    assert subject.decode_side is None
    wide = tiny_models.pictures(1)[0].resize((400, 32))
    seen = subject.see([Picture(image=wide, content_id="")]).embedding
    pixels = processor([wide], return_tensors="pt")
    with torch.no_grad():
        direct = subject._unit(subject._model.get_image_features(**pixels))
    np.testing.assert_allclose(seen, direct, atol=1e-6)


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


def test_openclips_format_alone_is_refused_and_beside_the_other_one_ignored(tmp_path: Path) -> None:
    """LAION's repositories hold a model in both formats."""
    build("clip", tmp_path)
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert ClipSubject.from_pretrained(tmp_path).embed_text(["a"]).shape == (1, 10)
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    with pytest.raises(ModelError, match="OpenCLIP's own format"):
        ClipSubject.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"architecture": "vit_base_patch32_clip_224"}'
    )  # timm's, as on its hub pages
    with pytest.raises(ModelError, match="OpenCLIP's own format"):
        ClipSubject.from_pretrained(tmp_path)


def test_weights_that_could_run_code_are_not_read(tmp_path: Path) -> None:
    model, _, _ = build("clip", tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").rename(tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ModelError, match=r"cannot be loaded.*safetensors"):
        ClipSubject.from_pretrained(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(*question: Any) -> str:
        asked.append(question)
        return "y"

    build("clip", tmp_path)
    monkeypatch.setattr("builtins.input", ask)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise AssertionError('this ran')")
    with pytest.raises(ModelError, match="cannot be loaded"):
        ClipSubject.from_pretrained(tmp_path)
    assert asked == []


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    build("clip", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, the first text_projection\.weight"):
        ClipSubject.from_pretrained(tmp_path)


def test_the_fingerprint_is_of_the_weights(tmp_path: Path) -> None:
    model, _, _ = build("clip", tmp_path)
    before = ClipSubject.from_pretrained(tmp_path).fingerprint
    with torch.no_grad():
        model.text_projection.weight.mul_(2)
    model.save_pretrained(tmp_path)
    assert ClipSubject.from_pretrained(tmp_path).fingerprint != before


def test_an_image_processor_of_another_model_is_noticed(tmp_path: Path) -> None:
    import transformers as t

    build("clip", tmp_path)
    t.CLIPImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be used: Input image size"):
        ClipSubject.from_pretrained(tmp_path)


def test_spaces_that_differ_are_noticed(tmp_path: Path) -> None:
    import transformers as t

    build("clip", tmp_path)
    words = tiny_models.tokenizer()
    text = SETTINGS | {"vocab_size": len(words), "pad_token_id": 0}
    # ALIGN projects texts only: to a size that its vision model happens to have
    model = t.AlignModel(
        t.AlignConfig(text_config=text, vision_config={"image_size": 32, "hidden_dim": 16}, projection_dim=16)
    )
    model.save_pretrained(tmp_path)
    t.EfficientNetImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a picture gets 640 numbers, a text 16"):
        ClipSubject.from_pretrained(tmp_path)


def test_a_tokenizer_that_takes_a_package_names_it(tmp_path: Path) -> None:
    if find_spec("sentencepiece"):
        pytest.skip("sentencepiece is installed")
    build("siglip", tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "SiglipTokenizer"}))
    with pytest.raises(ModelError, match="pip install sentencepiece"):
        ClipSubject.from_pretrained(tmp_path)
