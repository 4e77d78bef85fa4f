"""What a step computes, against naive references: every family, every setting."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny_models
import torch
import torch.nn.functional as F

from fwd2bot_index.adapters import LoraSettings
from fwd2bot_index.codec import get_codec
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.errors import InputError
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_training import losses
from fwd2bot_training.config import MethodConfig
from fwd2bot_training.data import Example, Region, Segment
from fwd2bot_training.objectives import Batch, Objective, Outputs, Settings, make_objective, matching_question

from .conftest import K, alone, plain_lvlm

Make = Callable[..., Fwd2BotModel]
every_family = pytest.mark.parametrize("family", tiny_models.FAMILIES)


def objective_of(model: Fwd2BotModel, **method: Any) -> Objective:
    return make_objective(model, MethodConfig(**method)).eval()


def batch_of(objective: Objective, examples: Sequence[Example], step: int = 0) -> Batch:
    return objective.collator()(step, "test", examples)


def loss_of(objective: Objective, outputs: Outputs, batch: Batch) -> torch.Tensor:
    """The loss of a step, as the trainer adds it up."""
    total = sum(objective.weights[n] * s / batch.counts[n] for n, s in outputs.sums.items())
    if outputs.images is not None:
        assert outputs.texts is not None
        assert outputs.negatives is not None
        contrast = objective.contrast(outputs.images, outputs.texts, outputs.negatives)
        total = total + objective.weights["contrastive"] * contrast
    assert isinstance(total, torch.Tensor)
    return total


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@every_family
def test_the_answer_loss_is_the_likelihood_at_inference(family: str, make_model: Make, examples: list[Example]) -> None:
    """Packed rows of several questions, pictures of several sizes: each answer as likely as when asked alone."""
    model = make_model(family).eval()
    objective = objective_of(model, contrastive_weight=0.0)
    batch = batch_of(objective, examples)
    with torch.no_grad():
        outputs = objective(batch)
    tokens = model.compress([e.image for e in examples]).tokens
    end = model.processor.tokenizer.decode(objective.end)
    expected = count = 0.0
    for row, example in zip(tokens, examples, strict=True):
        for s in example.segments:
            length = len(s.answer) + 1  # a token is a character here
            expected -= model.loglikelihood(row[None], s.prompt, [s.answer + end]).item() * length**-0.5
            count += length**0.5
    assert batch.counts["ar"] == pytest.approx(count, rel=1e-5)
    assert outputs.sums["ar"].item() == pytest.approx(expected, rel=1e-4)


@every_family
def test_both_adapters_get_the_gradient_of_the_joint_loss(
    family: str, make_model: Make, examples: list[Example]
) -> None:
    """Against two models, each with its own copy of everything, joined by nothing but the summary tokens."""
    model = make_model(family)
    objective = objective_of(model, contrastive_weight=0.3)
    batch = batch_of(objective, examples)
    outputs = objective(batch)
    loss = loss_of(objective, outputs, batch)
    loss.backward()

    first, second = copy.deepcopy(model), copy.deepcopy(model)
    for m in (first, second):
        m.zero_grad()
    reference = two_model_loss(first, second, batch, objective, examples)
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    for name, got in gradients(model).items():
        owner = second if ".generate." in name else first
        expected = dict(owner.named_parameters())[name].grad
        assert expected is not None, name
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert sum("lora_A" in n and ".compress." in n for n in gradients(model)) > 4
    assert sum("lora_A" in n and ".generate." in n for n in gradients(model)) > 4


def two_model_loss(
    first: Fwd2BotModel, second: Fwd2BotModel, batch: Batch, objective: Objective, examples: Sequence[Example]
) -> torch.Tensor:
    """Question by question through the public passes of inference; nothing is packed and nothing shared."""
    tokens = first.first_pass(batch.first)
    total = torch.zeros(())
    for i, example in enumerate(examples):
        for s in example.segments:
            said = [*second.processor.tokenizer(s.answer, add_special_tokens=False)["input_ids"], objective.end]
            ids, mask = second.prepare_prompts(s.prompt, 1, num_tokens=K)
            answer = torch.tensor([said])
            logits = second.second_pass(
                tokens[i : i + 1],
                torch.cat([ids, answer], dim=1),
                F.pad(mask, (0, len(said)), value=1),
                suffix=len(said),
            )
            scores = logits[0, -len(said) - 1 : -1].float().log_softmax(-1).gather(-1, answer.T)
            total = total - scores.sum() * len(said) ** -0.5
    captions = [e.caption for e in examples if e.caption]
    negatives = [n for e in examples for n in e.negatives]
    assert first.logit_scale is not None
    contrast = losses.info_nce(
        first.embed_tokens(tokens), first.encode_text(captions), first.logit_scale, first.encode_text(negatives)
    )
    return total / batch.counts["ar"] + 0.3 * contrast


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_checkpointing_changes_no_gradient(family: str, make_model: Make, examples: list[Example]) -> None:
    results = []
    for checkpointing in (False, True):
        model = make_model(family)
        if checkpointing:
            model.gradient_checkpointing_enable()
        objective = make_objective(model, MethodConfig(contrastive_weight=0.3)).train()
        batch = batch_of(objective, examples)
        loss_of(objective, objective(batch), batch).backward()
        results.append(gradients(objective))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own doings
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiling_changes_no_gradient(checkpointing: bool, make_model: Make, examples: list[Example]) -> None:
    results = []
    for compiled in (False, True):
        model = make_model()
        if compiled:
            if checkpointing:
                model.gradient_checkpointing_enable(compiled=True)
            for layer in model.language_model.layers:
                layer.compile(backend="aot_eager")  # traced and differentiated as always; code generation takes minutes
        objective = make_objective(model, MethodConfig(contrastive_weight=0.3)).train()
        batch = batch_of(objective, examples)
        loss_of(objective, objective(batch), batch).backward()
        results.append({n.replace("_orig_mod.", ""): g for n, g in gradients(objective).items()})
    torch.compiler.reset()
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("train_base", [False, True])
@pytest.mark.parametrize("adapters", ["stage", "shared", "none"])
def test_what_is_named_trains_and_nothing_else(
    adapters: str, train_base: bool, make_model: Make, examples: list[Example]
) -> None:
    model = make_model(adapters=adapters, train_base=train_base, token_norm=True)
    objective = objective_of(model)
    batch = batch_of(objective, examples)
    loss_of(objective, objective(batch), batch).backward()
    with_gradient = gradients(model).keys()
    for name, p in model.named_parameters():
        own, lora = not name.startswith("base."), "lora_" in name
        assert p.requires_grad == (own or lora or train_base), name
        if own or lora:
            assert name in with_gradient, name
        elif not train_base:
            assert name not in with_gradient, name
    assert any("lora" in n for n in with_gradient) == (adapters != "none")
    assert all((".shared." in n) == (adapters == "shared") for n in with_gradient if "lora" in n)


def test_the_answer_loss_alone_reaches_the_first_pass(make_model: Make, examples: list[Example]) -> None:
    model = make_model()
    objective = objective_of(model, contrastive_weight=0.0)
    batch = batch_of(objective, examples)
    assert batch.texts is None
    loss_of(objective, objective(batch), batch).backward()
    assert any(".compress." in n for n in gradients(model))
    assert model.queries is not None
    assert model.queries.grad is not None
    assert model.text_query is not None
    assert model.text_query.grad is None, "without the contrastive loss no text is embedded"


def test_contrast_alone_runs_no_second_pass(make_model: Make, examples: list[Example]) -> None:
    model = make_model()
    objective = objective_of(model, ar_weight=0.0, contrastive_weight=1.0)
    batch = batch_of(objective, examples)
    outputs = objective(batch)
    assert outputs.sums == {}
    loss_of(objective, outputs, batch).backward()
    assert not any(".generate." in n for n in gradients(model))


def test_captions_alone_are_enough_for_contrast_and_nothing_for_answers(
    make_model: Make, examples: list[Example]
) -> None:
    captioned = [dataclasses.replace(e, segments=()) for e in examples]
    for method in ({}, {"objective": "single-pass"}):
        objective = objective_of(make_model(), **method)
        outputs = objective(batch_of(objective, captioned))
        assert outputs.sums == {}
        assert outputs.images is not None
    objective = objective_of(make_model(), contrastive_weight=0.0)
    with pytest.raises(InputError, match="batch of 'test' has nothing to learn from"):
        batch_of(objective, captioned)


def test_a_short_prefix_trains_no_later_token(make_model: Make, examples: list[Example]) -> None:
    model = make_model()
    objective = objective_of(model, contrastive_weight=0.0, prefixes=(2,))
    batch = batch_of(objective, examples)
    loss_of(objective, objective(batch), batch).backward()
    assert model.queries is not None
    assert model.queries.grad is not None
    assert model.queries.grad[:2].abs().sum() > 0
    assert model.queries.grad[2:].abs().sum() == 0


def test_prefix_lengths_depend_on_seed_and_step_alone(make_model: Make) -> None:
    method = MethodConfig(prefixes=(1, 2, 4))
    drawn = [
        [make_objective(make_model(), method, Settings(seed=seed))._drawn_length(step) for step in range(40)]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert set(drawn[0]) == {1, 2, 4}


def test_matching_asks_true_and_false_captions(make_model: Make, examples: list[Example]) -> None:
    model = make_model().eval()
    objective = objective_of(model, contrastive_weight=0.1, matching_weight=0.5)
    batch = batch_of(objective, examples)
    assert batch.packed.kinds.count("matching") == 6
    with torch.no_grad():
        outputs = objective(batch)
    false = ["two red cats", "two blue cats", "a dog"]  # a hard negative where there is one, else the next caption
    tokens = model.compress([e.image for e in examples]).tokens
    expected = 0.0
    for row, e, wrong in zip(tokens, examples, false, strict=True):
        for caption, answer in ((e.caption, "yes"), (wrong, "no")):
            assert caption
            scores = model.loglikelihood(row[None], matching_question(caption), [answer + "<eos>"])
            expected -= scores.item() * (len(answer) + 1) ** -0.5
    assert outputs.sums["matching"].item() == pytest.approx(expected, rel=1e-4)
    plain = objective_of(model, contrastive_weight=0.1)
    with torch.no_grad():
        ar = plain(batch_of(plain, examples)).sums["ar"]
    torch.testing.assert_close(outputs.sums["ar"], ar, rtol=1e-5, atol=1e-5)


def test_matching_needs_no_contrastive_loss(make_model: Make, examples: list[Example]) -> None:
    objective = objective_of(make_model(), contrastive_weight=0.0, matching_weight=0.5)
    batch = batch_of(objective, examples)
    assert batch.texts is None
    assert batch.packed.kinds.count("matching") == 6


def test_hard_negatives_are_embedded_beside_the_captions(make_model: Make, examples: list[Example]) -> None:
    model = make_model().eval()
    objective = objective_of(model)
    outputs = objective(batch_of(objective, examples))
    torch.testing.assert_close(outputs.texts, model.encode_text([e.caption or "" for e in examples]))
    torch.testing.assert_close(outputs.negatives, model.encode_text(["two blue cats"]))
    torch.testing.assert_close(outputs.images, model.compress([e.image for e in examples]).embedding)


def test_a_picture_without_a_caption_takes_no_part_in_the_contrast_of_the_others(
    make_model: Make, examples: list[Example]
) -> None:
    objective = objective_of(make_model(), matching_weight=0.5)
    some, others = objective(batch_of(objective, examples)), alone(examples)
    for mixed in ([*others, *examples], [examples[0], *others, *examples[1:]]):
        batch = batch_of(objective, mixed)
        outputs = objective(batch)
        assert batch.packed.kinds.count("matching") == 2 * len(examples)
        for name in ("images", "texts", "negatives"):
            torch.testing.assert_close(getattr(outputs, name), getattr(some, name))
    assert not batch_of(objective, others).captions


def test_matching_asks_nothing_where_there_is_nothing_false(make_model: Make, examples: list[Example]) -> None:
    single = [dataclasses.replace(examples[0], negatives=())]
    assert "matching" not in batch_of(objective_of(make_model(), matching_weight=0.5), single).packed.kinds


def test_distillation_is_nothing_from_oneself_and_something_from_the_base(
    make_model: Make, examples: list[Example]
) -> None:
    """The teacher is the base as it was before training, reading all image tokens."""
    model = make_model(train_base=True)
    objective = make_objective(model, MethodConfig(distillation_weight=1.0, contrastive_weight=0.0))
    batch = batch_of(objective, examples)
    with torch.no_grad():
        before = objective._teacher_logits(batch)
        for p in model.parameters():
            p.add_(0.01)
        assert torch.equal(objective._teacher_logits(batch), before), "training moves the teacher"
    plain = plain_lvlm()
    lvlm = make_objective(plain, MethodConfig(objective="lvlm"))
    with torch.no_grad():
        hidden = lvlm._run(lvlm.read(batch), batch.packed).text
        torch.testing.assert_close(lvlm._logits(hidden, batch.packed), before)
    outputs = objective(batch)
    assert outputs.sums["distillation"].item() > 0
    assert batch.counts["distillation"] == batch.counts["ar"]
    assert not any("teacher" in n for n, _ in objective.named_parameters())


@pytest.mark.parametrize("part", ["projector", "vision_tower"])
def test_a_base_of_which_anything_trains_is_not_its_own_teacher(
    part: str, make_model: Make, examples: list[Example]
) -> None:
    model = make_model()
    for name, parameter in model.base.named_parameters():
        parameter.requires_grad_("lora_" in name or part in name)
    assert any(part in name for name, _ in model.base.named_parameters())
    objective = make_objective(model, MethodConfig(distillation_weight=1.0, contrastive_weight=0.0))
    batch = batch_of(objective, examples)
    with torch.no_grad():
        before = objective._teacher_logits(batch)
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.01)
        assert torch.equal(objective._teacher_logits(batch), before)


def test_captions_alone_of_a_family_with_a_row_for_each_text() -> None:
    base, processor = tiny_models.build("paligemma")
    config = CompressorConfig(num_summary_tokens=K, adapters="stage")
    model = Fwd2BotModel.from_base(base, processor, config, lora=LoraSettings(rank=2, alpha=4))
    objective = objective_of(model)
    pictures = tiny_models.pictures(2)
    batch = batch_of(objective, [Example(image=p, segments=(), caption=f"a {i}") for i, p in enumerate(pictures)])
    outputs = objective(batch)
    assert outputs.images is not None
    assert len(outputs.images) == 2
    assert objective.answered(batch) == []


def test_a_frozen_llm_is_its_own_teacher(make_model: Make, examples: list[Example]) -> None:
    objective = make_objective(make_model(), MethodConfig(distillation_weight=1.0, contrastive_weight=0.0))
    batch = batch_of(objective, examples)
    lvlm = make_objective(plain_lvlm(), MethodConfig(objective="lvlm"))
    with torch.no_grad():
        hidden = lvlm._run(lvlm.read(batch), batch.packed).text
        torch.testing.assert_close(objective._teacher_logits(batch), lvlm._logits(hidden, batch.packed))


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_storage_noise_is_the_codecs_own(codec: str, make_model: Make, examples: list[Example]) -> None:
    model = make_model()
    objective = make_objective(model, MethodConfig(storage_noise=codec, contrastive_weight=0.0)).train()
    batch = batch_of(objective, examples)
    reading = objective.read(batch)
    assert reading.tokens is not None
    stored = get_codec(codec)
    plain = reading.tokens.detach().numpy()
    decoded = torch.from_numpy(stored.decode(stored.encode(plain), k=K, d=plain.shape[-1]))
    torch.testing.assert_close(reading.prefix.embeds[:, -K:], decoded)
    assert not torch.allclose(decoded, reading.tokens)
    reading.prefix.embeds[:, -K:].sum().backward()
    assert model.queries is not None
    assert model.queries.grad is not None
    objective.eval()
    unstored = objective.read(batch)
    assert unstored.tokens is not None
    assert torch.equal(unstored.prefix.embeds[:, -K:], unstored.tokens)


def test_tokens_with_a_norm_have_the_size_of_embeddings(make_model: Make, examples: list[Example]) -> None:
    model = make_model(token_norm=True).eval()
    tokens = model.compress([examples[0].image]).tokens
    embeddings = model.base.get_input_embeddings().weight
    assert tokens.pow(2).mean().sqrt().item() == pytest.approx(embeddings.std().item(), rel=0.05)


def test_the_single_pass_sees_the_image_through_its_summary_positions_only(
    make_model: Make, examples: list[Example]
) -> None:
    """Other image tokens, same keys and values at the summary positions: the same answers. Here: the positions' rows
    are cut off from the image, so nothing of the picture may reach the text."""
    model = make_model(queries="constant").eval()
    objective = objective_of(model, objective="single-pass", contrastive_weight=0.0)
    batch = batch_of(objective, examples)
    other = batch_of(objective, [Example(image=examples[0].image, segments=e.segments) for e in examples])
    with torch.no_grad():
        assert objective(batch).sums["ar"] != objective(other).sums["ar"], "the picture matters"
        start, stop = objective.read(batch).prefix.hidden[0]
        text = []
        for b in (batch, other):
            reading = objective.read(b)
            blanked = reading.prefix.embeds.clone()
            blanked[:, start:stop] = 0  # the same picture for all
            text.append(objective._run(_with(reading, blanked), b.packed).text)
        torch.testing.assert_close(text[0], text[1])


def _with(reading: Any, embeds: torch.Tensor) -> Any:
    return dataclasses.replace(reading, prefix=dataclasses.replace(reading.prefix, embeds=embeds))


def test_the_single_pass_embeds_the_states_of_a_first_pass(make_model: Make, examples: list[Example]) -> None:
    model = make_model(adapters="shared").eval()
    objective = objective_of(model, objective="single-pass", prefixes=(2,))
    outputs = objective(batch_of(objective, examples))
    torch.testing.assert_close(
        outputs.images, model.compress([e.image for e in examples]).embedding, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("compressor", ["pooling", "resampler"])
def test_rivals_make_tokens_of_the_same_image_tokens(
    compressor: str, make_model: Make, examples: list[Example]
) -> None:
    model = make_model(train_base=True)
    objective = objective_of(model, compressor=compressor, contrastive_weight=0.3)
    batch = batch_of(objective, examples)
    tokens = objective.read(batch).tokens
    assert tokens is not None
    assert tokens.shape == (3, K, tiny_models.HIDDEN)
    loss_of(objective, objective(batch), batch).backward()
    assert any("projector" in n for n in gradients(objective))
    assert any("resampler" in n for n in gradients(objective)) == (compressor == "resampler")
    short = objective.read(batch, num_tokens=1).prefix.embeds[:, -1]
    if compressor == "resampler":
        torch.testing.assert_close(short, tokens[:, 0])
    else:
        torch.testing.assert_close(short, tokens.mean(1), msg="one cell is the mean of four equal ones")


def test_an_ordinary_lvlm_answers_as_its_base_does(examples: list[Example]) -> None:
    """Against the base's own forward, question by question."""
    model = plain_lvlm().eval()
    objective = objective_of(model, objective="lvlm", word_weight=0.1)
    batch = batch_of(objective, examples)
    outputs = objective(batch)
    expected = 0.0
    for example in examples:
        picture = model.prepare_images([example.image])
        for s in example.segments:
            said = [*model.processor.tokenizer(s.answer, add_special_tokens=False)["input_ids"], objective.end]
            ids, _ = model.prepare_prompts(s.prompt, 1, num_tokens=16)
            whole = torch.cat([ids, torch.tensor([said])], dim=1)
            with torch.no_grad():
                logits = model.base(input_ids=whole, attention_mask=torch.ones_like(whole), **picture.pixels).logits
            scores = logits[0, -len(said) - 1 : -1].log_softmax(-1).gather(-1, torch.tensor(said)[:, None])
            expected -= scores.sum().item() * len(said) ** -0.5
    assert outputs.sums["ar"].item() == pytest.approx(expected, rel=1e-4)
    summaries = model.compress([e.image for e in examples]).embedding
    texts = model.embed_text([e.caption or "" for e in examples])
    torch.testing.assert_close(outputs.images, summaries, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs.texts, texts, atol=1e-5, rtol=1e-4)


