import os
import shutil
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """The system's Chromium, headless; skips where there is none, or fails with HWPQ_REQUIRE_BROWSER=1."""
    missing = None
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is missing (pip install '.[test]')"
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        missing = "there is no Chromium (apt-get install chromium)"
    if missing is not None:
        assert not os.environ.get("HWPQ_REQUIRE_BROWSER"), missing
        pytest.skip(missing)
    with sync_playwright() as playwright:
        # Containers run tests as root, for whom Chromium's sandbox does not start.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
