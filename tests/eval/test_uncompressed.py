"""Against the processor and the base as their makers meant them: no code of ours between a picture and an answer."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from fwd2bot_eval.uncompressed import Uncompressed
from fwd2bot_index.adapters import LoraSettings
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.prompts import render

every_family = pytest.mark.parametrize("family", tiny_models.FAMILIES)
SIZES = [(40, 40), (70, 40), (30, 90)]
ASKED = ["what is it?", "where?", "is it a big dog?"]
SAID = ["y", "a red dog", "no"]


def trained(family: str) -> Fwd2BotModel:
    base, processor = tiny_models.build(family)
    config = CompressorConfig(num_summary_tokens=4, adapters="stage")
    model = Fwd2BotModel.from_base(base, processor, config, lora=LoraSettings(rank=2, alpha=8))
    with torch.no_grad():
        for name, parameter in model.base.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
@every_family
def test_scores_are_those_of_the_base_with_the_whole_picture(family: str) -> None:
    """One picture at a time through the family's own processor, without padding: no adapter, no summary token."""
    if family == "llava_onevision":
        pytest.skip("its processor cuts large pictures into tiles, of which this package reads the overview")
    model = trained(family)
    pictures = tiny_models.pictures(3, sizes=SIZES)
    scores = Uncompressed(model).score_answers(pictures, ASKED, SAID)
    plain, _ = tiny_models.build(family)  # the same seed: the base without adapters
    plain.eval()
    for i, picture in enumerate(pictures):
        text = render(model.processor, model.family, ASKED[i], images=1)
        settings = model.family.settings_for(model.processor.image_processor)
        bos = getattr(model.processor.tokenizer, "bos_token", None)
        special = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        encoded = dict(model.processor(text=[text], images=[picture], return_tensors="pt", **special, **settings))
        said = model.processor.tokenizer(SAID[i], add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([encoded["input_ids"], said], dim=1)
        inputs = {k: v for k, v in encoded.items() if k not in ("input_ids", "attention_mask", "labels")}
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                after = torch.full_like(said, 1 if family == "paligemma" and name == "token_type_ids" else 0)
                inputs[name] = torch.cat([inputs[name], after], dim=1)
        with torch.no_grad():
            logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]
        steps = logits[-said.shape[1] - 1 : -1].float().log_softmax(-1)
        expected = steps.gather(-1, said[0][:, None]).sum()
        torch.testing.assert_close(scores.logprob[i], expected, atol=2e-3, rtol=1e-3)


@every_family
def test_answers_are_greedy_over_the_whole_picture(family: str) -> None:
    """Left-padded in one batch with a cache, or one by one with whole forwards: the same tokens."""
    model = trained(family)
    pictures = tiny_models.pictures(3, sizes=SIZES)
    lvlm = Uncompressed(model)
    model.base.generation_config.eos_token_id = None  # random models may stop at once
    answers = lvlm.generate(pictures, ASKED, max_new_tokens=3)
    for i in range(3):
        ids, _, extra = lvlm._inputs([pictures[i]], [ASKED[i]], [[]])
        start = ids.shape[1]
        for _ in range(3):
            more = {"mm_token_type_ids": (ids == model.inputs.image_token).int()} if model.family.mrope else {}
            more |= model.token_types(ids, suffix=ids.shape[1] - start)
            with torch.no_grad(), model.stage(None):
                logits = model.base(
                    input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **(extra | more)
                ).logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1)[:, None]], dim=1)
        assert answers[i] == model.processor.tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


def test_blind_sees_no_picture_and_uses_the_adapter_of_its_stage() -> None:
    model = trained("llava")
    blind = Uncompressed(model, stage="generate").score_answers(None, ASKED, SAID)
    base = Uncompressed(model).score_answers(None, ASKED, SAID)
    assert not torch.allclose(blind.logprob, base.logprob)
    alone = [
        Uncompressed(model, stage="generate").score_answers(None, [a], [s]).logprob[0]
        for a, s in zip(ASKED, SAID, strict=True)
    ]
    torch.testing.assert_close(blind.logprob, torch.stack(alone), atol=1e-3, rtol=1e-3)
    assert len(Uncompressed(model, stage="generate").generate(None, ASKED, max_new_tokens=2)) == 3


def test_answers_are_greedy_whatever_the_base_comes_with() -> None:
    model = trained("qwen2_5_vl")
    pictures = tiny_models.pictures(3)
    plain = Uncompressed(model).generate(pictures, ASKED, max_new_tokens=8)
    own = model.base.generation_config
    own.repetition_penalty = 5.0  # Qwen's instruct models come with one
    assert Uncompressed(model).generate(pictures, ASKED, max_new_tokens=8) == plain
    assert model.base.generation_config is own