def test_the_word_loss_reads_the_cells_under_the_box(examples: list[Example]) -> None:
    objective = objective_of(plain_lvlm(), objective="words", word_weight=1.0)
    corner = Region(box=(0.55, 0.0, 1.0, 0.2), text="red star")  # columns 2-3 of 4, row 0
    example = Example(image=examples[0].image, segments=(Segment(prompt="what?", answer="yes"),), regions=(corner,))
    batch = batch_of(objective, [example])
    assert batch.counts == {"words": 1.0}
    features = torch.randn(1, 16, tiny_models.HIDDEN, requires_grad=True)
    objective._word_loss(features, batch).backward()  # type: ignore[operator]
    assert features.grad is not None
    assert features.grad[0].abs().sum(-1).nonzero().flatten().tolist() == [2, 3]
    outputs = objective(batch)
    assert set(outputs.sums) == {"words"}
    assert outputs.images is None


@pytest.mark.parametrize("objective", ["double-pass", "single-pass", "lvlm"])
def test_an_answer_is_right_when_every_token_of_it_is_the_likeliest(
    objective: str, make_model: Make, examples: list[Example]
) -> None:
    judge = objective_of(plain_lvlm() if objective == "lvlm" else make_model(), objective=objective)
    batch = batch_of(judge, examples)
    with torch.no_grad():
        likeliest = judge._logits(judge._run(judge.read(batch), batch.packed).text, batch.packed).argmax(-1)
    # the model reads what stands before a label, never the label: so these are right, and one token spoils one answer
    right = dataclasses.replace(batch, packed=dataclasses.replace(batch.packed, labels=likeliest))
    assert [a.right for a in judge.answered(right)] == [True] * 6
    spoilt = likeliest.clone()
    spoilt[(batch.packed.answer == 3).nonzero()[1]] += 1
    wrong = dataclasses.replace(batch, packed=dataclasses.replace(batch.packed, labels=spoilt))
    assert [a.right for a in judge.answered(wrong)] == [True, True, True, False, True, True]


def test_answers_to_look_at_are_those_of_inference(make_model: Make, examples: list[Example]) -> None:
    model = make_model().eval()
    judge = objective_of(model)
    tokens = model.compress([e.image for e in examples]).tokens
    said = judge.answer(batch_of(judge, examples), "what is it?", max_new_tokens=5)
    assert said == model.generate(tokens, "what is it?", max_new_tokens=5)


@pytest.mark.parametrize(
    ("family", "method", "said"),
    [
        ("qwen3_vl", {"objective": "single-pass"}, "qwen3_vl"),
        ("qwen3_vl", {"compressor": "resampler"}, "qwen3_vl"),
        ("paligemma", {"distillation_weight": 1.0}, "Distillation"),
    ],
)
def test_what_a_family_cannot_do_is_refused(family: str, method: dict[str, Any], said: str, make_model: Make) -> None:
    with pytest.raises(InputError, match=said):
        make_objective(make_model(family), MethodConfig(**method))
