"""Take the pictures of the page that `docs/` shows, and measure how soon it is there.

    python -m tests.service.screenshots docs baseline=BUNDLE dvib=BUNDLE

The first argument is the folder for the pictures; the others are what `dvib-serve --bundle` takes. Of items the page
shows titles only, so the pictures hold nothing that a licence keeps.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tests.service.browser import PHONE, chromium, visiting
from tests.service.processes import serving, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_LOADS = 9
_PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def _is_painted(page: Page) -> bool:
    return page.evaluate(_PAINTED) is not None


def _is_compared(page: Page) -> bool:
    text: str = page.inner_text("#status")
    return text.startswith("For user")


def first_paints(browser: Browser, origin: str, *, again: bool) -> tuple[float, int]:
    """Load the page some times; return the median of the milliseconds to the first paint, and the bytes of its files.

    Args:
        browser: Runs.
        origin: Of the service.
        again: Whether the tab has shown the page before: the browser has a process for it, and asks whether its files
            have changed.
    """
    paints: list[float] = []
    weight = 0
    for _ in range(_LOADS):
        with visiting(browser, origin) as visit:
            if again:
                visit.page.reload()
            until(partial(_is_painted, visit.page))
            paints.append(visit.page.evaluate(_PAINTED))
            files = {address for address in visit.requests if address == f"{origin}/" or "/page/" in address}
            weight = sum(len(visit.page.request.get(address).body()) for address in files)
    return statistics.median(paints), weight


def take(browser: Browser, origin: str, folder: Path) -> None:
    """Write the pictures: light and dark, as wide as a desk's and a phone's."""
    looks: dict[str, dict[str, Any]] = {
        "page-light": {"color_scheme": "light"},
        "page-dark": {"color_scheme": "dark"},
        "page-phone": {"color_scheme": "light", "viewport": PHONE},
    }
    for name, options in looks.items():
        with visiting(browser, origin, **options) as visit:
            visit.page.click("#compare")  # once more, now that everything has been used before
            until(partial(_is_compared, visit.page))
            visit.page.click("#run")
            visit.page.wait_for_selector("#run:has-text('Run')")
            visit.page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
            visit.page.screenshot(path=str(folder / f"{name}.png"), full_page=True)


def main() -> None:
    """Serve the bundles, take the pictures, say how fast the page was."""
    folder, bundles = Path(sys.argv[1]), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    options = [part for bundle in bundles for part in ("--bundle", str(bundle))]
    with (
        TemporaryDirectory() as elsewhere,
        serving(*options, "--port", "0", cwd=Path(elsewhere)) as server,
        chromium() as browser,
    ):
        take(browser, server.url, folder)
        (first, weight), (later, _) = (first_paints(browser, server.url, again=again) for again in (False, True))
    print(f"{weight} bytes; first paint after {first:.0f} ms in a new tab, {later:.0f} ms in one that has seen it")


if __name__ == "__main__":
    main()
