"""The page in headless Chromium (Debian's), as a person uses it: with the mouse, with keys alone, and when things go
wrong. The model is a fake whose answers are colours."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from served_index import add_pictures, describe, serving

from fwd2bot_index.config import Manifest
from fwd2bot_index.store import writing
from fwd2bot_serve.settings import Settings

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: `apt-get install chromium`")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESK, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
MANY = 110
PAGE = 48
DETAIL = '{"detail": "Too much.", "error": "overloaded"}'
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """``open_page(address)``; nothing may go wrong in the page unseen."""
    wrong: list[str] = []
    contexts = []

    def open_(address: str, viewport: dict[str, int] = DESK, *, errors: bool = False) -> Any:
        context = browser.new_context(viewport=viewport)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if not errors:
            page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server of more pictures than are shown at once, and the folder of its pictures."""
    folder = tmp_path_factory.mktemp("many")
    shades = {f"shade-{i:03}": (60 + i, 60 + i, 60 + i) for i in range(MANY)}
    colours = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
    add_pictures(folder / "index", folder / "pictures", {**shades, **colours})
    years: dict[str, object] = {"red": 2020, "green": 2021, "blue": 2022}
    describe(folder / "index", folder / "pictures", "year", years)
    describe(folder / "index", folder / "pictures", "place", {"red": "Ulm", "green": "Ulm", "blue": "L'Aquila"})
    with serving(folder / "index") as address:
        yield address, folder / "pictures"


@pytest.fixture
def page(many: tuple[str, Path], open_page: Open) -> Any:
    page = open_page(many[0])
    page.wait_for_selector("figure img.there")
    return page


def shown(page: Any) -> list[str]:
    names: list[str] = page.locator("figure img").evaluate_all("all => all.map(img => img.alt.replace('.png', ''))")
    return names


