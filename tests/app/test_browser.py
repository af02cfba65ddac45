"""The page in a real browser: ask, see a box, draw one, click a span; four users at once."""

from __future__ import annotations

import gc
import io
import re
import shutil
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tpo_plugin.app import chat
from tpo_plugin.app.examples import examples_of
from tpo_plugin.asking import ask
from tpo_plugin.data import VideoOptions, prompt_record, read_sample
from tpo_plugin.serve.limits import Limits
from tpo_plugin.training.config import DataConfig, DataSource, TrainConfig

# Gradio leaves event loops and sockets to the collector, and calls what its own packages call old.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300, method="thread"),  # ends the process; an exception might get lost in the driver's loop
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:gradio"),
]
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs a browser: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which drives the browser")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("gradio", reason="needs gradio, whose pages the browser shows")

from tpo_plugin.app.page import application  # noqa: E402  (it needs what may be missing)

READING = DataConfig(video=VideoOptions(num_frames=4))
QUESTION = "where is the red circle?"
LONGEST = 8
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 120_000


class Served:
    """The page of the tiny model, and where its files lie."""

    def __init__(self, url: str, root: Path) -> None:
        self.url, self.root = url, root

    def folders(self) -> list[Path]:
        """Of the sessions."""
        return list(self.root.glob("*/tmp*"))


