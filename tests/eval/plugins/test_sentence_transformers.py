"""The module in the real sentence-transformers, with a tiny random model."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator, TripletEvaluator

from fwd2bot_eval.plugins.sentence_transformers import Fwd2BotModule, sentence_transformer
from fwd2bot_index.adapters import LoraSettings
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.errors import InputError, ModelError
from fwd2bot_index.model import Fwd2BotModel

K, E = 3, 16
TEXTS = ["a dog", "two red circles left of a blue square", "x", "a dog"]


@pytest.fixture(scope="module")
def model() -> Fwd2BotModel:
    base, processor = tiny_models.build("llava")
    config = CompressorConfig(num_summary_tokens=K, adapters="stage", embedding_dim=E)
    return Fwd2BotModel.from_base(base, processor, config, lora=LoraSettings(rank=2, alpha=4)).eval()


@pytest.fixture(scope="module")
def encoder(model: Fwd2BotModel) -> SentenceTransformer:
    return SentenceTransformer(modules=[Fwd2BotModule(model)], device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return tiny_models.pictures(5, sizes=[(40, 40), (70, 40), (30, 90)])


def test_encodes_as_the_model_does_whatever_the_batches(
    model: Fwd2BotModel, encoder: SentenceTransformer, pictures: list[Image.Image]
) -> None:
    assert encoder.get_embedding_dimension() == E
    assert encoder.modalities == ["text", "image"]
    assert encoder.tokenizer is model.processor.tokenizer
    texts, images = model.embed_text(TEXTS).numpy(), model.compress(pictures).embedding.numpy()
    for size in (1, 2, 32):
        np.testing.assert_allclose(encoder.encode(TEXTS, batch_size=size), texts, atol=1e-5)
        np.testing.assert_allclose(encoder.encode(pictures, batch_size=size), images, atol=1e-5)
    np.testing.assert_allclose(encoder.encode("a dog"), texts[0], atol=1e-5)
    np.testing.assert_allclose(encoder.encode_query("a dog"), texts[0], atol=1e-5)
    np.testing.assert_allclose(encoder.encode_document(pictures[1]), images[1], atol=1e-5)
    np.testing.assert_allclose(
        encoder.similarity(encoder.encode(TEXTS), encoder.encode(pictures)), texts @ images.T, atol=1e-5
    )


def test_every_way_to_give_a_picture(
    model: Fwd2BotModel, encoder: SentenceTransformer, pictures: list[Image.Image], tmp_path: Path
) -> None:
    picture = pictures[1]
    file = tmp_path / "a picture.png"
    picture.save(file)
    pixels = np.array(picture)
    address = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    given: list[Any] = [
        picture, file, str(file), file.read_bytes(), pixels, pixels.transpose(2, 0, 1), torch.tensor(pixels), address,
        {"image": picture}, {"image": str(file)}, {"image": file.read_bytes()},
    ]  # fmt: skip
    expected = model.compress([picture]).embedding[0].numpy()
    for one in given:
        np.testing.assert_allclose(encoder.encode([one])[0], expected, atol=1e-5, err_msg=str(type(one)))
    np.testing.assert_allclose(encoder.encode(file), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(file.read_bytes()), expected, atol=1e-5)
    assert np.abs(encoder.encode(pictures[2]) - expected).max() > 1e-3

    grey = picture.convert("L")
    same = encoder.encode([grey, np.array(grey)[:, :, None]])
    np.testing.assert_allclose(same[0], same[1], atol=1e-5)


def test_a_name_of_no_file_and_a_text_said_to_be_one_are_texts(
    model: Fwd2BotModel, encoder: SentenceTransformer, tmp_path: Path
) -> None:
    missing, file = str(tmp_path / "missing.png"), tmp_path / "boat.png"
    Image.new("RGB", (8, 8)).save(file)
    texts = model.embed_text([missing, str(file)]).numpy()
    np.testing.assert_allclose(encoder.encode(missing), texts[0], atol=1e-5)
    np.testing.assert_allclose(encoder.encode({"text": str(file)}), texts[1], atol=1e-5)


def test_what_comes_back(encoder: SentenceTransformer, model: Fwd2BotModel, pictures: list[Image.Image]) -> None:
    assert isinstance(encoder.encode(TEXTS), np.ndarray)
    assert isinstance(encoder.encode(TEXTS, convert_to_tensor=True), torch.Tensor)
    assert [tuple(e.shape) for e in encoder.encode(TEXTS, convert_to_numpy=False)] == [(E,)] * len(TEXTS)
    short = encoder.encode(pictures, truncate_dim=4, normalize_embeddings=True)
    assert short.shape == (5, 4)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-5)
    assert encoder.encode(TEXTS, precision="ubinary").shape == (len(TEXTS), E // 8)
    tokens = encoder.encode(pictures, output_value="token_embeddings")
    np.testing.assert_allclose(torch.stack(tokens).numpy(), model.compress(pictures).tokens.numpy(), atol=1e-4)
    with pytest.raises(InputError, match="no token_embeddings"):
        encoder.encode(TEXTS, output_value="token_embeddings")


def test_progress_is_shown_when_asked_for(encoder: SentenceTransformer, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode(TEXTS, show_progress_bar=False)
    assert capsys.readouterr().err == ""
    encoder.encode(TEXTS, batch_size=2, show_progress_bar=True)
    assert "2/2" in capsys.readouterr().err


def test_prompts(model: Fwd2BotModel, pictures: list[Image.Image]) -> None:
    encoder = SentenceTransformer(modules=[Fwd2BotModule(model)], device="cpu", prompts={"query": "find: "})
    expected = model.embed_text(["find: a dog"]).numpy()[0]
    np.testing.assert_allclose(encoder.encode("a dog", prompt="find: "), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode("a dog", prompt_name="query"), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_query("a dog"), expected, atol=1e-5)
    assert np.abs(encoder.encode("a dog") - expected).max() > 1e-3
    with pytest.raises(InputError, match="only texts take a prompt"):
        encoder.encode(pictures[0], prompt="find: ")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a dog", b"picture"], "mixes texts and pictures"),
        (["https://example.org/a.png"], "Nothing is downloaded"),
        (["data:image/png;base64,!!"], "base64"),
        ([np.zeros((4, 4, 3), np.float32)], "float32 is no picture"),
        ([np.zeros((5, 4, 7), np.uint8)], r"\(5, 4, 7\)"),
        ([("a", "b")], "neither one text nor one picture"),
        ([3], "int is neither"),
        ([{"image": 3}], "cannot be read from int"),
    ],
)
def test_what_is_no_input_is_refused(encoder: SentenceTransformer, inputs: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.encode(inputs)


def test_sentence_transformers_own_refusals_hold(encoder: SentenceTransformer, pictures: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="mixes multiple modalities"):
        encoder.encode(["a dog", pictures[0]])
    with pytest.raises(ValueError, match="does not use"):
        encoder.encode(["a dog"], temperature=2)
    with pytest.raises(ValueError, match="audio"):
        encoder.encode([np.zeros((4, 4), np.uint8)])
    with pytest.raises(InputError, match="processing_kwargs"):
        encoder.encode(["a dog"], processing_kwargs={"text": {"max_length": 3}})


def test_saved_folder_is_read_by_both(
    model: Fwd2BotModel, encoder: SentenceTransformer, pictures: list[Image.Image], tmp_path: Path
) -> None:
    encoder.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True, local_files_only=True)
    assert isinstance(again[0], Fwd2BotModule)
    np.testing.assert_array_equal(again.encode(pictures), encoder.encode(pictures))
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    ours = sentence_transformer(tmp_path, device="cpu")
    assert ours.similarity_fn_name == "cosine"
    np.testing.assert_array_equal(ours.encode(TEXTS), encoder.encode(TEXTS))

    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
    with pytest.raises(InputError, match="safetensors only"):
        encoder.save(str(tmp_path / "pickle"), safe_serialization=False)


def test_loading_takes_a_dtype_and_nothing_else(encoder: SentenceTransformer, tmp_path: Path) -> None:
    encoder.save_pretrained(str(tmp_path))

    def load(**more: Any) -> SentenceTransformer:
        return SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True, local_files_only=True, **more)

    half = load(model_kwargs={"dtype": torch.bfloat16})
    assert half[0].model.base.dtype == torch.bfloat16
    assert half.encode(TEXTS).dtype == np.float32
    np.testing.assert_allclose(half.encode(TEXTS), encoder.encode(TEXTS), atol=0.1)
    for more in ({"model_kwargs": {"attn_implementation": "sdpa"}}, {"config_kwargs": {"a": 1}}, {"backend": "onnx"}):
        with pytest.raises(InputError, match="takes model_kwargs"):
            load(**more)


def test_a_training_free_model_encodes_but_is_not_saved(tmp_path: Path, pictures: list[Image.Image]) -> None:
    base, processor = tiny_models.build("llava")
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    encoder = sentence_transformer(tmp_path / "base", device="cpu", num_summary_tokens=4)
    assert encoder.encode(pictures).shape == (5, tiny_models.HIDDEN)
    assert encoder.encode(pictures, output_value="token_embeddings")[0].shape == (4, tiny_models.HIDDEN)
    with pytest.raises(ModelError, match="nothing to save"):
        encoder.save_pretrained(str(tmp_path / "saved"))


def test_its_evaluators_run(encoder: SentenceTransformer, pictures: list[Image.Image]) -> None:
    buffer = io.BytesIO()
    pictures[0].save(buffer, "PNG")
    same = TripletEvaluator([pictures[0]], [buffer.getvalue()], [pictures[1]], show_progress_bar=False)
    assert same(encoder)["cosine_accuracy"] == 1
    search = InformationRetrievalEvaluator(
        queries={"q": "two red circles left of a blue square"},
        corpus={"a": "a dog", "b": "two red circles left of a blue square"},
        relevant_docs={"q": {"b"}},
        mrr_at_k=[1], ndcg_at_k=[1], accuracy_at_k=[1], precision_recall_at_k=[1], map_at_k=[1],
        show_progress_bar=False,
    )  # fmt: skip
    assert search(encoder)["cosine_accuracy@1"] == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.delitem(sys.modules, "fwd2bot_eval.plugins.sentence_transformers")
    import fwd2bot_eval.plugins as plugins

    assert plugins.__doc__
    with pytest.raises(ImportError, match=r"pip install 'fwd2bot\[harness\]'"):
        __import__("fwd2bot_eval.plugins.sentence_transformers")
