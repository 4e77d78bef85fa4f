"""The double pass, on every family: tiny random models of the real architectures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from torch.nn import functional as F

from fwd2bot_index import model as model_module
from fwd2bot_index.adapters import LoraSettings
from fwd2bot_index.config import CompressorConfig, Queries
from fwd2bot_index.errors import ImageError, InputError, ModelError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.regions import region_weights
from fwd2bot_index.types import Compressor, Stage

K = 6
TEXTS = ["a dog", "two red circles left of a blue square", "x"]
SIZES = [(40, 40), (70, 40), (30, 90)]
every_family = pytest.mark.parametrize("family", tiny_models.FAMILIES)


def trained(family: str, *, queries: Queries = "region", lora: bool = True, **settings: int) -> Fwd2BotModel:
    """A model as after training: adapters that do something, heads, everything random."""
    base, processor = tiny_models.build(family)
    config = CompressorConfig(
        num_summary_tokens=K, queries=queries, adapters="stage" if lora else "none", embedding_dim=16, **settings
    )
    model = Fwd2BotModel.from_base(base, processor, config, lora=LoraSettings(rank=4, alpha=8) if lora else None)
    with torch.no_grad():
        for name, parameter in model.base.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def training_free(family: str, folder: Path, **settings: int) -> Fwd2BotModel:
    base, processor = tiny_models.build(family)
    base.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Fwd2BotModel.from_pretrained(folder, **settings, device="cpu")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@every_family
def test_saved_and_loaded_is_the_same(family: str, tmp_path: Path) -> None:
    model = trained(family)
    pictures = tiny_models.pictures(3, sizes=SIZES)
    before = model.compress(pictures)
    model.save_pretrained(tmp_path)
    loaded = Fwd2BotModel.from_pretrained(tmp_path, device="cpu")
    assert isinstance(loaded, Compressor)
    after = loaded.compress(pictures)
    assert torch.equal(after.tokens, before.tokens)
    assert torch.equal(after.embedding, before.embedding)
    assert torch.equal(loaded.embed_text(TEXTS), model.embed_text(TEXTS))
    assert torch.equal(
        loaded.loglikelihood(before.tokens, "what?", ["yes", "no"]),
        model.loglikelihood(before.tokens, "what?", ["yes", "no"]),
    )
    assert loaded.generate(before.tokens, "what?", max_new_tokens=4) == model.generate(
        before.tokens, "what?", max_new_tokens=4
    )
    assert (loaded.mode, loaded.num_summary_tokens, loaded.embedding_dim) == ("trained", K, 16)
    scores = model.loglikelihood(before.tokens, "what?", ["yes"])
    for name, parameter in model.base.named_parameters():  # both adapters matter: without them it says something else
        if "lora_B" in name:
            parameter.data.zero_()
    assert not torch.allclose(model.compress(pictures).tokens, before.tokens, atol=1e-2)
    assert not torch.allclose(model.loglikelihood(before.tokens, "what?", ["yes"]), scores, atol=1e-2)


def test_a_pillow_image_is_what_its_file_is() -> None:
    glass = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    deep = Image.fromarray(np.full((30, 40), 20000, np.uint16))
    long = Image.new("RGB", (900, 30), "red")
    inputs = trained("llava").inputs
    for image in (glass, deep, long):
        inputs.decode_side = 128
        file = BytesIO()
        image.save(file, "PNG")
        assert np.array_equal(np.asarray(inputs.picture(image)), np.asarray(inputs.picture(file.getvalue())))


def test_saved_in_half_precision_the_model_in_memory_stays_as_it_is(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = trained("llava")
    before = model.compress(tiny_models.pictures(1)).tokens
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(model.compress(tiny_models.pictures(1)).tokens, before)
    for file in ("base/model.safetensors", "adapters/compress/adapter_model.safetensors"):
        assert {t.dtype for t in load_file(tmp_path / file).values()} == {torch.bfloat16}
    loaded = Fwd2BotModel.from_pretrained(tmp_path, device="cpu")
    torch.testing.assert_close(loaded.compress(tiny_models.pictures(1)).tokens, before, atol=0.1, rtol=0.1)


def test_compiled_layers_say_the_same() -> None:
    """Whatever the batch, and in the second pass too. (Code generation, a minute of it, is left out; all families were
    tried once, and take 15 s each.)"""
    model = trained("llava")
    pictures = tiny_models.pictures(3, sizes=SIZES)
    with model.merged("compress"):
        before = model.compress(pictures).tokens
    said = model.generate(before, "what?", max_new_tokens=3)
    layer = model.language_model.layers[0]
    model.compile(backend="eager")
    try:
        assert layer._compiled_call_impl is not None
        with model.merged("compress"):
            for chosen in (slice(0, 3), slice(1, 3)):
                again = model.compress(pictures[chosen]).tokens
                torch.testing.assert_close(again, before[chosen], atol=1e-4, rtol=1e-4)
        assert model.generate(before, "what?", max_new_tokens=3) == said
    finally:
        torch.compiler.reset()


def test_what_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("llava")

    def broken(graph: object, inputs: object) -> object:
        raise RuntimeError("no C++ compiler here\nmore")

    with pytest.raises(ModelError, match=r"no C\+\+ compiler here.*without --compile"):
        model.compile(backend=broken)  # type: ignore[arg-type]
    torch.compiler.reset()
    assert model.compress(tiny_models.pictures(1)).tokens.shape[0] == 1


@every_family
def test_training_free_round_trip(family: str, tmp_path: Path) -> None:
    """Loaded from its folder, the base gives what the base in memory gives by its own means."""
    model = training_free(family, tmp_path, num_summary_tokens=4)
    assert (model.mode, model.num_summary_tokens, model.embedding_dim) == ("training-free", 4, tiny_models.HIDDEN)
    pictures = tiny_models.pictures(3, sizes=SIZES)
    summary = model.compress(pictures)
    assert summary.tokens.shape == (3, 4, tiny_models.HIDDEN)
    torch.testing.assert_close(summary.embedding.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(model.embed_text(TEXTS).norm(dim=-1), torch.ones(3))

    base, _ = tiny_models.build(family)
    for picture, tokens in zip(pictures, summary.tokens, strict=True):
        batch = model.prepare_images([picture])
        height, width = batch.grids[0]
        with torch.no_grad():
            kwargs = {k: v for k, v in batch.pixels.items() if k != "pixel_attention_mask"}
            features = base.model.get_image_features(**kwargs).pooler_output
        features = torch.cat(list(features)) if not isinstance(features, torch.Tensor) else features
        grid = features.reshape(-1, tiny_models.HIDDEN)[: height * width].T.reshape(1, -1, height, width)
        shape = {(4, 4): (2, 2), (2, 2): (2, 2), (2, 4): (1, 4), (6, 2): (4, 1)}[height, width]
        expected = F.adaptive_avg_pool2d(grid, shape)[0].flatten(1).T
        torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


@every_family
def test_batched_equals_one_by_one(family: str, tmp_path: Path) -> None:
    """Pictures of several sizes and prompts of several lengths, so that rows are padded."""
    pictures = tiny_models.pictures(3, sizes=SIZES)
    for model in (trained(family), training_free(family, tmp_path)):
        together = model.compress(pictures)
        alone = [model.compress([p]) for p in pictures]
        torch.testing.assert_close(torch.cat([a.tokens for a in alone]), together.tokens, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(torch.cat([a.embedding for a in alone]), together.embedding, atol=1e-4, rtol=1e-4)
        assert torch.equal(model.compress(model.preprocess(pictures)).tokens, together.tokens)
        texts = torch.cat([model.embed_text([t]) for t in TEXTS])
        torch.testing.assert_close(texts, model.embed_text(TEXTS), atol=1e-4, rtol=1e-4)

        tokens = together.tokens
        scores = model.loglikelihood(tokens, TEXTS, ["yes", "no idea"])
        each = [model.loglikelihood(tokens[i : i + 1], TEXTS[i], ["yes", "no idea"]) for i in range(3)]
        torch.testing.assert_close(torch.cat(each), scores, atol=1e-3, rtol=1e-4)
        answers = model.generate(tokens, TEXTS, max_new_tokens=6)
        assert answers == [model.generate(tokens[i : i + 1], TEXTS[i], max_new_tokens=6)[0] for i in range(3)]
        assert len(set(answers)) > 1


@every_family
def test_half_precision_runs_through_and_stays_near(family: str, tmp_path: Path) -> None:
    """bfloat16 is the default on a GPU: every input must be cast, and what is learned outside the base stays
    float32."""
    model = trained(family)
    model.save_pretrained(tmp_path)
    half = Fwd2BotModel.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert half.base.dtype == torch.bfloat16
    assert half.queries is not None
    assert half.queries.dtype == torch.float32
    pictures = tiny_models.pictures(2)
    exact, rough = model.compress(pictures), half.compress(pictures)
    assert rough.tokens.dtype == rough.embedding.dtype == torch.float32
    assert F.cosine_similarity(exact.tokens, rough.tokens, dim=-1).mean() > 0.95
    assert (exact.embedding * rough.embedding).sum(-1).min() > 0.9
    assert half.loglikelihood(exact.tokens, "what?", ["yes", "no"]).dtype == torch.float32
    assert len(half.generate(exact.tokens, "what?", max_new_tokens=3)) == 2


@every_family
def test_second_pass_is_a_plain_forward_with_the_tokens_in_the_image_positions(family: str) -> None:
    model = trained(family, lora=False)
    tokens = torch.randn(2, K, tiny_models.HIDDEN, generator=torch.Generator().manual_seed(0))
    ids, mask = model.prepare_prompts("what is it?", 2, num_tokens=K)
    assert mask.all()
    image_token = model.base.config.image_token_id
    with torch.no_grad():
        logits = model.second_pass(tokens, ids, mask)
        embeds = model.base.get_input_embeddings()(ids.where(ids != image_token, 0))
        embeds[ids == image_token] = tokens.flatten(0, 1)
        types = {}
        if family == "paligemma":
            types["token_type_ids"] = torch.zeros_like(ids)
        if family == "gemma3":
            types["token_type_ids"] = (ids == image_token).long()
        plain = model.base(inputs_embeds=embeds, attention_mask=mask, **types).logits
    torch.testing.assert_close(logits, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits[0, -1], logits[1, -1], atol=1e-2)  # the tokens are read


@every_family
def test_generate_is_what_whole_forwards_say(family: str) -> None:
    """The cache changes nothing: every next token is the best one of a forward over all that is before it."""
    model = trained(family)
    tokens = model.compress(tiny_models.pictures(2)).tokens
    model.stop_tokens = list  # type: ignore[method-assign]  # random models may stop at once
    replies = model.answer(tokens, "what is it?", max_new_tokens=5)
    logprob = torch.zeros(2)
    ids, mask = model.prepare_prompts("what is it?", 2, num_tokens=K)
    for step in range(5):
        with torch.no_grad():
            logits = model.second_pass(tokens, ids, mask, suffix=step, logits_to_keep=1)
        best, each = model._best(logits)
        logprob += each
        ids = torch.cat([ids, best[:, None]], dim=1)
        mask = F.pad(mask, (0, 1), value=1)
    assert replies.texts == [model._decode(row, set()) for row in ids[:, -5:].tolist()]
    torch.testing.assert_close(replies.logprob, logprob, atol=1e-3, rtol=1e-4)
    assert replies.num_tokens.tolist() == [5, 5]


def test_an_answer_counts_to_its_end_and_no_further() -> None:
    model = trained("llava")
    tokens = model.compress(tiny_models.pictures(1)).tokens
    model.stop_tokens = list  # type: ignore[method-assign]
    two, six = (model.answer(tokens, "what is it?", max_new_tokens=n) for n in (2, 6))
    ids, mask = model.prepare_prompts("what is it?", 1, num_tokens=K)
    said: list[int] = []
    for _ in range(2):
        with torch.no_grad():
            best, _ = model._best(model.second_pass(tokens, ids, mask, logits_to_keep=1))
        said.append(int(best))
        ids, mask = torch.cat([ids, best[:, None]], dim=1), F.pad(mask, (0, 1), value=1)
    assert said[0] != said[1]
    model.stop_tokens = lambda: said[1:]  # type: ignore[method-assign]
    cut = model.answer(tokens, "what is it?", max_new_tokens=6)
    assert cut.num_tokens.tolist() == [2]
    assert six.num_tokens.tolist() == [6]
    torch.testing.assert_close(cut.logprob, two.logprob)
    assert cut.texts == [model._decode(said[:1], set())]


@every_family
def test_the_end_of_a_completion_may_count(family: str) -> None:
    model = trained(family)
    tokens = model.compress(tiny_models.pictures(2)).tokens
    scores = model.loglikelihood(tokens, "what is it?", ["y", "a dog"], ended=True)
    tokenizer = model.processor.tokenizer
    model.base.generation_config.eos_token_id = [0, tokenizer.eos_token_id]  # others may stop an answer as well
    assert torch.equal(model.loglikelihood(tokens, "what is it?", ["y", "a dog"], ended=True), scores)
    end = tokenizer.eos_token
    longer = model.loglikelihood(tokens, "what is it?", ["y" + end, "a dog" + end])
    torch.testing.assert_close(scores, longer, atol=1e-3, rtol=1e-4)


# ---- several pictures in one context

SEVERAL = [name for name in tiny_models.FAMILIES if name != "paligemma"]


@pytest.mark.parametrize("family", SEVERAL)
def test_several_pictures_are_read_one_after_another(family: str) -> None:
    model = trained(family)
    tokens = model.compress(tiny_models.pictures(3)).tokens
    model.stop_tokens = lambda: [2]  # type: ignore[method-assign]
    ids = model.inputs.together("which?", [K] * 3)
    assert ids.count(model._image_token) == 3 * K
    alone = model.inputs.prompt("which?").ids(model._image_token, K)
    assert model.inputs.together("which?", [K]) == alone
    one = model.answer_together(tokens[:1], "which?", max_new_tokens=4)
    assert one.texts == model.answer(tokens[:1], "which?", max_new_tokens=4).texts
    together = model.answer_together(tokens, "which?", max_new_tokens=4)
    turned = model.answer_together(tokens.flip(0), "which?", max_new_tokens=4)
    assert not torch.allclose(together.logprob, turned.logprob, atol=1e-4)  # the order is read


@pytest.mark.parametrize("family", SEVERAL)
def test_a_weight_is_what_the_absence_of_a_picture_costs(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(family)
    tokens = model.compress(tiny_models.pictures(3)).tokens
    weights = model.weigh_together(tokens, "which?", "ab")

    def logprob(shown: torch.Tensor) -> torch.Tensor:
        said = [*model.processor.tokenizer("ab", add_special_tokens=False)["input_ids"], model.stop_tokens()[0]]
        ids = torch.tensor([[*model.inputs.together("which?", [K] * len(shown)), *said]])
        with torch.no_grad():
            logits = model.second_pass(shown.flatten(0, 1)[None], ids, torch.ones_like(ids), suffix=len(said))
        steps = logits[0, -len(said) - 1 : -1].log_softmax(-1)
        return steps.gather(-1, torch.tensor(said)[:, None]).sum()

    whole = logprob(tokens)
    for i in range(3):
        without = logprob(tokens[[j for j in range(3) if j != i]])
        torch.testing.assert_close(weights[i], whole - without, atol=1e-3, rtol=1e-3)
    monkeypatch.setattr(model_module, "_POSITIONS_AT_ONCE", 1)  # one at a time
    torch.testing.assert_close(model.weigh_together(tokens, "which?", "ab"), weights, atol=1e-3, rtol=1e-3)
    assert model.weigh_together(tokens[:1], "which?", "ab").tolist() == [0.0]


def test_more_pictures_than_the_context_has_room_for() -> None:
    model = trained("llava")
    tokens = model.compress(tiny_models.pictures(1)).tokens.expand(200, -1, -1)
    with pytest.raises(InputError, match="the model reads 512: ask about fewer"):
        model.answer_together(tokens, "which?")
    with pytest.raises(InputError, match="no pictures"):
        model.answer_together(tokens[:0], "which?")


@pytest.mark.parametrize("family", ["paligemma"])
def test_a_family_of_one_picture_says_so(family: str) -> None:
    model = trained(family)
    tokens = model.compress(tiny_models.pictures(2)).tokens
    with pytest.raises(ModelError, match="one picture at a time"):
        model.answer_together(tokens, "which?")


@every_family
def test_loglikelihood_is_what_whole_forwards_say(family: str) -> None:
    model = trained(family)
    tokens = model.compress(tiny_models.pictures(2)).tokens
    scores = model.loglikelihood(tokens, "what is it?", ["y", "a red dog"])
    for column, completion in enumerate(["y", "a red dog"]):
        answer = model.processor.tokenizer(completion, add_special_tokens=False)["input_ids"]
        assert len(answer) == len(completion)
        ids, mask = model.prepare_prompts("what is it?", 2, num_tokens=K)
        ids = torch.cat([ids, torch.tensor([answer, answer])], dim=1)
        mask = F.pad(mask, (0, len(answer)), value=1)
        with torch.no_grad():
            logits = model.second_pass(tokens, ids, mask, suffix=len(answer))
        steps = logits[:, -len(answer) - 1 : -1].log_softmax(-1)
        expected = steps.gather(-1, torch.tensor([answer, answer])[..., None]).sum((1, 2))
        torch.testing.assert_close(scores[:, column], expected, atol=1e-3, rtol=1e-4)


@every_family
def test_score_answers_is_loglikelihood_of_one_answer_each(family: str) -> None:
    """Rows of unlike length in one batch, padded on the left."""
    model = trained(family)
    tokens = model.compress(tiny_models.pictures(3)).tokens
    asked, said = ["what is it?", "where?", "is it a large dog?"], ["y", "a red dog", "no"]
    scores = model.score_answers(tokens, asked, said)
    assert scores.num_tokens.tolist() == [len(s) for s in said]
    for i in range(3):
        alone = model.loglikelihood(tokens[i : i + 1], asked[i], [said[i]])[0, 0]
        torch.testing.assert_close(scores.logprob[i], alone, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("asked", "said"), [(["q"], ["a", "b"]), ("q", ["a"]), ("q", ["a", ""])])
def test_score_answers_refuses_what_does_not_fit(asked: str | list[str], said: list[str]) -> None:
    model = trained("llava")
    with pytest.raises(InputError):
        model.score_answers(model.compress(tiny_models.pictures(2)).tokens, asked, said)


@every_family
@pytest.mark.parametrize("queries", ["constant", "region"])
def test_first_tokens_of_a_run_are_a_shorter_run(family: str, queries: Queries) -> None:
    """Every family here reads its summary positions causally: PaliGemma too, whose prefix is bidirectional, because
    they stand after it; Gemma 3 too, which is bidirectional only between image tokens."""
    model = trained(family, queries=queries)
    pictures = tiny_models.pictures(3, sizes=SIZES)
    whole = model.compress(pictures).tokens
    for k in (1, 4):
        shorter = model.compress(pictures, num_tokens=k).tokens
        torch.testing.assert_close(shorter, whole[:, :k], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole[:, 0], whole[:, 1], atol=1e-2)


@every_family
def test_answers_are_read_causally(family: str) -> None:
    """A later token of the answer must not change the logits before it (PaliGemma's prefix is bidirectional)."""
    model = trained(family)
    tokens = model.compress(tiny_models.pictures(1)).tokens
    ids, mask = model.prepare_prompts("what is it?", 1, num_tokens=K)
    ids, mask = F.pad(ids, (0, 3), value=7), F.pad(mask, (0, 3), value=1)
    other = ids.clone()
    other[:, -1] = 9
    with torch.no_grad():
        a, b = (model.second_pass(tokens, i, mask, suffix=3) for i in (ids, other))
    torch.testing.assert_close(a[:, :-1], b[:, :-1])
    assert not torch.allclose(a[:, -1], b[:, -1], atol=1e-3)


@every_family
def test_one_joint_backward_reaches_both_adapters(family: str) -> None:
    model = trained(family).train()
    for parameter in model.base.parameters():
        parameter.requires_grad_(False)
    for name, parameter in model.base.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
    tokens = model.first_pass(model.prepare_images(tiny_models.pictures(2)))
    ids, mask = model.prepare_prompts("what is it?", 2, num_tokens=K)
    logits = model.second_pass(tokens, ids, mask)
    contrast = model.embed_tokens(tokens) @ model.encode_text(["a", "b"]).T
    (logits[:, -1].logsumexp(-1).sum() + contrast.trace()).backward()  # type: ignore[no-untyped-call]
    assert model._adapters is not None
    for stage in ("compress", "generate"):
        parameters = model._adapters.parameters(stage)
        assert len(parameters) == 2 * 7 * 2  # A and B of seven linear layers in two layers
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters), stage
    for name in ("queries", "text_query"):
        assert getattr(model, name).grad.abs().sum() > 0
    assert all(p.grad is None for n, p in model.base.named_parameters() if "lora_" not in n)


