"""The same embeddings without torch: equal where the fast path applies, and no fast path anywhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import BLUE, GREEN, RED, plain, write
from safetensors.torch import load_file, save_file
from tiny_models import build

from fwd2bot_index.adapters import LoraSettings
from fwd2bot_index.checkpoints import resolve
from fwd2bot_index.config import Adapters, CompressorConfig, Manifest
from fwd2bot_index.corpus import Corpus
from fwd2bot_index.errors import InputError, ModelError
from fwd2bot_index.indexing import index_images
from fwd2bot_index.model import Fwd2BotModel
from fwd2bot_index.text_encoder import TextEncoder
from fwd2bot_training import small_llava

TEXTS = [
    "a red cube left of a ball",
    "",
    "A RED Cube left OF a ball",
    "grün, 漢字, e\u0301 and a 🦊",
    "<image> <bos> <eos>",
    " two\n lines ",
    "ball " * 60,
]
SHAPE = small_llava.SmallLlavaConfig(
    image_size=24, patch_size=12, hidden_size=32, num_heads=4,
    vision_layers=1, vision_mlp=16, text_layers=2, text_mlp=48, vocab_size=300,
)  # fmt: skip

PARTS = "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text | trim }}{% endif %}{% endfor %}"
"""The content of a message ``m``, for chat templates."""

Make = Callable[..., Path]


def enlarge(module: torch.nn.Module) -> None:
    """Weights so large that every difference shows."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            elif parameter.ndim == 2:
                parameter.normal_(std=0.3 if "embed" in name or "lora" in name else parameter.shape[1] ** -0.5)


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A trained checkpoint of the bundled model's kind, at random."""
    words = small_llava.train_tokenizer(TEXTS, vocab_size=SHAPE.vocab_size)
    processor = small_llava.make_processor(words, SHAPE)

    def checkpoint(
        *,
        dtype: torch.dtype = torch.float32,
        llama: dict[str, Any] | None = None,
        adapters: Adapters = "stage",
        template: str | None = None,
        **config: Any,
    ) -> Path:
        torch.manual_seed(0)
        base = small_llava.make_model(words, SHAPE)
        if llama:
            for name, value in llama.items():
                setattr(base.config.text_config, name, value)
            base = type(base)(base.config)
        settings = CompressorConfig(num_summary_tokens=4, adapters=adapters, **config)
        lora = LoraSettings(rank=3, alpha=8) if adapters != "none" else None
        model = Fwd2BotModel.from_base(base, processor, settings, lora=lora)
        enlarge(model)
        model.base.to(dtype)
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        if template is not None:
            (folder / "base" / "chat_template.jinja").write_text(template)
        return folder

    return checkpoint


@pytest.fixture(scope="session")
def plain_checkpoint(make: Make) -> Path:
    return make(embedding_dim=16)


@pytest.fixture
def own(plain_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(plain_checkpoint, tmp_path / "own"))


def encoder_of(folder: Path) -> TextEncoder | None:
    return TextEncoder.for_checkpoint(resolve(folder))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- the same embeddings


@pytest.mark.parametrize(
    "what",
    [
        {"embedding_dim": 16},
        {"embedding_dim": None, "text_prompt": "{text}"},
        {"dtype": torch.bfloat16, "embedding_dim": 16},
        {"dtype": torch.float16},
        {"adapters": "none"},
        {"adapters": "shared"},
        {"llama": {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}},
        {"llama": {"head_dim": 6}},
        {"llama": {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.1}},
        {"template": "{{- bos_token }}\n {%- for m in messages %}\n  " + PARTS + "{% endfor %}\nThen:\n\n"},
        {"template": "{% if add_generation_prompt and not tools %}>{% endif %}{% set m = messages[0] %}" + PARTS},
    ],
    ids=str,
)  # fmt: skip
def test_texts_are_embedded_as_by_the_model(make: Make, what: dict[str, Any]) -> None:
    folder = make(**what)
    encoder = encoder_of(folder)
    assert encoder is not None
    expected = Fwd2BotModel.from_pretrained(folder, device="cpu").embed_text(TEXTS).numpy()
    embeddings = encoder.embed_text(TEXTS)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    # other texts have other embeddings, so that equality says something; upper case is no other text
    assert np.abs(expected[0] - expected[1:]).max(-1).argmin() == 1
    assert np.abs(expected[0] - expected[[1, 3, 4, 5, 6]]).max(-1).min() > 0.01


