"""What is installed: the right copy, typed, small, and nothing that unpickles."""

from __future__ import annotations

import ast
import importlib
import os
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fwd2bot_index", "fwd2bot_training", "fwd2bot_eval", "fwd2bot_serve", "fwd2bot_cli")
SOURCES = sorted(
    path for folder in ("fwd2bot_index", "training", "eval", "cli") for path in (ROOT / folder).rglob("*.py")
)
FOLDERS = {
    "fwd2bot_index": ROOT,
    "fwd2bot_training": ROOT / "training",
    "fwd2bot_eval": ROOT / "eval",
    "fwd2bot_serve": ROOT / "cli",
    "fwd2bot_cli": ROOT / "cli",
}
WHEEL_LIMIT = 40_000_000
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def folder_of(package: str) -> Path:
    file = importlib.import_module(package).__file__
    assert file is not None
    return Path(file).parent


@pytest.mark.parametrize("package", PACKAGES)
def test_the_copy_under_test(package: str) -> None:
    """With FWD2BOT_TEST_WHEEL=1 the installed wheel, and else the checkout."""
    installed = Path(sysconfig.get_path("purelib"))
    expected = installed if os.environ.get("FWD2BOT_TEST_WHEEL") == "1" else ROOT
    assert folder_of(package).is_relative_to(expected)
    if expected == ROOT:
        assert not folder_of(package).is_relative_to(installed)


@pytest.mark.parametrize("package", PACKAGES)
def test_typed(package: str) -> None:
    assert (folder_of(package) / "py.typed").is_file()


def wheels() -> list[Path]:
    return sorted((ROOT / "dist").glob("*.whl"))


@pytest.mark.skipif(not wheels(), reason="no wheel was built: `make wheel-test` builds one in dist/")
def test_wheel() -> None:
    (wheel,) = wheels()
    assert wheel.stat().st_size < WHEEL_LIMIT
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert sum(info.file_size for info in archive.infolist()) < WHEEL_LIMIT
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    for package in PACKAGES:
        assert f"{package}/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


@pytest.mark.skipif(os.environ.get("FWD2BOT_TEST_WHEEL") != "1", reason="the wheel in dist/ may be an old one")
def test_the_wheel_holds_every_file_of_the_packages() -> None:
    """So what the tests say of the checkout holds for the wheel, once it is known to be found and to run."""
    expected = {}
    for package, above in FOLDERS.items():
        for path in (above / package).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                expected[path.relative_to(above).as_posix()] = path.read_bytes()
    (wheel,) = wheels()
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert sorted(held) == sorted(expected)
    assert [name for name in held if held[name] != expected[name]] == []


def test_the_command_is_installed() -> None:
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="fwd2bot")
    assert command.value == "fwd2bot_cli.main:run"
    assert callable(command.load())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    """No import of a module that unpickles, no ``torch.load``, and no numpy file with objects in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNPICKLERS
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNPICKLERS
        elif isinstance(node, ast.Attribute) and node.attr == "load":
            assert not (isinstance(node.value, ast.Name) and node.value.id == "torch"), (
                f"torch.load, line {node.lineno}"
            )
        elif isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle", f"allow_pickle, line {node.value.lineno}"
