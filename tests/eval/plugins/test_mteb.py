"""The encoder in the real mteb, on small tasks over drawn scenes: the bundled model must find and tell them apart."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
import pytest
import tiny_models
import torch
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, SentenceTransformerEncoderWrapper
from PIL import Image
from torch.utils.data import DataLoader

from fwd2bot_eval.plugins.mteb import Fwd2BotEncoder
from fwd2bot_eval.plugins.sentence_transformers import sentence_transformer
from fwd2bot_index import scenes
from fwd2bot_index.errors import InputError, ModelError
from fwd2bot_index.model import Fwd2BotModel

SEEDS = range(24)
NAMES = {"task_metadata": mteb.get_task("Winoground").metadata, "hf_split": "test", "hf_subset": "default"}


def metadata(name: str, **more: Any) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="Drawn scenes.",
        reference=None,
        dataset={"path": "made/here", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        modalities=["text", "image"],
        sample_creation=None,
        bibtex_citation=None,
        **more,
    )


def drawn() -> list[tuple[Image.Image, str, str]]:
    """Picture, caption, and a caption with another colour or shape."""
    made = []
    for seed in SEEDS:
        scene = scenes.scene(seed, stream="mteb")
        rng = np.random.default_rng(seed)
        caption = scenes.caption(scene, rng, relation=0)
        wrong = scenes.hard_negatives(scene, caption, rng)
        made.append((scenes.render(scene), str(caption), str(wrong.get("replace_object", wrong["replace_attribute"]))))
    return made


class DrawnRetrieval(AbsTaskRetrieval):
    metadata = metadata(
        "DrawnRetrieval",
        type="Any2AnyRetrieval",
        category="t2i",
        main_score="recall_at_1",
        prompt={"query": "Find an image that matches the given caption."},
    )

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        made = drawn()
        queries = {"id": [f"q{i}" for i in SEEDS], "text": [text for _, text, _ in made]}
        corpus = {"id": [f"d{i}" for i in SEEDS], "image": [image for image, _, _ in made]}
        self.dataset = {
            "default": {
                "test": {
                    "corpus": datasets.Dataset.from_dict(
                        corpus, features=datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
                    ),
                    "queries": datasets.Dataset.from_dict(queries),
                    "relevant_docs": {f"q{i}": {f"d{i}": 1} for i in SEEDS},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


class DrawnPairs(AbsTaskImageTextPairClassification):
    """As SugarCrepe: one picture, its caption and a false one."""

    images_column_names = ("image",)
    texts_column_names = ("caption", "negative_caption")
    metadata = metadata("DrawnPairs", type="Compositionality", category="i2t", main_score="text_acc")

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        images, captions, wrong = zip(*drawn(), strict=True)
        self.dataset = datasets.DatasetDict(
            {
                "test": datasets.Dataset.from_dict(
                    {"image": list(images), "caption": list(captions), "negative_caption": list(wrong)}
                ).cast_column("image", datasets.Image())
            }
        )
        self.data_loaded = True


@pytest.fixture(scope="module")
def encoder() -> Fwd2BotEncoder:
    return Fwd2BotEncoder.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def fits(encoder: Fwd2BotEncoder) -> np.ndarray[Any, Any]:
    """[pictures, captions and false captions]: cosine similarities, without mteb."""
    images, captions, wrong = zip(*drawn(), strict=True)
    texts = encoder.model.embed_text([*captions, *wrong])
    return (encoder.model.compress(images).embedding @ texts.T).numpy()


def evaluate(model: Any, task: Any, *, cache: Path | None = None) -> Mapping[str, Any]:
    result = mteb.evaluate(
        model,
        task,
        cache=mteb.ResultCache(cache) if cache else None,
        show_progress_bar=False,
        encode_kwargs={"batch_size": 7},
    )
    return result[0].scores["test"][0]


def test_metadata(encoder: Fwd2BotEncoder) -> None:
    meta = encoder.mteb_model_meta
    assert isinstance(encoder, EncoderProtocol)
    assert (meta.name, meta.revision) == ("fwd2bot/default", encoder.model.fingerprint)
    assert meta.embed_dim == encoder.model.embedding_dim
    assert set(meta.modalities) == {"image", "text"}
    assert meta.n_parameters == sum(p.numel() for p in encoder.model.parameters())


def test_text_to_image_retrieval(encoder: Fwd2BotEncoder, fits: np.ndarray[Any, Any]) -> None:
    scores = evaluate(encoder, DrawnRetrieval())
    hits = fits[:, : len(SEEDS)].argmax(axis=0) == np.arange(len(SEEDS))
    assert scores["recall_at_1"] == pytest.approx(hits.mean(), abs=1e-4)
    assert scores["recall_at_1"] > 0.5  # chance: 0.04


def test_compositionality(encoder: Fwd2BotEncoder, fits: np.ndarray[Any, Any], tmp_path: Path) -> None:
    scores = evaluate(encoder, DrawnPairs(), cache=tmp_path)
    n = np.arange(len(SEEDS))
    assert scores["text_acc"] == pytest.approx((fits[n, n] > fits[n, n + len(SEEDS)]).mean(), abs=1e-6)
    assert scores["text_acc"] > 0.7  # chance: 0.5
    (kept,) = tmp_path.rglob("DrawnPairs.json")  # under the fingerprint: never another model's
    assert kept.parent.name == encoder.model.fingerprint


@pytest.mark.filterwarnings(  # mteb 2.26 calls old names of its own and of sentence-transformers
    "ignore:The fill_missing parameter:DeprecationWarning",
    "ignore:The `get_sentence_embedding_dimension` method:FutureWarning",
)
def test_by_mtebs_own_wrapper_of_sentence_transformers(encoder: Fwd2BotEncoder) -> None:
    wrapper = SentenceTransformerEncoderWrapper(sentence_transformer(device="cpu"))
    wrapper.mteb_model_meta = encoder.mteb_model_meta  # mteb 2.26 takes any SentenceTransformer for a reader of texts
    for task in (DrawnPairs(), DrawnRetrieval()):
        assert evaluate(wrapper, task)["main_score"] == evaluate(encoder, task)["main_score"]


class _Batches:
    def __init__(self, *batches: dict[str, list[Any]]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_rows_are_gathered_into_batches_and_stay_in_order(
    encoder: Fwd2BotEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{i} red circles" for i in range(7)]
    pictures = [image for image, _, _ in drawn()[:5]]
    expected = encoder.model.embed_text(texts).numpy()
    seen: list[int] = []

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(rows: Any) -> Any:
            seen.append(len(rows))
            return method(rows)

        return counted

    monkeypatch.setattr(encoder.model, "embed_text", counting(encoder.model.embed_text))
    monkeypatch.setattr(encoder.model, "compress", counting(encoder.model.compress))
    ones = _Batches(*({"text": [text]} for text in texts))
    np.testing.assert_allclose(encoder.encode(ones, **NAMES, batch_size=3), expected, atol=1e-5)
    assert seen == [3, 3, 1]
    seen.clear()
    mixed = _Batches({"text": texts[:2]}, {"image": pictures}, {"text": texts[2:3]})
    found = encoder.encode(mixed, **NAMES, batch_size=4)
    assert seen == [2, 4, 1, 1]
    np.testing.assert_allclose(found[[0, 1, 7]], expected[:3], atol=1e-5)
    loader = DataLoader(texts, batch_size=2, collate_fn=lambda rows: {"text": rows})
    np.testing.assert_allclose(encoder.encode(loader, **NAMES, batch_size=3), expected, atol=1e-5)
    assert encoder.encode(_Batches(), **NAMES).shape == (0, encoder.model.embedding_dim)


def test_progress_is_shown_when_asked_for(encoder: Fwd2BotEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode(_Batches({"text": ["a"]}), **NAMES)
    assert capsys.readouterr().err == ""
    encoder.encode(_Batches({"text": ["a"]}), **NAMES, show_progress_bar=True)
    assert "encoding" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("batch", "more", "message"),
    [
        ({"text": ["a"], "image": [Image.new("RGB", (8, 8))]}, {}, "inputs of text and image"),
        ({"audio": [None]}, {}, "inputs of audio"),
        ({"id": ["1"]}, {}, "no known kind"),
        ({"image": [None]}, {}, "a row without its image"),
        ({"text": ["a"]}, {"precision": "int8"}, "int8"),
    ],
)
def test_what_it_cannot_encode_is_refused(
    encoder: Fwd2BotEncoder, batch: dict[str, list[Any]], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        encoder.encode(_Batches(batch), **NAMES, **more)


def test_other_models_have_other_names(tmp_path: Path) -> None:
    base, processor = tiny_models.build("llava")
    base.save_pretrained(tmp_path / "a model")
    processor.save_pretrained(tmp_path / "a model")
    two, four = (
        Fwd2BotEncoder.from_pretrained(tmp_path / "a model", device="cpu", num_summary_tokens=k, dtype=torch.float32)
        for k in (2, 4)
    )
    assert two.mteb_model_meta.name.endswith("__a__model")
    assert two.mteb_model_meta.revision != four.mteb_model_meta.revision
    unsaved = Fwd2BotModel(two.model.base, two.model.processor, two.model.config)
    with pytest.raises(ModelError, match="no fingerprint"):
        Fwd2BotEncoder(unsaved)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    monkeypatch.delitem(sys.modules, "fwd2bot_eval.plugins.mteb")
    with pytest.raises(ImportError, match=r"pip install 'fwd2bot\[harness\]'"):
        __import__("fwd2bot_eval.plugins.mteb")
