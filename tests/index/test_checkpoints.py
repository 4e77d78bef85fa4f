"""Finding a model and its fingerprint, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fwd2bot_index import checkpoints
from fwd2bot_index.checkpoints import model_fingerprint, resolve
from fwd2bot_index.config import CompressorConfig
from fwd2bot_index.errors import ModelError


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder that looks like a plain LVLM."""
    folder = tmp_path / "lvlm"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


@pytest.fixture
def trained(tmp_path: Path, plain: Path) -> Path:
    folder = tmp_path / "trained"
    shutil.copytree(plain, folder / "base")
    (folder / "adapters/compress").mkdir(parents=True)
    (folder / "adapters/compress/adapter_model.safetensors").write_bytes(b"lora")
    (folder / "summary_tokens.safetensors").write_bytes(b"queries")
    CompressorConfig(num_summary_tokens=8).write(folder / "config.json")
    return folder


@pytest.fixture
def hub(tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds org/model; no network."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub"
    snapshot = cache / "models--org--model/snapshots" / commit
    shutil.copytree(plain, snapshot)
    (cache / "models--org--model/refs").mkdir()
    (cache / "models--org--model/refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_plain_lvlm_is_training_free(plain: Path) -> None:
    found = resolve(plain, num_summary_tokens=4)
    assert (found.config.mode, found.config.num_summary_tokens) == ("training-free", 4)
    assert found.folder == found.base_folder == plain
    assert (found.name, found.revision) == (str(plain), None)
    assert resolve(str(plain)).config.num_summary_tokens == 16


def test_a_trained_checkpoint(trained: Path) -> None:
    found = resolve(trained)
    assert (found.config.mode, found.config.num_summary_tokens) == ("trained", 8)
    assert found.base_folder == trained / "base"
    assert resolve(trained, num_summary_tokens=8) == found
    with pytest.raises(ModelError, match="trained to write 8 summary tokens"):
        resolve(trained, num_summary_tokens=4)
    shutil.rmtree(trained / "base")
    with pytest.raises(ModelError, match="incomplete"):
        resolve(trained)


def test_a_trained_checkpoint_with_its_base_on_the_hub(trained: Path, hub: Path) -> None:
    shutil.rmtree(trained / "base")
    CompressorConfig(base_model="org/model", base_revision=hub.name).write(trained / "config.json")
    assert resolve(trained).base_folder == hub
    found = resolve(trained).fingerprint()
    moved = shutil.copytree(hub, trained.parent / "moved")
    CompressorConfig(base_model=str(moved)).write(trained / "config.json")
    assert resolve(trained).fingerprint() == found


def test_a_cached_hub_model_needs_no_network(hub: Path) -> None:
    found = resolve("org/model")
    assert (found.name, found.revision, found.folder) == ("org/model", hub.name, hub)
    assert found.fingerprint() == resolve("org/model", revision=hub.name).fingerprint()


def test_an_interrupted_download_is_no_model(hub: Path) -> None:
    (hub / "model.safetensors").unlink()
    (hub / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    with pytest.raises(ModelError, match="The cached copy of org/model is incomplete"):
        resolve("org/model")
    (hub / "model-1.safetensors").write_bytes(b"")
    assert resolve("org/model").folder == hub


@pytest.mark.parametrize("missing", ["tokenizer.json", "preprocessor_config.json"])
def test_weights_that_another_program_fetched_alone_are_no_model(hub: Path, missing: str) -> None:
    (hub / missing).unlink()
    with pytest.raises(ModelError, match="org/model has no tokenizer or no image processor, or its cached copy"):
        resolve("org/model")


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/other", "org/other is neither in the cache nor to be had from the hub; check the name and the network"),
        ("gpt-nothing", "gpt-nothing is neither in the cache"),
        ("not a name", "There is no model 'not a name'"),
        ("./nowhere", "There is no model folder ./nowhere"),
        ("/no/where", "There is no model folder /no/where"),
        ("a/b/c", "There is no model folder a/b/c"),
    ],
)
def test_unknown_models_are_one_sentence(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def test_folders_that_hold_no_model(tmp_path: Path, plain: Path) -> None:
    with pytest.raises(ModelError, match=r"without config\.json"):
        resolve(tmp_path)
    (plain / "model.safetensors").rename(plain / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors"):
        resolve(plain)


def test_the_default_model_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: Path) -> None:
    monkeypatch.setattr(checkpoints, "DEFAULT_MODEL_PATH", tmp_path / "nowhere")
    with pytest.raises(ModelError, match="bundled default model is missing"):
        resolve()
    monkeypatch.setattr(checkpoints, "DEFAULT_MODEL_PATH", trained)
    assert resolve() == resolve("default")
    assert (resolve().name, resolve().folder) == ("default", trained)


def test_the_fingerprint_follows_what_is_written_and_nothing_else(plain: Path, trained: Path, tmp_path: Path) -> None:
    before = model_fingerprint(plain)
    assert before == model_fingerprint(plain, num_summary_tokens=16)
    assert before != model_fingerprint(plain, num_summary_tokens=8)
    moved = tmp_path / "elsewhere"
    shutil.copytree(plain, moved)
    for beside in ("README.md", "special_tokens_map.json", "vocab.json", "merges.txt", "video_processor.json"):
        (moved / beside).write_text("what some programs fetch and others do not")
    assert model_fingerprint(moved) == before
    (moved / "tokenizer.json").write_text("[]")
    assert model_fingerprint(moved) != before

    seen = {model_fingerprint(trained)}
    for part in ("base/model.safetensors", "adapters/compress/adapter_model.safetensors", "summary_tokens.safetensors"):
        (trained / part).write_bytes(b"other")
        seen.add(model_fingerprint(trained))
    assert len(seen) == 4


def test_what_the_second_pass_alone_has_decides_answers_but_no_index(trained: Path) -> None:
    own = trained / "adapters" / "generate"
    own.mkdir(exist_ok=True)
    (own / "adapter_model.safetensors").write_bytes(b"one")
    before = resolve(trained)
    index, answers = before.fingerprint(), before.full_fingerprint()
    (own / "adapter_model.safetensors").write_bytes(b"two")
    assert resolve(trained).fingerprint() == index
    assert resolve(trained).full_fingerprint() != answers
    assert index != answers


def test_settings_count_by_value(trained: Path) -> None:
    def changed(**settings: object) -> tuple[str, str]:
        file = trained / "config.json"
        file.write_text(json.dumps({**before, **settings}))
        found = resolve(trained)
        return found.fingerprint(), found.full_fingerprint()

    before = json.loads((trained / "config.json").read_text())
    index, answers = changed()
    assert changed(token_norm=False, pooling="mean") == (index, answers)
    asked = changed(matching_prompt="is {text} here?")
    assert asked[0] == index
    assert asked[1] != answers
    assert changed(compress_prompt="What is this?")[0] != index
    assert changed(pooling="mlp")[0] != index


def test_big_files_are_sampled_over_their_whole_length(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_WHOLE_FILE_LIMIT", 1000)
    monkeypatch.setattr(checkpoints, "_BLOCK", 10)
    weights = plain / "model.safetensors"
    data = bytearray(64 * 1000)
    weights.write_bytes(data)
    before = model_fingerprint(plain)
    for place in (3, len(data) // 2, len(data) - 1):  # header, middle, end
        changed = data.copy()
        changed[place] = 1
        weights.write_bytes(changed)
        assert model_fingerprint(plain) != before
    weights.write_bytes(data)
    assert model_fingerprint(plain) == before


def test_no_torch(plain: Path) -> None:
    code = (
        "import sys; from fwd2bot_index.checkpoints import model_fingerprint; model_fingerprint(sys.argv[1]);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft')))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(plain)], check=False).returncode == 0