def becomes(page: Any, condition: str) -> None:
    """Wait until it is true (``wait_for_function`` needs what the page's policy forbids)."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    raise AssertionError(f"never: {condition}")


def scrolled(page: Any, figures: int) -> None:
    """To the end, until there are so many."""
    becomes(page, f"scrollTo(0, 1e6), document.querySelectorAll('figure').length === {figures}")


def search(page: Any, words: str) -> None:
    page.fill("#words", words)
    settled(page, lambda: page.press("#words", "Enter"))


def settled(page: Any, act: Callable[[], object]) -> None:
    """Do something that searches, and wait for what it finds."""
    with page.expect_response(lambda answer: "/search" in answer.url or "/pictures?" in answer.url):
        act()
    becomes(page, "!document.querySelector('.hole')")


def hand_over(page: Any, kind: str, data: bytes) -> None:
    """Drop or paste the file of a picture."""
    page.evaluate(
        """([kind, encoded]) => {
            const bytes = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], 'mine.png', {type: 'image/png'}));
            const event = kind === 'paste'
                ? new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true, cancelable: true})
                : new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true});
            document.querySelector('main').dispatchEvent(event);
        }""",
        [kind, base64.b64encode(data).decode()],
    )


class TestSearch:
    def test_all_come_as_one_scrolls(self, page: Any) -> None:
        assert 0 < page.locator("figure").count() < MANY
        scrolled(page, MANY + 3)

    def test_more_of_what_was_searched_for(self, page: Any) -> None:
        """And not of what has been typed since."""
        sent: list[Any] = []
        page.on("request", lambda request: sent.append(request.post_data_json) if "/search" in request.url else None)
        search(page, "green")
        page.fill("#words", "blue")
        scrolled(page, MANY + 3)
        assert [(body["page"], body["terms"]) for body in sent] == [
            (number, [{"text": "green", "weight": 1}]) for number in (1, 2, 3)
        ]

    def test_more_cannot_be_had_at_once(self, many: tuple[str, Path], open_page: Open) -> None:
        page = open_page(many[0], errors=True)
        page.wait_for_selector("figure img.there")
        page.route("**/pictures?*page=2*", lambda route: route.fulfill(status=500, body=DETAIL))
        scrolled(page, PAGE)
        page.wait_for_selector("text=Many are asking at once")
        page.evaluate("document.querySelector('figure').id = 'first'")
        page.unroute("**/pictures?*page=2*")
        scrolled(page, MANY + 3)  # by itself
        assert page.locator("figure#first").count() == 1

    def test_more_is_indexed_meanwhile(self, tmp_path: Path, open_page: Open) -> None:
        def add(first: int, last: int) -> None:
            colours = {f"p{i:02}": (i, 100, 100) for i in range(first, last)}
            add_pictures(tmp_path / "index", tmp_path / "pictures", colours)

        add(0, PAGE + 2)
        with serving(tmp_path / "index") as address:
            page = open_page(address, errors=True)
            page.wait_for_selector("figure img.there")
            add(PAGE + 2, PAGE + 7)
            scrolled(page, PAGE + 2)
            assert len(set(shown(page))) == PAGE + 2  # none twice

    def test_addresses_that_are_written_otherwise(self, many: tuple[str, Path], open_page: Open) -> None:
        page = open_page(f"{many[0]}/#query=red")
        page.wait_for_selector("figure")
        settled(page, lambda: page.goto(f"{many[0]}/#query=a%20green"))
        assert page.url.endswith("query=a+green")
        settled(page, page.go_back)
        assert page.url.endswith("query=red")
        settled(page, lambda: page.goto(f"{many[0]}/#query=green^1.2.3"))
        assert page.input_value("#words") == "green^1.2.3"
        settled(page, lambda: page.goto(f"{many[0]}/#query=green^2"))
        assert page.locator("#terms select").input_value() == "2"

    def test_words(self, page: Any) -> None:
        search(page, "green")
        assert shown(page)[0] == "green"
        assert "query=green" in page.url
        search(page, "blue")
        assert shown(page)[0] == "blue"
        settled(page, page.go_back)
        assert page.input_value("#words") == "green"
        assert shown(page)[0] == "green"

    def test_several_terms_with_weights(self, page: Any) -> None:
        page.fill("#words", "red")
        settled(page, lambda: page.press("#words", "Shift+Enter"))
        page.fill("#words", "blue^3")
        settled(page, lambda: page.press("#words", "Shift+Enter"))
        assert shown(page)[0] == "blue"
        settled(page, lambda: page.select_option("#terms li:nth-child(2) select", "-1"))
        assert shown(page)[0] == "red"
        assert page.locator("#terms li.away").inner_text().startswith("blue")
        assert page.evaluate("document.activeElement.matches('#terms li.away select')")
        settled(page, lambda: page.click("#terms li:nth-child(1) button"))
        assert page.locator("#terms li").count() == 1
        assert "green" in shown(page)[:3]

    @pytest.mark.parametrize("how", ["drop", "paste"])
    def test_a_picture(self, page: Any, many: tuple[str, Path], how: str) -> None:
        if how == "drop":
            hand_over(page, "dragenter", b"")
            assert page.is_visible("#drop")
        settled(page, lambda: hand_over(page, how, (many[1] / "green.png").read_bytes()))
        assert shown(page)[0] == "green"
        assert page.locator("#terms img").count() == 1
        assert not page.is_visible("#drop")

    def test_a_picture_that_is_none(self, many: tuple[str, Path], open_page: Open) -> None:
        page = open_page(many[0], errors=True)
        settled(page, lambda: hand_over(page, "drop", b"no picture"))
        assert page.inner_text("#face h2") == "That did not work"
        assert "not an image that can be read" in page.inner_text("#face")
        settled(page, lambda: page.click("#terms button"))
        page.wait_for_selector("figure")

    def test_a_picture_that_is_too_large(self, page: Any) -> None:
        page.evaluate("scrollTo(0, 500)")
        page.evaluate(
            """() => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new ArrayBuffer(65 * 2 ** 20)], 'large.png', {type: 'image/png'}));
                document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: transfer, bubbles: true}));
            }"""
        )
        becomes(page, "document.querySelector('#refused').getBoundingClientRect().bottom > 0")
        assert page.inner_text("#refused") == "large.png is too large to be sent."
        assert page.locator("figure").count() > 0


class TestFilters:
    def test_of_the_corpus_own_columns(self, page: Any) -> None:
        page.click("#filter")
        settled(page, lambda: page.get_by_label("Ulm").check())
        assert sorted(shown(page)) == ["green", "red"]
        settled(page, lambda: page.fill("[aria-label='year from']", "2021"))
        assert shown(page) == ["green"]
        assert page.inner_text("#filtered") == "2"
        settled(page, lambda: page.get_by_label("Ulm").uncheck())
        settled(page, lambda: page.get_by_label("L'Aquila").check())
        assert shown(page) == ["blue"]
        search(page, "red")
        assert shown(page) == ["blue"]

    def test_days_are_whole(self, tmp_path: Path, open_page: Open) -> None:
        add_pictures(tmp_path / "index", tmp_path / "pictures", {"red": (250, 10, 10), "green": (10, 250, 10)})
        taken: dict[str, object] = {"red": datetime(2024, 2, 29, 15), "green": datetime(2024, 3, 1, 1)}
        describe(tmp_path / "index", tmp_path / "pictures", "taken", taken)
        with serving(tmp_path / "index") as address:
            page = open_page(address, errors=True)
            page.wait_for_selector("figure")
            page.click("#filter")
            settled(page, lambda: page.fill("[aria-label='taken to']", "2024-02-29"))
            assert shown(page) == ["red"]

    def test_the_index_grows_meanwhile(self, tmp_path: Path, open_page: Open) -> None:
        index, pictures = tmp_path / "index", tmp_path / "pictures"
        add_pictures(index, pictures, {"red": (250, 10, 10)})
        with serving(index) as address:
            page = open_page(address, errors=True)
            page.wait_for_selector("figure")

            def grows(column: str) -> None:
                describe(index, pictures, column, {"red": True})
                with page.expect_response("**/columns"):
                    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")

            page.click("#filter")
            settled(page, lambda: page.get_by_label("near copies only once").check())
            grows("sharp")
            page.wait_for_timeout(200)
            assert page.get_by_label("sharp").count() == 0  # nothing moves under the hand
            page.click("#filter")
            page.click("#filter")
            assert page.get_by_label("sharp").count() == 1
            assert page.get_by_label("near copies only once").is_checked()
            page.click("#filter")
            grows("dark")
            becomes(page, "!!document.querySelector('[aria-label=dark]')")
            assert page.get_by_label("near copies only once").is_checked()

    def test_nothing_fulfils_them(self, page: Any) -> None:
        page.click("#filter")
        settled(page, lambda: page.fill("[aria-label='year from']", "3000"))
        assert page.inner_text("#face h2") == "Nothing was found"
        settled(page, lambda: page.click("text=Clear the filters"))
        page.wait_for_selector("figure")

    def test_a_condition_that_makes_no_sense(self, many: tuple[str, Path], open_page: Open) -> None:
        page = open_page(many[0], errors=True)
        page.click("#filter")
        page.fill("#sql", "nothing = 3")
        settled(page, lambda: page.press("#sql", "Enter"))
        assert "there is no column nothing" in page.inner_text("#face")


class TestAsk:
    def test_about_the_first(self, page: Any) -> None:
        search(page, "blue")
        page.fill("#question", "which colour?")
        page.press("#question", "Enter")
        becomes(page, "document.querySelectorAll('figure.asked:not(.asking)').length === 12")
        assert page.locator("figure").first.locator(".said span").inner_text() == "blue"
        assert page.locator("figure").nth(12).locator(".said").count() == 0
        assert "blue" in page.inner_text("#answer")

    def test_about_the_selection_with_what_it_rests_on(self, page: Any) -> None:
        for name in ("green", "red"):
            search(page, name)
        page.click("#filter")
        settled(page, lambda: page.get_by_label("Ulm").check())
        for name in ("green", "red"):
            page.get_by_label(f"Select {name}.png").check()
        assert page.inner_text("#about") == "2 selected"
        page.get_by_label("together").check()
        page.fill("#question", "where is green?")
        page.click("#ask button[type=submit]")
        page.wait_for_selector("#answer .on img")
        assert page.inner_text("#answer strong") == "green red"
        assert page.locator("figure.rests img").evaluate_all("all => all.map(i => i.alt)") == ["green.png"]
        page.click("#unselect")
        assert page.inner_text("#about") == "The first 2"

    def test_the_answers_break_off(self, page: Any) -> None:
        page.route("**/ask", lambda route: route.fulfill(body=""))
        page.fill("#question", "which colour?")
        page.press("#question", "Enter")
        assert "broke off" in page.inner_text("#answer .wrong")
        assert page.locator("figure.asking").count() == 0

    def test_choices(self, page: Any) -> None:
        search(page, "red")
        page.fill("#choices", "yes, no")
        page.fill("#question", "is it red?")
        page.press("#question", "Enter")
        becomes(page, "document.querySelectorAll('figure.asked:not(.asking)').length === 12")
        assert page.locator("figure").first.locator(".said span").inner_text() == "yes"


class TestOnePicture:
    def test_what_is_known_of_it(self, page: Any) -> None:
        search(page, "blue")
        page.get_by_label("Open blue.png").click()
        page.wait_for_selector("#picture .similar img")
        assert page.inner_text("#picture h2") == "blue.png"
        assert "L'Aquila" in page.inner_text("#picture table")
        page.wait_for_selector("#picture .kept q")
        assert "finds it first of 113 pictures" in page.inner_text("#picture .kept")
        page.fill("#picture .ask input", "which colour?")
        page.press("#picture .ask input", "Enter")
        becomes(page, "document.querySelector('#picture .ask li b small')")
        assert page.inner_text("#picture .ask li b").startswith("blue")
        second = shown(page)[1]
        page.click("#picture .after")
        assert page.inner_text("#picture h2") == f"{second}.png"
        settled(page, lambda: page.click("text=Less like this"))
        assert not page.is_visible("#picture")
        assert page.locator("#terms li.away img").count() == 1

    def test_a_walk_goes_on_where_the_grid_ends(self, page: Any) -> None:
        page.evaluate(f"document.querySelectorAll('figure > button')[{PAGE - 1}].click()")
        last = page.inner_text("#picture h2")
        page.click("#picture .after")
        becomes(page, f"document.querySelector('#picture h2').textContent !== '{last}'")
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Next"

    def test_it_cannot_be_had_at_once(self, many: tuple[str, Path], open_page: Open) -> None:
        page = open_page(many[0], errors=True)
        page.wait_for_selector("figure")
        page.route("**/thumbnails/**", lambda route: route.fulfill(status=503, body=DETAIL))
        page.reload()
        page.wait_for_selector("figure .lost")
        assert page.locator("figure .lost").first.inner_text().startswith("Too much.")
        page.unroute("**/thumbnails/**")
        page.locator("figure .lost button").first.click()
        page.wait_for_selector("figure img.there")

    def test_its_file_is_gone(self, many: tuple[str, Path], open_page: Open, tmp_path: Path) -> None:
        ids = add_pictures(tmp_path / "index", tmp_path / "pictures", {"red": (250, 10, 10)})
        (tmp_path / "pictures" / "red.png").unlink()
        assert ids
        with serving(tmp_path / "index") as address:
            page = open_page(address, errors=True)
            page.wait_for_selector("figure .lost")
            assert page.locator("figure .lost button").count() == 0
            page.locator("figure > button").click()
            assert "can still be searched and asked" in page.inner_text("#picture .view .lost")


def test_with_keys_alone(page: Any) -> None:
    page.locator("#words").blur()
    page.keyboard.press("/")
    page.keyboard.type("green")
    settled(page, lambda: page.keyboard.press("Enter"))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert page.inner_text("#about") == "2 selected"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.inner_text("#picture h2") == "green.png"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#picture h2") != "green.png"
    page.keyboard.press("Escape")
    assert not page.is_visible("#picture")
    page.keyboard.press("a")
    page.keyboard.type("which colour?")
    page.keyboard.press("Enter")
    becomes(page, "document.querySelectorAll('figure.asked:not(.asking)').length === 2")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.locator("#question").blur()
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    page.keyboard.press("f")
    assert page.is_visible("#filters")
    page.keyboard.press("Escape")
    assert not page.is_visible("#filters")


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_fits_and_everything_has_a_name(many: tuple[str, Path], open_page: Open, viewport: dict[str, int]) -> None:
    page = open_page(many[0], viewport)
    page.wait_for_selector("figure img.there")
    page.click("#filter")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("figure > button").first.click()
    page.wait_for_selector("#picture .similar img")
    assert page.evaluate("document.querySelector('#picture').scrollWidth <= innerWidth")
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select, a, dialog, [role=list]')].filter(e =>
            !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.innerText?.trim()
              || e.labels?.[0]?.innerText.trim())).map(e => e.outerHTML)"""
    )
    assert nameless == []