@every_family
def test_image_tokens_are_a_row_major_grid(family: str) -> None:
    """A change in one corner of the picture changes the tokens of that corner: so regions are where they claim to
    be."""
    base, processor = tiny_models.build(family)
    for name, parameter in base.named_parameters():  # vision layers without attention see nothing but their own patch
        if re.search(r"vis.*(out_proj|attn\.proj|projection_layer)", name):
            parameter.data.zero_()
    model = Fwd2BotModel(base, processor, CompressorConfig.training_free("tiny"))
    picture = tiny_models.pictures(1, sizes=[(96, 64)])[0]
    height, width = model.prepare_images([picture]).grids[0]
    reference = _image_rows(model, picture)[: height * width]
    for left, top, row, column in ((0, 0, 0, 0), (64, 0, 0, -1), (0, 48, -1, 0), (64, 48, -1, -1)):
        changed = picture.copy()
        changed.paste((255, 0, 0), (left, top, left + 32, top + 16))
        difference = (_image_rows(model, changed)[: height * width] - reference).norm(dim=-1).reshape(height, width)
        assert difference[row, column] > 0.1
        assert difference[-1 - row].abs().max() < 1e-4  # the opposite row
        assert difference[:, -1 - column].abs().max() < 1e-4


def _image_rows(model: Fwd2BotModel, picture: object) -> torch.Tensor:
    rows = []
    batch = model.prepare_images([picture])  # type: ignore[list-item]

    def keep(embeds: torch.Tensor) -> torch.Tensor:
        rows.append(embeds[0][batch.input_ids[0] == model.base.config.image_token_id])
        return embeds

    with torch.no_grad():
        model._run(batch.input_ids, batch.attention_mask, edit=keep, pixels=batch.pixels)
    return rows[0]


