"""Takes the pictures of docs/page.md: the page over the bundled pair, in Chromium. Needs the `dev` extra and `chromium`.

python scripts/page_screenshots.py [FOLDER]
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

FOLDER = Path(__file__).parent.parent / "docs" / "images"
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
MAX_BYTES = 200_000


@contextmanager
def server() -> Iterator[str]:
    """`forerun serve` on a free port; its address."""
    command = [sys.executable, "-c", "from forerun.cli import app; app()", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"(http://\S+) serves", line):
                    break
            else:
                raise SystemExit("the server did not start")
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield found[1]
        finally:
            process.terminate()


def another_client(url: str) -> None:
    """Keeps the engine busy, so that the gauges have something to show."""
    body = {"model": "forerun/default", "prompt": "import os\n\n\ndef main(argv):\n", "max_tokens": 600, "temperature": 0.4, "seed": 3, "ignore_eos": True}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=300).read()


def opened(browser: Browser, url: str, width: int, height: int, scheme: str) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(180_000)
    page.goto(url)
    page.wait_for_selector("[data-state=connected]")
    return page


def race(page: Page) -> None:
    page.click("#both")
    page.wait_for_selector("#verdict .same")


def save(page: Page, folder: Path, name: str, **more: object) -> None:
    path = folder / name
    page.screenshot(path=path, **more)
    page.close()
    size = path.stat().st_size
    print(f"{path}: {size / 1000:.0f} kB")
    if size >= MAX_BYTES:
        raise SystemExit(f"{path} is over {MAX_BYTES / 1000:.0f} kB")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with server() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = opened(browser, url, 1280, 800, "light")
        race(page)
        client = threading.Thread(target=another_client, args=(url,))
        client.start()
        page.wait_for_timeout(6000)
        save(page, folder, "page-race.png")
        client.join()

        page = opened(browser, url, 1280, 800, "dark")
        page.click("#run")
        page.wait_for_selector("#result[aria-busy=false] .pane .token")
        page.locator(".pane .recovered").nth(3).hover()
        save(page, folder, "page-dark.png")

        page = opened(browser, url, 390, 844, "light")
        race(page)
        save(page, folder, "page-phone.png", full_page=True, clip={"x": 0, "y": 0, "width": 390, "height": 1240})
        browser.close()


if __name__ == "__main__":
    main()