@pytest.fixture(scope="module")
def served(model: Any, media: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("uploads")
    config = TrainConfig(model="host", output_dir="run", data=READING)
    examples = examples_of([DataSource(file=str(media / "records.jsonl"))], model.tpo, config)
    listening = socket.create_server(("127.0.0.1", 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(root))
        patch.setenv("GRADIO_TEMP_DIR", "")  # so that what was there before comes back
        app = application(model, READING, "tiny", Limits(max_body_mb=1, max_new_tokens=LONGEST), examples)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", root)
        server.should_exit = True
        thread.join()
    assert not list(root.glob("tpo-app-*"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del app, server
        gc.collect()  # what Gradio left, before another test's collection finds it


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def visiting(chromium: Any, url: str) -> Iterator[Any]:
    """A user's page; it may ask for nothing outside of this machine."""
    context = chromium.new_context(viewport={"width": 1280, "height": 960})
    outside: list[str] = []
    context.on("request", lambda r: outside.append(r.url) if not r.url.startswith((url, "data:", "blob:")) else None)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    page.wait_for_selector("#prompt textarea")
    yield page
    context.close()
    assert outside == []


@pytest.fixture
def page(served: Served, chromium: Any) -> Iterator[Any]:
    with visiting(chromium, served.url) as page:
        yield page


def show(page: Any, file: Path) -> None:
    """Uploads a picture or video."""
    page.set_input_files("input[type=file] >> nth=0", str(file))
    page.wait_for_selector(".tpo-stage")
    page.wait_for_function(
        """() => {
            const shown = document.querySelector(".tpo-stage img, .tpo-stage video");
            return shown && (shown.tagName === "IMG" ? shown.complete && shown.naturalWidth : shown.readyState >= 2);
        }"""
    )


def question(page: Any, text: str, route: str | None = None) -> None:
    if route is not None:
        page.check(f"#route input[value={route}]")
    page.fill("#prompt textarea", text)
    page.press("#prompt textarea", "Enter")


def picture_of(page: Any, url: str, index: int = 0) -> np.ndarray:
    """The pixels of a figure, int [H, W, 3]."""
    page.locator(".tpo-figure img").nth(index).wait_for()
    source = page.locator(".tpo-figure img").nth(index).get_attribute("src")
    body = page.request.get(url + source).body()
    return np.asarray(Image.open(io.BytesIO(body))).astype(int)


def orange_box(pixels: np.ndarray) -> np.ndarray:
    """Around all that is of the colour of found boxes, (left, top, right, bottom) in 0 to 1."""
    rows, columns = np.nonzero(np.abs(pixels - (255, 140, 0)).max(-1) == 0)
    height, width = pixels.shape[:2]
    return np.array([columns.min() / width, rows.min() / height, columns.max() / width, rows.max() / height])


def expected(model: Any, text: str, route: str, **media: list[Path]) -> Any:
    """The answer that the model gives without the page."""
    sample = read_sample(prompt_record(model.tpo, text, **media), READING.video, READING.image)
    return ask(model, [sample], route=route, max_new_tokens=LONGEST)[0]


def test_ask_and_see_a_box(page: Any, served: Served, model: Any, media: Path) -> None:
    show(page, media / "0.png")
    question(page, QUESTION, "region")
    pixels = picture_of(page, served.url)
    answer = expected(model, QUESTION, "region", images=[media / "0.png"])
    assert pixels.shape == (480, 640, 3)
    value = answer.predictions[0].value.clamp(0, 1).numpy()
    assert np.abs(orange_box(pixels) - value).max() < 0.02
    assert answer.text in page.inner_text("#talk")
    assert (pixels.sum(-1) < 100).any()  # the label's ground
    shown = page.locator(".tpo-figure img").bounding_box()
    assert shown["width"] / shown["height"] == pytest.approx(640 / 480, rel=0.02)


def test_draw_a_box_and_ask_what_is_in_it(page: Any, media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[Any] = []
    real = chat.tasks_of

    def spy(tpo: Any, text: str, box: Any) -> list[Any]:
        found = real(tpo, text, box)
        tasks.extend(found)
        return found

    monkeypatch.setattr(chat, "tasks_of", spy)
    show(page, media / "0.png")
    assert page.is_disabled("#box-region")
    drag(page, (0.25, 0.3), (0.75, 0.8))
    page.wait_for_selector("#box-region:not([disabled])")
    page.click("#box-region")
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('<region>')")
    page.check("#route input[value=region]")
    page.press("#prompt textarea", "Enter")
    page.wait_for_selector(".tpo-figure img")
    (task,) = tasks
    assert task["head"] == "region"
    np.testing.assert_allclose(task["boxes"][0], [0.25, 0.3, 0.75, 0.8], atol=0.01)


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    place = page.locator(".tpo-stage").bounding_box()
    x, y = ([place["x"] + share[0] * place["width"], place["y"] + share[1] * place["height"]] for share in (start, end))
    page.mouse.move(*x)
    page.mouse.down()
    page.mouse.move((x[0] + y[0]) / 2, (x[1] + y[1]) / 2, steps=3)
    page.mouse.move(*y, steps=3)
    page.mouse.up()


def test_click_a_span_and_the_video_jumps_there(page: Any, model: Any, media: Path) -> None:
    show(page, media / "clip.mp4")
    question(page, "when does it leave?", "temporal")
    span = page.locator(".tpo-span").first
    span.wait_for()
    answer = expected(model, "when does it leave?", "temporal", videos=[media / "clip.mp4"])
    start_s = float(answer.predictions[0].value["spans_s"][0, 0])
    assert float(span.get_attribute("data-seek")) == pytest.approx(start_s, abs=1e-3)
    video = "document.querySelector('.tpo-figure video')"
    page.wait_for_function(f"{video}.readyState >= 2")
    now = page.locator(".tpo-figure .tpo-now")
    last = page.locator(".tpo-axis").first.bounding_box()
    page.mouse.click(last["x"] + 0.97 * last["width"], last["y"] + 0.98 * last["height"])  # the end of the axis
    page.wait_for_function(f"{video}.currentTime > 1.8")
    before = float(now.get_attribute("x1"))
    span.click()
    page.wait_for_function(f"Math.abs({video}.currentTime - {start_s}) < 0.01")
    page.wait_for_function(f"document.querySelector('.tpo-figure .tpo-now').getAttribute('x1') < {before}")
    assert page.evaluate(f"{video}.videoWidth") == 64


def test_follow_what_is_in_a_box_of_a_video(page: Any, media: Path) -> None:
    show(page, media / "clip.mp4")
    drag(page, (0.2, 0.2), (0.6, 0.6))
    page.wait_for_selector("#box-mask:not([disabled])")
    assert "A box is drawn, at 0.00 s" in page.inner_text("#hint")
    page.click("#box-mask")
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('<mask>')")
    page.check("#route input[value=mask]")
    page.press("#prompt textarea", "Enter")
    page.wait_for_function("[...document.querySelectorAll('.tpo-figure video')].some(v => v.videoWidth === 640)")


def test_a_head_that_cannot_draw_says_so(page: Any, media: Path) -> None:
    show(page, media / "0.png")
    question(page, QUESTION, "bare")
    page.wait_for_selector("#talk >> text=head 'bare' does not draw")


def test_text_is_shown_as_it_is(page: Any) -> None:
    question(page, "<img src=x onerror=\"document.title='broken'\"> <b>bold</b>", "bare")
    page.wait_for_selector("#talk >> text=there is no picture to draw on")
    assert "<b>bold</b>" in page.inner_text("#talk")
    assert page.locator("#talk .message img[src=x]").count() == 0
    assert page.title() != "broken"


def test_what_is_no_medium_or_too_large_is_refused(page: Any, served: Served, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    page.set_input_files("input[type=file] >> nth=0", str(tmp_path / "a.png"))
    page.wait_for_selector("text=is neither a video that can be read nor a picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)).save(tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size > 2**20
    page.set_input_files("input[type=file] >> nth=0", str(tmp_path / "b.png"))
    page.wait_for_selector("text=/exceeds|too large|maximum allowed/i")
    assert page.locator(".tpo-stage").count() == 0
    question(page, "what is <region>?")
    page.wait_for_selector("#talk >> text=Not answered: the question has <region>, which stands for a box; draw one")


def test_an_example_is_asked(page: Any) -> None:
    page.locator("#examples button.thumbnail-item, #examples .thumbnail-lg").nth(1).click()
    page.wait_for_selector(".tpo-stage .tpo-drawn")
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('<region>')")
    page.check("#route input[value=region]")
    page.press("#prompt textarea", "Enter")
    page.wait_for_selector(".tpo-figure img")


def test_four_users_at_once_get_their_own_answers(served: Served, chromium: Any, model: Any, media: Path) -> None:
    users = [chromium.new_context() for _ in range(4)]
    pages = [user.new_page() for user in users]
    for number, page in enumerate(pages):
        page.set_default_timeout(PATIENCE_MS)
        page.goto(served.url)
        page.wait_for_selector("#prompt textarea")
        show(page, media / f"{number}.png")
        page.check("#route input[value=region]")
        page.fill("#prompt textarea", QUESTION)
    for page in pages:
        page.press("#prompt textarea", "Enter")
    boxes = [orange_box(picture_of(page, served.url)) for page in pages]
    answers = [expected(model, QUESTION, "region", images=[media / f"{number}.png"]) for number in range(4)]
    values = [answer.predictions[0].value.clamp(0, 1).numpy() for answer in answers]
    for box, value in zip(boxes, values, strict=True):
        assert np.abs(box - value).max() < 0.02
    assert len(served.folders()) >= 4
    mine = {re.search(r"file=(.*)/answer", page.locator(".tpo-figure img").get_attribute("src"))[1] for page in pages}  # type: ignore[index]
    assert len(mine) == 4
    assert all(Path(folder).is_dir() for folder in mine)
    for user in users:
        user.close()
    with visiting(chromium, served.url) as page:  # the files of those who left are removed
        for _ in range(600):
            if not any(Path(folder).exists() for folder in mine):
                break
            page.wait_for_timeout(100)
    assert not any(Path(folder).exists() for folder in mine)
