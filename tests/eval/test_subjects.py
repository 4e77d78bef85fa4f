from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from fwd2bot_eval.runs import run
from fwd2bot_eval.scorers import fit_scores, scorer_names
from fwd2bot_eval.subjects import BLIND, OTHER, SHORT_ANSWER, UNCOMPRESSED, Fwd2BotSubject, Picture, TextTooLongError
from fwd2bot_eval.tasks import make_task
from fwd2bot_eval.tasks.options import TaskOptions
from fwd2bot_index.codec import get_codec
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.decoding import content_id
from fwd2bot_index.errors import InputError
from fwd2bot_index.indexing import index_images
from fwd2bot_index.model import Fwd2BotModel

ASKED = ["what is it?", "is it a red dog?", "q"]
SAID = ["dog", "no", "a cat"]
ROWS = [0, 2, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Fwd2BotModel:
    base, processor = tiny_models.build("llava")
    config = CompressorConfig(num_summary_tokens=8, queries="region", adapters="none", embedding_dim=16)
    folder = tmp_path_factory.mktemp("model")
    Fwd2BotModel.from_base(base, processor, config, lora=None).save_pretrained(folder)
    return Fwd2BotModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Picture]]:
    folder = tmp_path_factory.mktemp("shown")
    pictures = []
    for i, image in enumerate(tiny_models.pictures(3)):
        image.save(folder / f"{i}.png")
        pictures.append(Picture(image=image, content_id=content_id((folder / f"{i}.png").read_bytes())))
    return folder, pictures


def test_columns_are_ways_of_reading(model: Fwd2BotModel, shown: tuple[Path, list[Picture]]) -> None:
    subject = Fwd2BotSubject(model, ks=[8, 4])
    assert subject.columns == ["k=8", "k=4", UNCOMPRESSED, BLIND, OTHER]
    seen = subject.see(shown[1])
    tokens = model.compress([p.image for p in shown[1]]).tokens
    for column, read in (("k=8", tokens), ("k=4", tokens[:, :4]), (OTHER, tokens[[1, 2, 0]])):
        logprob, count = seen.reader(column).score(ROWS, ASKED, SAID)
        expected = model.score_answers(read[ROWS], ASKED, SAID)
        np.testing.assert_allclose(logprob, expected.logprob, rtol=1e-4, atol=1e-4)
        assert count.tolist() == [3, 2, 5]
        assert seen.reader(column).generate(ROWS, ASKED, max_new_tokens=2) == model.generate(
            read[ROWS], ASKED, max_new_tokens=2
        )
    sightless = seen.reader(BLIND).score([0, 0, 0], ASKED, SAID)[0]
    np.testing.assert_array_equal(seen.reader(BLIND).score([1, 2, 1], ASKED, SAID)[0], sightless)
    whole = seen.reader(UNCOMPRESSED).score(ROWS, ASKED, SAID)[0]
    assert not np.allclose(whole, seen.reader(UNCOMPRESSED).score([1, 1, 1], ASKED, SAID)[0])


def test_scores_are_of_both_passes(tmp_path: Path) -> None:
    """A run is not gone on with by a model that answers otherwise, though it would write the same index."""

    def saved(**settings: str) -> Fwd2BotModel:
        base, processor = tiny_models.build("llava")
        torch.manual_seed(0)
        config = CompressorConfig(num_summary_tokens=8, adapters="none", **settings)
        folder = tmp_path / str(len(settings))
        Fwd2BotModel.from_base(base, processor, config, lora=None).save_pretrained(folder)
        return Fwd2BotModel.from_pretrained(folder, device="cpu")

    one, other = saved(), saved(matching_prompt="is {text} there?")
    assert one.fingerprint == other.fingerprint
    assert Fwd2BotSubject(one).fingerprint != Fwd2BotSubject(other).fingerprint


