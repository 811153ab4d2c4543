"""A headless Chromium that the system has, and what a page did in it."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 375, "height": 800}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser; skip the test where there is none, or no Playwright to drive it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: group `browser`")
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed: Debian's package is `chromium`")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=_ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page, and what is to be complained about.

    Attributes:
        page: Open in the browser.
        origin: Whose page it is.
        errors: What the console and uncaught exceptions say.
        strangers: Addresses elsewhere that were asked for.
        requests: Every address that was asked for.
    """

    page: Page
    origin: str
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def violations(self) -> list[str]:
        """Return what the content security policy has kept the page from."""
        found: list[str] = self.page.evaluate("() => window.violations")
        return found


@contextmanager
def visiting(
    browser: Browser, origin: str, *, ready: str = "#results:not([hidden])", **options: Any
) -> Iterator[Visit]:
    """Open the page of a service in a browser context of its own, and wait for something on it."""
    context = browser.new_context(**{"viewport": WIDE, **options})
    context.set_default_timeout(10_000)
    context.add_init_script(
        "window.violations = []; document.addEventListener('securitypolicyviolation', event => "
        "window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`))"
    )
    page = context.new_page()
    visit = Visit(page, origin)

    def asked(address: str) -> None:
        visit.requests.append(address)
        if not address.startswith(f"{origin}/"):
            visit.strangers.append(address)

    page.on("request", lambda request: asked(request.url))
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.on(
        "console",
        lambda message: visit.errors.append(message.text) if message.type in {"error", "warning"} else None,
    )
    try:
        page.goto(f"{origin}/")
        page.wait_for_selector(ready)
        yield visit
    finally:
        context.close()