def test_the_tokenizer_adds_bos_where_the_template_does_not(own: Path) -> None:
    (own / "base" / "chat_template.jinja").write_text("{% set m = messages[0] %}" + PARTS)
    rewrite(own / "base" / "tokenizer.json", post_processor={
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}},
    })  # fmt: skip
    encoder = encoder_of(own)
    assert encoder is not None
    expected = Fwd2BotModel.from_pretrained(own, device="cpu").embed_text(TEXTS).numpy()
    np.testing.assert_allclose(encoder.embed_text(TEXTS), expected, atol=1e-4)


def test_truncation_and_padding_in_the_tokenizer_are_not_used(own: Path) -> None:
    whole = encoder_of(own)
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    rewrite(own / "base" / "tokenizer.json", truncation=truncation)
    cut = encoder_of(own)
    assert whole is not None
    assert cut is not None
    np.testing.assert_array_equal(whole.embed_text(TEXTS), cut.embed_text(TEXTS))


def test_shards_are_read(own: Path) -> None:
    encoder = encoder_of(own)
    assert encoder is not None
    expected = encoder.embed_text(TEXTS)
    tensors = load_file(own / "base" / "model.safetensors")
    homes = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(homes.values()):
        save_file({n: t for n, t in tensors.items() if homes[n] == shard}, own / "base" / shard)
    (own / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    (own / "base" / "model.safetensors").unlink()
    sharded = encoder_of(own)
    assert sharded is not None
    np.testing.assert_array_equal(sharded.embed_text(TEXTS), expected)


def test_no_texts_are_refused(plain_checkpoint: Path) -> None:
    encoder = encoder_of(plain_checkpoint)
    assert encoder is not None
    with pytest.raises(InputError, match="no texts"):
        encoder.embed_text([])


# ---- everything else is left to the model


def test_a_training_free_model_is_left_to_itself(own: Path) -> None:
    assert encoder_of(own / "base") is None


def test_another_family_is_left_to_itself(tmp_path: Path) -> None:
    base, processor = build("smolvlm")  # its language model is a Llama, too
    config = CompressorConfig(num_summary_tokens=4, adapters="none")
    Fwd2BotModel.from_base(base, processor, config, lora=None).save_pretrained(tmp_path / "smol")
    assert encoder_of(tmp_path / "smol") is None


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("base/config.json", {"model_type": "llava_next"}),
        ("base/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("base/config.json", {"text_config": None}),
        ("base/tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("base/tokenizer_config.json", {"add_bos_token": True}),
        ("base/tokenizer_config.json", {"split_special_tokens": True}),
        ("base/tokenizer_config.json", {"extra_special_tokens": ["<new>"]}),
        ("base/tokenizer_config.json", {"bos_token": {"content": "<bos>", "lstrip": True}}),
        ("base/processor_config.json", {"chat_template": "{{ messages }}"}),
        ("adapters/compress/adapter_config.json", {"use_dora": True}),
        ("adapters/compress/adapter_config.json", {"use_rslora": True}),
        ("adapters/compress/adapter_config.json", {"rank_pattern": {"q_proj": 2}}),
        ("adapters/compress/adapter_config.json", {"alpha_pattern": {"q_proj": 2}}),
        ("adapters/compress/adapter_config.json", {"fan_in_fan_out": True}),
        ("adapters/compress/adapter_config.json", {"bias": "all"}),
        ("adapters/compress/adapter_config.json", {"init_lora_weights": "pissa"}),
        ("adapters/compress/adapter_config.json", {"peft_type": "LOHA"}),
        ("adapters/compress/adapter_config.json", {"r": 2}),
        ("adapters/compress/adapter_config.json", {"r": 0}),
        ("adapters/compress/adapter_config.json", {"use_something_new": True}),
        ("config.json", {"embedding_dim": 8}),
    ],
    ids=str,
)
def test_what_is_unknown_is_left_to_the_model(own: Path, file: str, changes: dict[str, Any]) -> None:
    assert encoder_of(own) is not None
    rewrite(own / file, **changes)
    assert encoder_of(own) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2"},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"sliding_window": 4},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"num_key_value_heads": 3},
        {"num_hidden_layers": 10**9},
        {"hidden_size": "wide"},
    ],
    ids=str,
)
def test_an_unknown_language_model_is_left_to_the_model(own: Path, changes: dict[str, Any]) -> None:
    path = own / "base" / "config.json"
    text = json.loads(path.read_text())["text_config"]
    rewrite(path, text_config={**text, **changes})
    assert encoder_of(own) is None