class TestStates:
    def test_an_empty_index_and_a_run_that_is_watched(self, tmp_path: Path, open_page: Open) -> None:
        from fakes import manifest

        from fwd2bot_index.store import IndexStore

        IndexStore.create(tmp_path / "index", manifest(k=4, d=8, e=3))
        with serving(tmp_path / "index") as address:
            page = open_page(address, errors=True)
            page.wait_for_selector("#face[data-kind=empty]")
            assert "fwd2bot index" in page.inner_text("#face")
            with writing(tmp_path / "index"):
                page.wait_for_selector("#status.busy")
                assert page.inner_text("#status").startswith("Indexing")
                add_pictures(tmp_path / "index", tmp_path / "pictures", {"red": (250, 0, 0)})
                page.wait_for_selector("figure")  # by itself
                add_pictures(tmp_path / "index", tmp_path / "pictures", {"blue": (0, 0, 250)})
                page.click("text=Show 1 new picture")
                becomes(page, "document.querySelectorAll('figure').length === 2")
            page.wait_for_selector("#status:not(.busy)")
            assert page.inner_text("#status") == "2 pictures"

    def test_the_model_is_being_loaded(self, tmp_path: Path, open_page: Open) -> None:
        from fakes import FakeModel

        add_pictures(tmp_path / "index", tmp_path / "pictures", {"red": (250, 0, 0)})
        let = threading.Event()

        def load(manifest: Manifest) -> FakeModel:
            assert let.wait(20)
            return FakeModel()

        with serving(tmp_path / "index", load=load, wait=False) as address:
            page = open_page(address, errors=True)
            page.wait_for_selector("figure")
            page.fill("#words", "red")
            page.press("#words", "Enter")
            page.wait_for_selector("text=The model is being loaded")
            let.set()
            page.wait_for_selector("figure")  # by itself

    def test_the_index_goes_and_comes_back(self, tmp_path: Path, open_page: Open) -> None:
        add_pictures(tmp_path / "index", tmp_path / "pictures", {"red": (250, 0, 0)})
        with serving(tmp_path / "index") as address:
            page = open_page(address, errors=True)
            page.wait_for_selector("figure")
            shutil.rmtree(tmp_path / "index")
            search(page, "red")
            assert page.inner_text("#face h2") == "The index is not there"
            add_pictures(tmp_path / "index", tmp_path / "pictures", {"red": (250, 0, 0)})
            page.wait_for_selector("figure")  # by itself

    def test_a_token_is_wanted(self, many: tuple[str, Path], open_page: Open) -> None:
        index = many[1].parent / "index"
        with serving(index, Settings(token="sesame")) as address:
            page = open_page(address, errors=True)
            page.wait_for_selector("#face[data-kind=token]")
            assert page.locator("figure").count() == 0
            page.fill("#face input", "wrong")
            page.press("#face input", "Enter")
            page.wait_for_selector("text=That is not the token")
            page.fill("#face input", "sesame")
            page.press("#face input", "Enter")
            page.wait_for_selector("figure img.there")
            given = open_page(f"{address}/#token=sesame", errors=True)
            given.wait_for_selector("figure img.there")
            assert "sesame" not in given.url

    def test_no_token_is_wanted(self, many: tuple[str, Path], open_page: Open) -> None:
        page = open_page(f"{many[0]}/#token=sesame&query=green")
        page.wait_for_selector("figure img.there")
        assert page.input_value("#words") == "green"
        assert "sesame" not in page.url

    def test_the_server_is_gone(self, tmp_path: Path, open_page: Open) -> None:
        add_pictures(tmp_path / "index", tmp_path / "pictures", {"red": (250, 0, 0)})
        with serving(tmp_path / "index") as address:
            page = open_page(address, errors=True)
            page.wait_for_selector("figure")
        page.fill("#words", "red")
        page.press("#words", "Enter")
        page.wait_for_selector("text=The server does not answer")
