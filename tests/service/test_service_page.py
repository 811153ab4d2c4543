"""The page at `/`, clicked through in a headless Chromium, over a real service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest

from tests.service.browser import PHONE, chromium, visiting
from tests.service.contrast import CONTRAST
from tests.service.page_bundles import EVIL, Bundles, make_bundles
from tests.service.processes import until
from tests.service.threaded import KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

    from tests.service.browser import Visit
    from tests.service.processes import Server, StartServer

USER = "u-4"
EXPECTED_401 = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return make_bundles(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(serve: StartServer, bundles: Bundles, browser: Browser) -> Iterator[Server]:
    with serve(*bundles.options, "--port", "0") as server:
        yield server


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    with visiting(browser, server.url) as visit:
        yield visit
        assert visit.errors == []
        assert visit.strangers == []
        assert visit.violations() == []


def asked(server: Server, user: str, model: str, k: int = 10) -> dict[str, Any]:
    reply: dict[str, Any] = httpx.post(
        f"{server.url}/recommend", params={"user_id": user, "model": model, "k": str(k)}
    ).json()
    return reply


def choose(page: Page, user: str) -> None:
    page.fill("#user", user)
    page.click("#compare")
    wait_for(page, user)


def wait_for(page: Page, user: str) -> None:
    # Not by Playwright's own wait_for_function: that needs eval, which the page's policy forbids.
    until(lambda: page.text_content("#history-title") == f"History of {user}", what=f"the history of {user}")


def wait_for_run(page: Page) -> None:
    until(lambda: page.inner_text("#run").startswith("Run"), what="the end of the calls")


def items_on(page: Page, side: str) -> list[str]:
    return [text.removeprefix("id ") for text in page.locator(f"#{side}-panel .sub bdi:first-child").all_inner_texts()]


def status(page: Page) -> str:
    text: str = page.inner_text("#status")
    return text


def test_an_example_user_is_compared(visit: Visit, server: Server, bundles: Bundles) -> None:
    page = visit.page
    users = httpx.get(f"{server.url}/models").json()["models"][0]["example_users"]
    assert page.locator("#examples button").all_inner_texts() == users
    user = users[3]
    page.click(f"#examples button >> nth={3}")
    wait_for(page, user)
    assert page.get_attribute("#examples button >> nth=3", "aria-pressed") == "true"
    left, right = (asked(server, user, model)["items"] for model in ("baseline", "dvib"))
    for side, items in (("left", left), ("right", right)):
        assert items_on(page, side) == [item["item_id"] for item in items]
        titles = page.locator(f"#{side}-panel .title").all_inner_texts()
        assert titles == [item["title"] or "(no title)" for item in items]
        assert "answered in" in page.inner_text(f"#{side}-panel caption")
    places = {item["item_id"]: place for place, item in enumerate(left)}
    moves = [
        "new"
        if (before := places.get(item["item_id"])) is None
        else "="
        if before == place
        else f"{'▲' if place < before else '▼'} {abs(place - before)}"
        for place, item in enumerate(right)
    ]
    assert page.locator("#right-panel td:last-child [aria-hidden]").all_inner_texts() == moves
    shared, same = len(moves) - moves.count("new"), moves.count("=") or "none"
    assert 0 < shared < len(moves)
    sentence = f"For user {user}, {shared} of 10 items are on both lists, {same} of them in the same place."
    assert status(page) == sentence
    row = bundles.baseline.user_ids.index(user)
    seen = [bundles.baseline.item_ids[item] for item in bundles.baseline.seen[row]]
    shown = page.locator("#history .sub bdi:first-child").all_inner_texts()
    assert shown == seen
    first = bundles.baseline.item_ids.index(left[0]["item_id"])
    categories = bundles.baseline.categories
    assert categories is not None
    names = [name for name in categories.names if first in np.asarray(categories.rows(name))]
    assert page.locator("#left-panel tbody tr").first.locator(".sub bdi").all_inner_texts()[1:] == names


def test_what_is_proven_is_said_in_words(visit: Visit, server: Server) -> None:
    page = visit.page
    plain, wrapped = page.locator("#proofs .verdict").all_inner_texts()
    assert plain == "Proven: what answers is the plain baseline, nothing more."
    assert wrapped == "Proven: DVIB adds nothing to what answers. This is a baseline with other weights."
    assert page.locator("#proofs article >> nth=1").locator(".holds").count() == 4
    numbers = page.locator("#proofs article >> nth=1").locator("td.number").all_inner_texts()
    assert numbers == [
        *("3,169", "1,234,567", "1,234,567"),
        *("98,765", "7,654,321", "7,654,321"),
        *["12", "5", "5", "1", "0", "0"],
    ]
    page.click("#proofs article >> nth=1 >> summary")
    assert '"flops_per_user": 98765' in page.inner_text("#proofs article >> nth=1 >> pre")
    assert page.get_attribute("#proofs article >> nth=1 >> a", "href") == "models/dvib/certificate"
    page.select_option("#left", "evil")
    page.wait_for_selector("#proofs .verdict.bad")
    assert page.inner_text("#proofs .verdict.bad") == f"Not proven: parity, {EVIL[0]} do not hold."


def test_models_are_switched(visit: Visit, server: Server) -> None:
    page = visit.page
    choose(page, USER)
    page.select_option("#left", "dvib")
    page.wait_for_selector("#right-panel", state="hidden")
    ids = [item["item_id"] for item in asked(server, USER, "dvib")["items"]]
    assert items_on(page, "left") == ids
    assert page.locator("#left-panel th").all_inner_texts() == ["#", "Item", "Score"]
    assert page.locator("#proofs article").count() == 1
    assert status(page) == f"10 items for user {USER}."
    page.select_option("#right", "baseline")
    page.wait_for_selector("#right-panel", state="visible")
    assert items_on(page, "left") == ids
    assert items_on(page, "right") == [item["item_id"] for item in asked(server, USER, "baseline")["items"]]
    page.select_option("#count", "5")
    until(lambda: page.locator("#left-panel tbody tr").count() == 5)
    assert items_on(page, "left") == ids[:5]


def test_an_unknown_user_gets_what_is_popular_and_is_told_so(visit: Visit, server: Server, bundles: Bundles) -> None:
    page = visit.page
    nobody = "nobody <b>/?&"
    choose(page, nobody)
    assert status(page) == f"Unknown user {nobody}: here is what is popular."
    assert page.inner_text("#history-note") == "No model here knows this user: there is no history."
    assert page.is_hidden("#history-scroll")
    reply = asked(server, nobody, "dvib")
    assert reply["source"] == "popular"
    assert items_on(page, "right") == [item["item_id"] for item in reply["items"]]
    for side in ("left", "right"):
        assert "These are the most popular items" in page.inner_text(f"#{side}-panel .said")
    page.fill("#user", "")
    page.click("#compare")
    assert page.inner_text("#failure") == "Type or pick a user first."
    choose(page, bundles.baseline.user_ids[0])
    assert status(page) == f"For user {bundles.baseline.user_ids[0]} nothing is left to recommend."


def test_calls_are_timed_by_the_service_in_turn(visit: Visit) -> None:
    page = visit.page
    before = len(visit.requests)
    page.click("#run")
    wait_for_run(page)
    calls = ["dvib" if "model=dvib" in address else "baseline" for address in visit.requests[before:]]
    assert calls == ["baseline", "dvib", "dvib", "baseline"] * 50
    rows = [row.split("\t") for row in page.locator("#cost-table tbody tr").all_inner_texts()]
    assert [(name, calls) for name, calls, *_ in rows] == [("baseline", "101"), ("dvib", "101")]
    for _, _, *quantiles in rows:
        assert 0 < float(quantiles[0]) <= float(quantiles[1]) <= float(quantiles[2])
    assert "of 101 calls of baseline, half within" in page.inner_text("#run-status")
    assert page.locator("#chart svg[role=img] path.curve").count() == 4  # two curves, two samples of them
    for side in ("left", "right"):
        path = page.locator(f"#chart path.{side}-curve >> nth=0").get_attribute("d")
        assert path is not None
        ups = [float(part.split("H")[0]) for part in path.split("V")[1:]]
        assert len(ups) == 101
        assert ups == sorted(ups, reverse=True)
    page.click("#run")
    page.click("#run")  # which by now stops them
    wait_for_run(page)


def test_everything_can_be_done_with_the_keyboard(visit: Visit, server: Server) -> None:
    page = visit.page
    press = page.keyboard.press
    reached: list[str] = []

    def focused() -> dict[str, Any]:
        found: dict[str, Any] = page.evaluate(
            "() => { const one = document.activeElement, style = getComputedStyle(one); "
            "return {name: one.id || one.value || one.tagName, inside: one !== document.body, "
            "ring: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2}; }"
        )
        return found

    def tab_to(name: str) -> None:
        for _ in range(40):
            press("Tab")
            found = focused()
            assert found["ring"] or not found["inside"], found
            reached.append(found["name"])
            if found["name"] == name:
                return
        raise AssertionError(f"Tab does not reach {name}: {reached}")

    tab_to("user")
    press("Control+A")
    page.keyboard.type(USER)
    press("Enter")
    wait_for(page, USER)
    assert items_on(page, "left") == [item["item_id"] for item in asked(server, USER, "baseline")["items"]]
    tab_to("right")
    page.keyboard.type("baseline")
    page.wait_for_selector("#right-panel", state="hidden")
    tab_to("compare")
    example = page.locator("#examples button >> nth=1").inner_text()
    tab_to(example)
    press("Space")
    wait_for(page, example)
    tab_to("run")
    press("Enter")
    assert page.inner_text("#run") == "Stop"
    press("Enter")
    wait_for_run(page)
    tab_to("SUMMARY")
    press("Enter")
    page.wait_for_selector("details[open] pre")
    assert {"left", "count", "history-scroll", "SUMMARY"} <= set(reached)


def test_a_strangers_text_stays_text(visit: Visit, server: Server, bundles: Bundles) -> None:
    page = visit.page
    headings = page.locator("h1").count()
    page.select_option("#left", "evil")
    for row, user in enumerate(bundles.evil.user_ids[1:6], 1):
        choose(page, user)
        items = asked(server, user, "evil")["items"]
        assert page.locator("#left-panel .title").evaluate_all("all => all.map(one => one.textContent)") == [
            item["title"] for item in items
        ]
        assert page.locator("#history li").count() == min(50, len(bundles.evil.seen[row]))
    assert page.evaluate("() => window.pwned === undefined")
    assert page.locator("h1").count() == headings
    assert page.evaluate("() => document.scripts.length") == 1
    assert page.locator("main :is(script, img, iframe, object, style), main [onerror], main [onload]").count() == 0
    # An override of the direction ends with the text that it is in.
    assert page.locator("bdi").evaluate_all("all => all.every(one => getComputedStyle(one).unicodeBidi === 'isolate')")
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


def test_the_browser_is_told_to_refuse_what_the_page_never_does(browser: Browser, server: Server) -> None:
    with visiting(browser, server.url) as visit:
        page = visit.page
        assert "TypeError" in page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>' } catch (error) { return String(error) } }"
        )
        page.evaluate(
            "() => { const one = document.createElement('style'); one.append('b{}'); document.head.append(one); }"
        )
        assert page.evaluate("() => fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
        broken = " ".join(visit.violations())
        assert visit.errors
        assert all(name in broken for name in ("require-trusted-types-for", "style-src", "connect-src"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(browser: Browser, server: Server, scheme: Any) -> None:
    with visiting(browser, server.url, color_scheme=scheme) as visit:
        page = visit.page
        page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true; })")
        page.fill("#user", "")
        page.click("#compare")
        poor, looked = page.evaluate(CONTRAST)
        assert looked > 100
        assert poor == []
        dark = page.evaluate("() => getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
        assert (max(dark) < 64) == (scheme == "dark")


@pytest.mark.parametrize("width", [320, PHONE["width"], 768])
def test_it_fits_a_phone(browser: Browser, server: Server, width: int) -> None:
    with visiting(browser, server.url, viewport={"width": width, "height": 700}) as visit:
        visit.page.click("#run")
        wait_for_run(visit.page)
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= width
        wide = visit.page.locator("main :not(#cost-table *)").evaluate_all(
            "(all, width) => all.filter(one => one.getBoundingClientRect().right > width).map(one => one.outerHTML)",
            width,
        )
        assert wide == []


def test_it_says_what_everything_is(browser: Browser, server: Server) -> None:
    with visiting(browser, server.url, reduced_motion="reduce") as visit:
        page = visit.page
        unlabelled = "all => all.filter(one => !one.labels.length).map(one => one.id)"
        assert page.locator("input, select").evaluate_all(unlabelled) == []
        assert page.locator("h1").count() == 1
        assert page.get_attribute("html", "lang") == "en"
        assert page.locator("table:not(:has(caption))").count() == 0
        assert page.locator("th:not([scope])").count() == 0
        assert (
            page.locator("#status[aria-live=polite], #run-status[aria-live=polite], #failure[role=alert]").count() == 3
        )
        names = "all => all.filter(one => !document.getElementById(one.getAttribute('aria-labelledby'))?.textContent)"
        assert page.locator("[aria-labelledby]").evaluate_all(f"{names}") == []
        assert page.evaluate("() => getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_a_service_with_a_key_asks_for_it(browser: Browser, serve: StartServer, bundles: Bundles) -> None:
    with (
        serve(*bundles.options[:2], "--port", "0", DVIB_SERVE_API_KEY=KEY) as server,
        visiting(browser, server.url, ready="#key-form:not([hidden])") as visit,
    ):
        page = visit.page
        assert page.inner_text("#failure") == "This service asks for a key."
        refused, impossible = "The service does not take this key.", "The key has characters that no key can have."
        for wrong, sentence in (("0" * 16, refused), ("ключ", impossible)):
            page.fill("#key", wrong)
            page.keyboard.press("Enter")
            page.wait_for_selector(f"#failure:text-is('{sentence}')")
        page.fill("#key", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#results:not([hidden])")
        assert page.is_hidden("#key-form")
        assert page.is_hidden("#failure")
        choose(page, USER)
        assert page.locator("#left-panel tbody tr").count() == 10
        assert page.is_hidden("#right-field")
        assert page.locator("main a[href^=models]").count() == 0  # an address carries no key
        assert page.evaluate("() => localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert not [address for address in visit.requests if KEY in address]
        assert set(visit.errors) == {EXPECTED_401}
        page.reload()
        page.wait_for_selector("#key-form:not([hidden])")


def test_failures_are_sentences(browser: Browser, serve: StartServer, bundles: Bundles) -> None:
    with serve(*bundles.options[:4], "--port", "0") as server, visiting(browser, server.url) as visit:
        page = visit.page
        page.fill("#user", "x" * 300)
        page.click("#compare")
        page.wait_for_selector("#failure:not([hidden])")
        assert page.inner_text("#failure") == "User_id is or holds an id longer than 256 UTF-8 bytes."
        server.process.terminate()
        server.process.wait(10)
        page.fill("#user", USER)
        page.click("#compare")
        until(lambda: page.inner_text("#failure") == "The service cannot be reached. Is it still running?")
