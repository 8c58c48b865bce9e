"""A real browser without a window, where the machine has one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Return where the machine has Chromium, if it has."""
    return next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Yield the machine's Chromium. It has no sandbox of its own, which root cannot have; it only sees our pages."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()
