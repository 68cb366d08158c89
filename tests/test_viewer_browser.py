"""ginr-fast view in a browser: it loads, is dragged, zoomed and clicked, and lets go of clients.

In headless Chromium with a software renderer; skipped where there is none.
"""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_training import MODEL
from test_render_command import export as export_mnif

from ginr_fast.data import ViewConfig
from ginr_fast.systems.la_ginr import LaGinr
from ginr_fast.training.checkpoints import WEIGHTS_NAME, export_weights
from ginr_fast.viewer.opening import Shown, open_subject

pytest.importorskip("viser")
webdriver = pytest.importorskip("selenium.webdriver")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: E402

from ginr_fast.viewer.image_session import ImageSession  # noqa: E402
from ginr_fast.viewer.scene_session import SceneSession  # noqa: E402
from ginr_fast.viewer.server import Viewer  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs Chromium and its driver (chromium-driver)"
    ),
]

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root in a container
    "--disable-dev-shm-usage",
    "--use-gl=angle",  # WebGL without a GPU
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-back-forward-cache",  # a page that is left lets go of its connection
    "--window-size=720,520",
)
# Of viser's own page, when the wheel is turned.
KNOWN = "Unable to preventDefault inside passive event listener"
PATIENCE = 30.0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    saved = tmp_path_factory.mktemp("saved")
    options.add_experimental_option("prefs", {"download.default_directory": str(saved)})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.saved = saved  # type: ignore[attr-defined]
    yield driver
    driver.quit()
    torch.set_num_threads(threads)


def until(true: Callable[[], object], what: str) -> None:
    """Wait for something."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def canvas(browser: Any) -> Any:
    return browser.find_element("css selector", "canvas")


def seen(browser: Any) -> np.ndarray:
    """The pixels of the page's canvas, but for its corners, where notes appear."""
    pixels = np.asarray(Image.open(io.BytesIO(canvas(browser).screenshot_as_png)).convert("RGB"))
    height, width = pixels.shape[:2]
    return pixels[height // 3 :, width // 3 :].astype(int)


def changed(browser: Any, before: np.ndarray) -> bool:
    return float(np.abs(seen(browser) - before).mean()) > 1


def joined(browser: Any, viewer: Viewer) -> Any:
    """Open the page; the session that belongs to it, once its finest picture is there."""
    browser.get_log("browser")  # nothing of pages before
    browser.get(viewer.url)
    until(lambda: viewer.sessions, "a session")
    (session,) = viewer.sessions.values()
    until(lambda: session.frame is not None and session.frame.last, "a picture")  # type: ignore[attr-defined]
    until(lambda: seen(browser).std() > 3, "the picture in the page")
    return session


def drag(browser: Any, across: int, down: int) -> None:
    chain = ActionChains(browser).move_to_element(canvas(browser)).click_and_hold()
    for _ in range(2):
        chain = chain.move_by_offset(across // 2, down // 2)
    chain.release().perform()


def no_errors(browser: Any) -> None:
    logged = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [entry["message"] for entry in logged if KNOWN not in entry["message"]]


def test_an_image(browser: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LaGinr(MODEL)
    with torch.no_grad():  # untrained, everything would be one grey
        for parameter in model.decoder.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    export_weights(model, tmp_path / WEIGHTS_NAME, ViewConfig(kind="crops", held_out_views=4))
    subject = open_subject(tmp_path, Shown(), torch.device("cpu"))
    with Viewer(subject, port=0, finest=96) as viewer:
        session = joined(browser, viewer)
        assert isinstance(session, ImageSession)

        start, before = session.view(), seen(browser)
        drag(browser, 120, 60)  # the image comes along, the window goes the other way
        until(lambda: session.view().column < start.column - 0.1, "a window moved")
        assert session.view().row < start.row and session.view().height == pytest.approx(
            start.height
        )
        until(lambda: changed(browser, before), "another picture after the drag")

        before = seen(browser)
        chain = ActionChains(browser)
        for _ in range(4):
            chain.scroll_from_origin(ScrollOrigin.from_element(canvas(browser)), 0, -480)
        chain.perform()
        until(lambda: session.view().height < 0.6 * start.height, "a smaller window")
        until(lambda: changed(browser, before), "another picture after the zoom")
        assert session.panel.moving.value.split()[1] == "fps,"

        ActionChains(browser).move_to_element(canvas(browser)).click().perform()
        page = browser.find_element("tag name", "body")
        until(lambda: "Strongest tokens:" in page.text, "the tokens of a click")
        assert len(browser.find_elements("css selector", "img")) >= 2

        until(lambda: viewer.worker.idle(0) and session.frame.last, "the finest picture")  # type: ignore[union-attr]
        browser.find_element("xpath", "//button[contains(., 'Save picture')]").click()
        until(lambda: list(browser.saved.glob("*.png")), "a saved picture")
        (path,) = browser.saved.glob("*.png")
        assert path.name.startswith("la-ginr-00000-") and session.frame is not None
        assert np.array_equal(np.asarray(Image.open(path)), session.frame.pixels)
        no_errors(browser)
        browser.get("about:blank")  # or it would ask for the server again and again


def test_a_scene_and_a_client_that_leaves(browser: Any, tmp_path: Path) -> None:
    folder = export_mnif("scenes", tmp_path, "auto-decoding")
    subject = open_subject(folder, Shown(), torch.device("cpu"))
    with Viewer(subject, port=0, finest=64) as viewer:
        session = joined(browser, viewer)
        assert isinstance(session, SceneSession)
        start, before = session.view(), seen(browser)
        assert np.linalg.norm(start.position) == pytest.approx(1.3, abs=0.01)
        drag(browser, 160, 0)
        until(lambda: abs(session.view().position[0] - start.position[0]) > 0.1, "an orbit")
        assert np.linalg.norm(session.view().position) == pytest.approx(1.3, abs=0.01)
        until(lambda: changed(browser, before), "another picture after the drag")

        browser.switch_to.new_window("tab")
        browser.get(viewer.url)
        until(lambda: len(viewer.sessions) == 2, "a second client")
        newest = max(viewer.sessions)
        other: Any = viewer.sessions[newest]
        where = pytest.approx(start.position, abs=0.01)  # not where the first one went
        until(lambda: other.view().position == where, "a camera of its own")
        browser.close()
        browser.switch_to.window(browser.window_handles[0])
        until(lambda: newest not in viewer.sessions, "the client forgotten")
        assert viewer.worker.idle(PATIENCE)
        no_errors(browser)
        browser.get("about:blank")
