"""fer app in headless Chromium: a real upload and a real click; nothing leaves the machine."""

import shutil
import socket
import subprocess
import sys

import pytest
from PIL import Image
from playwright import sync_api as playwright
from skimage.data import astronaut

from fer import CLASSES

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.slow
def test_a_photo_is_uploaded_and_labelled_in_the_browser(tmp_path, tiny):
    assert CHROMIUM, "this test needs chromium or google-chrome"
    Image.fromarray(astronaut()).save(tmp_path / "photo.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fer", "app", f"ckpt={tiny()}", f"port={port}", "device=cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert f"open http://127.0.0.1:{port} in a browser" in server.stdout.readline()
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.goto(f"http://127.0.0.1:{port}")
            page.set_input_files("input[type=file]", str(tmp_path / "photo.png"))
            page.wait_for_selector("img[src*='photo.png'], img[src^='blob:'], .image-frame img")
            page.click("#label")
            page.wait_for_selector("#drawing img", timeout=60_000)
            page.wait_for_selector("#maps img")
            text = page.inner_text("#table")
            page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
            browser.close()
        assert any(f"{name} " in text for name in CLASSES) and "%" in text
        outside = [
            url for url in asked if not url.startswith(("http://127.0.0.1", "data:", "blob:"))
        ]
        assert not outside
    finally:
        server.terminate()
        server.wait(20)