@pytest.mark.parametrize("stage", ["compress", "generate"])
def test_merged_is_the_same_and_leaves_no_trace(stage: Stage) -> None:
    model = trained("llava")
    ids = torch.arange(10, 20)[None]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        with model.stage(stage):
            expected = model.base(input_ids=ids).logits
        with suppress(KeyError), model.merged(stage):
            torch.testing.assert_close(model.base(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
            with model.stage(stage):  # already there
                torch.testing.assert_close(model.base(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
            with pytest.raises(AssertionError, match="cannot be taken away"), model.stage(None):
                pass
            raise KeyError  # whatever ends it
        with model.stage(stage):
            assert torch.equal(model.base(input_ids=ids).logits, expected)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_small_second_pass_has_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = trained("llava"), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with model.merged("generate"):
            assert torch.get_num_threads() == 1
        with model.merged("compress"):
            assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), model.merged("generate"):
            raise KeyError
        assert torch.get_num_threads() == 2
        seen = []
        model.language_model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        tokens = model.compress(tiny_models.pictures(1)).tokens
        compressing = len(seen)
        model.answer(tokens, "what?", max_new_tokens=1)
        model.loglikelihood(tokens, "what?", ["yes"])
        assert set(seen[:compressing]) == {2}
        assert len(seen) >= compressing + 2
        assert set(seen[compressing:]) == {1}
        assert torch.get_num_threads() == 2
        monkeypatch.setattr("fwd2bot_index.model._SHARED_FROM", 0)
        with model.merged("generate"):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_half_precision_is_not_merged() -> None:
    model = trained("llava").to(torch.bfloat16)
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        with model.stage("generate"):
            expected = model.base(input_ids=ids).logits
        with model.merged("generate"):
            assert torch.equal(model.base(input_ids=ids).logits, expected)


def test_without_adapters_the_base_is_exactly_itself() -> None:
    base, _ = tiny_models.build("llava")
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
    model = trained("llava")
    with torch.no_grad(), model.stage(None):
        assert torch.equal(model.base(input_ids=ids).logits, before)
    with torch.no_grad():
        assert torch.equal(model.base(input_ids=ids).logits, before)  # outside of any stage as well
        with model.stage("compress"):
            compress = model.base(input_ids=ids).logits
            with model.stage("generate"):
                generate = model.base(input_ids=ids).logits
            assert torch.equal(model.base(input_ids=ids).logits, compress)
    assert not torch.allclose(compress, before, atol=1e-2)
    assert not torch.allclose(compress, generate, atol=1e-2)


def test_gradient_checkpointing_recomputes_under_the_right_adapter() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = trained("llava").train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        tokens = model.first_pass(model.prepare_images(tiny_models.pictures(2)))
        ids, mask = model.prepare_prompts("what is it?", 2, num_tokens=K)
        model.second_pass(tokens, ids, mask)[:, -1].logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("queries", ["constant", "region"])
def test_rows_at_the_summary_positions(queries: Queries) -> None:
    """Learned embeddings alone, or those plus the averages of the picture's regions."""
    model = trained("llava", queries=queries)
    entered = []
    layer = model.base.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda module, args: entered.append(args[0].detach()))
    batch = model.prepare_images(tiny_models.pictures(2))
    model.first_pass(batch)
    hook.remove()
    assert model.queries is not None
    expected = model.queries.detach().expand(2, -1, -1)
    if queries == "region":
        image = entered[0][:, :-K][batch.input_ids == model.base.config.image_token_id].reshape(2, 16, -1)
        expected = expected + region_weights(K, 4, 4) @ image
        assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    torch.testing.assert_close(entered[0][:, -K:], expected, atol=1e-5, rtol=1e-5)


def test_a_picture_may_be_a_path_bytes_or_pillow(tmp_path: Path) -> None:
    model = trained("llava")
    picture = tiny_models.pictures(1)[0]
    path = tmp_path / "p.png"
    picture.save(path)
    results = [model.compress([p]).tokens for p in (picture, path, str(path), path.read_bytes())]
    assert all(torch.equal(r, results[0]) for r in results)


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    from PIL import Image

    model = trained("llava")
    picture = tiny_models.pictures(1, sizes=[(48, 32)])[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    path = tmp_path / "turned.png"
    picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert torch.equal(model.compress([path]).tokens, model.compress([picture]).tokens)


def test_a_base_with_missing_weights_is_refused(tmp_path: Path) -> None:
    """Transformers would fill them with random numbers."""
    from safetensors.torch import load_file, save_file

    training_free("llava", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[next(n for n in sorted(state) if "multi_modal_projector" in n)]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of its weights are missing, the first .*multi_modal_projector"):
        Fwd2BotModel.from_pretrained(tmp_path, device="cpu")
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        Fwd2BotModel.from_pretrained(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_fresh_queries_are_as_large_as_the_rows_that_the_llm_is_used_to() -> None:
    for family in ("llava", "gemma3"):  # Gemma scales what comes out of its embedding layer
        model = trained(family)
        ids = torch.arange(4, 100)
        with torch.no_grad():
            usual = model.base.get_input_embeddings()(ids).std()
        assert model.queries is not None
        assert 0.7 < model.queries.std() / usual < 1.4


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = trained("llava")
    tokens = model.compress(tiny_models.pictures(2)).tokens
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(ImageError, match="not an image"):
        model.compress([tmp_path / "no.png"])
    with pytest.raises(InputError, match="no pictures"):
        model.compress([])
    with pytest.raises(InputError, match="no texts"):
        model.embed_text([])
    with pytest.raises(InputError, match="6 summary tokens; 7"):
        model.compress(tiny_models.pictures(1), num_tokens=7)
    with pytest.raises(InputError, match="3 prompts were given for 2 pictures"):
        model.generate(tokens, ["a", "b", "c"])
    with pytest.raises(InputError, match="max_new_tokens"):
        model.generate(tokens, "a", max_new_tokens=0)
    with pytest.raises(InputError, match="completion ''"):
        model.loglikelihood(tokens, "a", [""])
    with pytest.raises(InputError, match="no completions"):
        model.loglikelihood(tokens, "a", [])
    with pytest.raises(InputError, match="do not fit"):
        model.generate(tokens[..., :-1], "a")
    with pytest.raises(ModelError, match="no fingerprint"):
        _ = model.fingerprint
    with pytest.raises(ModelError, match="adapters must name a kind exactly"):
        Fwd2BotModel.from_base(model.base, model.processor, CompressorConfig(), lora=None)


def test_broken_checkpoints_are_refused_in_a_sentence(tmp_path: Path) -> None:
    trained("llava").save_pretrained(tmp_path)
    weights = tmp_path / "adapters/compress/adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(ModelError, match="Cannot read the adapters"):
        Fwd2BotModel.from_pretrained(tmp_path, device="cpu")
    weights.write_bytes(whole)
    summary = tmp_path / "summary_tokens.safetensors"
    summary.write_bytes(summary.read_bytes()[:50])
    with pytest.raises(ModelError, match=r"summary_tokens\.safetensors"):
        Fwd2BotModel.from_pretrained(tmp_path, device="cpu")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"without config\.json"):
        Fwd2BotModel.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(ModelError, match="no model folder"):
        Fwd2BotModel.from_pretrained(tmp_path / "nowhere", device="cpu")


def test_pooling_by_a_perceptron_starts_as_the_mean_and_is_kept(tmp_path: Path) -> None:
    model = trained("llava")
    pictures = tiny_models.pictures(3, sizes=SIZES)
    before = model.compress(pictures)
    model.add_mlp()
    assert torch.equal(model.compress(pictures).embedding, before.embedding)
    assert model.image_mlp is not None
    torch.nn.init.normal_(model.image_mlp.down.weight)
    torch.nn.init.normal_(model.image_mlp.position)
    model.save_pretrained(tmp_path)
    loaded = Fwd2BotModel.from_pretrained(tmp_path, device="cpu")
    assert loaded.config.pooling == "mlp"
    after = loaded.compress(pictures)
    assert torch.equal(after.tokens, before.tokens)
    assert torch.equal(after.embedding, model.compress(pictures).embedding)
    assert not torch.allclose(after.embedding, before.embedding, atol=0.1)
    assert torch.equal(loaded.embed_text(TEXTS), model.embed_text(TEXTS))


def test_a_perceptron_tells_sets_of_tokens_apart_that_have_one_mean() -> None:
    """What it is for; and positions count, and fewer tokens than all can be pooled."""
    torch.manual_seed(0)
    model = trained("llava", queries="constant")
    one = torch.randn(1, K, model.token_dim)
    other = one + torch.cat([torch.ones(1, K // 2, model.token_dim), -torch.ones(1, K // 2, model.token_dim)], dim=1)
    assert torch.allclose(model.embed_tokens(one), model.embed_tokens(other), atol=1e-5)
    model.add_mlp()
    assert model.image_mlp is not None
    torch.nn.init.normal_(model.image_mlp.down.weight)
    assert not torch.allclose(model.embed_tokens(one), model.embed_tokens(other), atol=0.1)
    assert torch.allclose(model.embed_tokens(one), model.embed_tokens(one.flip(1)), atol=1e-5)
    torch.nn.init.normal_(model.image_mlp.position)
    assert not torch.allclose(model.embed_tokens(one), model.embed_tokens(one.flip(1)), atol=0.01)
    assert model.embed_tokens(one[:, :1]).shape == (1, 16)


def test_a_training_free_model_has_no_perceptron(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="trained model"):
        training_free("llava", tmp_path).add_mlp()