def test_order_of_questions_changes_nothing(
    model: Fwd2BotModel, shown: tuple[Path, list[Picture]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are sorted by length inside."""
    seen = Fwd2BotSubject(model).see(shown[1])
    whole = seen.reader("k=8").score(ROWS, ASKED, SAID)[0]
    answers = seen.reader("k=8").generate(ROWS, ASKED, max_new_tokens=3)
    monkeypatch.setattr("fwd2bot_eval.subjects.BATCH", 2)
    np.testing.assert_allclose(seen.reader("k=8").score(ROWS[::-1], ASKED[::-1], SAID[::-1])[0][::-1], whole, atol=1e-4)
    assert seen.reader("k=8").generate(ROWS[::-1], ASKED[::-1], max_new_tokens=3) == answers[::-1]


def test_a_single_picture_has_a_grey_one_for_another(model: Fwd2BotModel, shown: tuple[Path, list[Picture]]) -> None:
    seen = Fwd2BotSubject(model).see(shown[1][:1])
    own, other = (seen.reader(c).score([0], ["q"], ["dog"])[0] for c in ("k=8", OTHER))
    assert not np.allclose(own, other)


def test_a_codec_and_an_index_give_what_is_stored(
    model: Fwd2BotModel, shown: tuple[Path, list[Picture]], tmp_path: Path
) -> None:
    folder, pictures = shown
    tokens = model.compress([p.image for p in pictures]).tokens.numpy()
    codec = get_codec("int2")
    stored = torch.from_numpy(codec.decode(codec.encode(tokens), k=8, d=tokens.shape[2]))
    expected = model.score_answers(stored[ROWS], ASKED, SAID).logprob
    by_codec = Fwd2BotSubject(model, codec="int2")
    np.testing.assert_allclose(by_codec.see(pictures).reader("k=8").score(ROWS, ASKED, SAID)[0], expected, atol=1e-4)

    index_images([folder], tmp_path / "index", model=model, codec="int2")
    by_index = Fwd2BotSubject(model, index=Corpus.open(tmp_path / "index", model=model))
    seen = by_index.see(pictures)
    np.testing.assert_allclose(seen.reader("k=8").score(ROWS, ASKED, SAID)[0], expected, atol=2e-2)
    assert by_index.settings["codec"] == "int2"
    again = Fwd2BotSubject(model, index=Corpus.open(tmp_path / "index", model=model))
    assert again.settings == by_index.settings
    shutil.rmtree(tmp_path / "index")
    index_images([folder], tmp_path / "index", model=model, codec="pq8")
    first = Fwd2BotSubject(model, index=Corpus.open(tmp_path / "index", model=model)).settings
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "0.png", tmp_path / "one")
    index_images([tmp_path / "one"], tmp_path / "index", model=model, codec="pq8")
    other = Fwd2BotSubject(model, index=Corpus.open(tmp_path / "index", model=model)).settings
    assert {key for key in first if first[key] != other[key]} == {"index_manifest"}, "its codec learned otherwise"
    stranger = Picture(image=pictures[0].image, content_id="0" * 32)
    with pytest.raises(InputError, match="does not hold 1 of these pictures"):
        by_index.see([*pictures, stranger])


def test_what_makes_no_sense_is_refused(model: Fwd2BotModel) -> None:
    with pytest.raises(InputError, match="cannot be read at k = 9"):
        Fwd2BotSubject(model, ks=[9])
    assert Fwd2BotSubject(model).columns[:2] == ["k=8", "k=4"]
    assert Fwd2BotSubject(model, baselines=False).columns == ["k=8", "k=4"]


def test_training_free_says_so(tmp_path: Path) -> None:
    base, processor = tiny_models.build("llava")
    base.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    plain = Fwd2BotModel.from_pretrained(tmp_path, device="cpu", num_summary_tokens=4)
    subject = Fwd2BotSubject(plain)
    assert subject.columns[0] == "k=4"
    assert "Training-free" in subject.notes[0]
    assert subject.short_answer_suffix("k=4") == subject.short_answer_suffix(UNCOMPRESSED) == SHORT_ANSWER
    with pytest.raises(InputError, match="no shorter summary"):
        Fwd2BotSubject(plain, ks=[4, 2])


def test_each_column_is_asked_for_a_short_answer_as_its_model_is(model: Fwd2BotModel, tmp_path: Path) -> None:
    subject = Fwd2BotSubject(model)
    assert {subject.short_answer_suffix(c) for c in subject.columns} == {""}, "its base may have been trained with it"
    base, processor = tiny_models.build("llava")
    for part in (base, processor):
        part.save_pretrained(tmp_path / "plain")
    plain = Fwd2BotModel.from_pretrained(tmp_path / "plain", device="cpu")
    beside = Fwd2BotSubject(model, uncompressed=plain)
    assert {c: beside.short_answer_suffix(c) for c in beside.columns} == {
        "k=8": "", "k=4": "", UNCOMPRESSED: SHORT_ANSWER, BLIND: "", OTHER: "",
    }  # fmt: skip
    assert beside.settings["short_answer_suffix"] == ""
    assert beside.settings["short_answer_suffix_uncompressed"] == SHORT_ANSWER
    config = dataclasses.replace(model.config, base_model=str(tmp_path / "plain"))
    kept = copy.copy(model)
    kept.config = config
    assert Fwd2BotSubject(kept).short_answer_suffix(UNCOMPRESSED) == SHORT_ANSWER, "a base that is kept elsewhere"
    for said in ("", "\nShort!"):
        told = Fwd2BotSubject(model, uncompressed=plain, short_answer_suffix=said)
        assert {told.short_answer_suffix(c) for c in told.columns} == {said}


def test_precision_and_device_are_settings(model: Fwd2BotModel) -> None:
    settings = Fwd2BotSubject(model).settings
    assert (settings["device"], settings["dtype"]) == ("cpu", "float32")
    half = Fwd2BotModel.from_pretrained(model.name, device="cpu", dtype=torch.bfloat16)
    assert Fwd2BotSubject(half).settings["dtype"] == "bfloat16"


def test_three_scorers(model: Fwd2BotModel, shown: tuple[Path, list[Picture]]) -> None:
    subject = Fwd2BotSubject(model, ks=[8])
    seen = subject.see(shown[1])
    texts = ["a dog", "two cats", "a dog"]
    scores = fit_scores(subject, seen, ROWS, texts)
    assert list(scores) == scorer_names(subject)
    tokens = model.compress([p.image for p in shown[1]])
    cosine = (model.embed_text(texts) * tokens.embedding[ROWS]).sum(-1).numpy()
    np.testing.assert_allclose(scores["cosine"], cosine, atol=1e-5)
    yes_no = model.loglikelihood(tokens.tokens[ROWS], [f"does this show {t}?" for t in texts], ["yes", "no"]).numpy()
    np.testing.assert_allclose(scores["matching k=8"], yes_no[:, 0] - yes_no[:, 1], atol=1e-3)
    said = model.score_answers(tokens.tokens[ROWS], "write a caption.", texts).logprob.numpy()
    np.testing.assert_allclose(scores["caption k=8"], said, atol=1e-3)
    np.testing.assert_allclose(scores["caption/blind k=8"], said - scores["text only"], atol=1e-3)
    assert scores["text only"][0] == scores["text only"][2]


def test_a_text_beyond_the_models_length_is_refused_not_cut(
    model: Fwd2BotModel, shown: tuple[Path, list[Picture]], tmp_path: Path
) -> None:
    """Tiny models have 512 positions and a token a character; 8 summary tokens and the prompt take some."""
    subject = Fwd2BotSubject(model)
    assert subject.embed_text(["x" * 440]).shape == (1, 16)
    with pytest.raises(TextTooLongError, match="has 441 tokens; the model reads 440"):
        subject.embed_text(["x" * 441])
    reader = subject.see(shown[1]).reader("k=8")
    with pytest.raises(TextTooLongError):
        reader.generate([0], ["x" * 441], max_new_tokens=1)
    with pytest.raises(TextTooLongError):
        reader.score([0], ["q"], ["x" * 440])

    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for i, picture in enumerate(shown[1]):
        picture.image.save(data / "images" / f"{i}.png")
    rows = [
        {"filename": f"{i}.png", "split": "test", "sentences": [{"raw": "a dog"}, {"raw": "long " * (100 * i)}]}
        for i in (1, 2)
    ]
    rows[0]["sentences"][1] = {"raw": "a cat"}  # type: ignore[index]
    (data / "dataset_flickr30k.json").write_text(json.dumps({"images": rows}))
    with pytest.raises(InputError, match=r"data, item 2\.png: The text 'long long"):
        run(make_task("retrieval", TaskOptions(data=data)), subject, tmp_path / "out")


class _OnlyEmbeds:
    columns: Any = ()


def test_a_model_that_only_embeds_has_one_scorer() -> None:
    assert scorer_names(_OnlyEmbeds()) == ["cosine"]  # type: ignore[arg-type]