def test_the_older_name_of_the_rotary_base_is_known(own: Path) -> None:
    path = own / "base" / "config.json"
    text = json.loads(path.read_text())["text_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text["rope_scaling"] = None
    before = encoder_of(own)
    rewrite(path, text_config=text)
    after = encoder_of(own)
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(after.embed_text(TEXTS), before.embed_text(TEXTS))


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson }}",
        "{{ strftime_now('%Y') }}",
        "{{ raise_exception('no') }}",
        "{{ image_token }}",
        "{% generation %}{% endgeneration %}",
        "{{ messages | nothing_like_it }}",
        "{% if %}",
    ],
)
def test_a_template_with_more_than_both_have_is_left_to_the_model(own: Path, template: str) -> None:
    (own / "base" / "chat_template.jinja").write_text(template)
    assert encoder_of(own) is None


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json", "chat_template.json"])
def test_more_files_are_left_to_the_model(own: Path, name: str) -> None:
    (own / "base" / name).write_text("{}")
    assert encoder_of(own) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"])
def test_missing_files_are_left_to_the_model(own: Path, name: str) -> None:
    (own / "base" / name).unlink()
    assert encoder_of(own) is None


def test_adapters_with_more_or_fewer_tensors_are_left_to_the_model(own: Path) -> None:
    path = own / "adapters" / "compress" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "base_model.model.lm_head.lora_A.weight": torch.zeros(3, 32)}, path)
    assert encoder_of(own) is None
    save_file(dict(list(tensors.items())[1:]), path)
    assert encoder_of(own) is None


@pytest.mark.parametrize(
    "file",
    ["base/model.safetensors", "summary_tokens.safetensors", "adapters/compress/adapter_model.safetensors"],
)
def test_weights_that_are_cut_off_are_named(own: Path, file: str) -> None:
    path = own / file
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match=Path(file).name):
        encoder_of(own)


# ---- in an index


@pytest.fixture(scope="module")
def index(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("index")
    photos = write(folder / "photos", {"red.png": plain(RED), "green.png": plain(GREEN), "blue.png": plain(BLUE)})
    index_images([photos], folder / "index", Fwd2BotModel.from_pretrained(make(embedding_dim=16), device="cpu"))
    return Corpus.open(folder / "index")


def test_the_manifest_names_the_checkpoint(index: Corpus) -> None:
    encoder = TextEncoder.for_manifest(index.manifest)
    assert encoder is not None
    expected = index.model.embed_text(TEXTS).numpy()
    np.testing.assert_allclose(encoder.embed_text(TEXTS), expected, atol=1e-4)


def test_a_checkpoint_that_changed_is_left_to_the_model(index: Corpus) -> None:
    changed: Manifest = replace(index.manifest, model_fingerprint="0" * 32)
    assert TextEncoder.for_manifest(changed) is None
    assert TextEncoder.for_manifest(replace(index.manifest, mode="training-free")) is None


def test_a_text_search_needs_no_torch(index: Corpus) -> None:
    hits = index.search("a red cube", top=3)
    code = (
        "import sys; from fwd2bot_cli.main import main; code = main(['search', 'a red cube', '--index', sys.argv[1]]);"
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(index.place.folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=index.place.folder,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    # a path near the current folder is shown relative to it
    assert [os.path.abspath(index.place.folder / row[3]) for row in rows] == [hit.uri for hit in hits]
    assert [float(row[1]) for row in rows] == pytest.approx([hit.score for hit in hits], abs=2e-3)
    assert not {"torch", "transformers", "peft", "lancedb"} & set(done.stderr.split())
