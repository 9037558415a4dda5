"""The gallery in headless Chromium, by clicks and keys, opened from disk as a person opens it.

Needs Debian's packages chromium and chromium-driver, or another Chromium with its driver on PATH, and selenium.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
import unicodedata

import numpy as np
import pytest
from PIL import Image
from scenes import scene

from vitnp.export.apply import apply_decisions
from vitnp.export.collection_outputs import CollectionInfo, outputs_of
from vitnp.export.gallery import GalleryWriter
from vitnp.export.photograph_record import PhotographRecord, RegionRecord, read_preview, read_thumbnail
from vitnp.export.results_file import Results
from vitnp.io.path_text import printable

pytestmark = [pytest.mark.browser, pytest.mark.slow(reason="runs a browser")]

FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
         "disable-component-update", "disable-sync")  # fmt: skip
CLASSES = ["class 1", "class 2", "class 3"]
HOSTILE = [
    "<script>alert(1)</script>.jpg",
    "\"'><img src=x onerror=alert(1)>.jpg",
    "</script><script>alert(2)</script>.jpg",
    "a & b &lt; ${c} <!-- cards -->.jpg",
    "\u202egpj.exe \u2067\u05d0\u05d1.jpg",
    "\u0645\u0631\u062d\u0628\u0627.jpg",
    "\U0001f388\U0001f468\u200d\U0001f469\u200d\U0001f467.jpg",
    "two\nlines\tand\x1b[31m.jpg",
    os.fsdecode(b"caf\xe9.jpg"),
    unicodedata.normalize("NFD", "Stra\u00dfe in K\u00f6ln.jpg"),
    "#100%?.jpg",
    "__proto__.jpg",
]
NAMES = HOSTILE + [f"photograph {number}.jpg" for number in range(13, 21)]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Return a function that starts a browser with a profile and a download folder of its own."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    started = []

    def browser(width=1280, height=800, **features):
        options = selenium.ChromeOptions()
        options.binary_location = chromium
        profile = tmp_path_factory.mktemp("profile")
        for flag in (*FLAGS, f"user-data-dir={profile}", f"window-size={width},{height}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if features.pop("touch", False):
            metrics = {"width": width, "height": height, "pixelRatio": 2.0, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.add_experimental_option("prefs", {"download.default_directory": str(profile / "downloads")})
        found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
        found.downloads = profile / "downloads"
        started.append(found)
        return found

    yield browser
    for found in started:
        found.quit()


@pytest.fixture(scope="module")
def desktop(start):
    return start()


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Write what a run over twenty photographs leaves; tests only read it."""
    folder = tmp_path_factory.mktemp("run") / "out"
    folder.mkdir()
    failures = [{"photograph": "broken.jpg", "error": f"{HOSTILE[0]}: the file is empty (0 bytes)"}]
    info = CollectionInfo(len(NAMES), len(CLASSES), has_classes=True, failures=lambda: failures)
    writers = [output.create(folder / output.name, info) for output in outputs_of(has_classes=True)]
    for writer in writers:
        writer.__enter__()
    for index, name in enumerate(NAMES):
        path = folder.parent / "in" / str(index) / name  # a folder each, so that a slash could do no harm
        path.parent.mkdir(parents=True)
        rgb, labels = scene(index, (1600, 1200) if index == 1 else (320, 240))
        Image.fromarray(rgb).save(path.with_name("x.jpg"))
        path.with_name("x.jpg").rename(path)
        photograph = PhotographRecord(
            name,
            0.5 + index / 50,
            (RegionRecord(index % 3 + 1, 0.7, 0.6, 5),),
            lambda labels=labels: (labels > 0).astype(np.uint8),
            functools.partial(read_thumbnail, path),
            path,
            load_preview=functools.partial(read_preview, path),
        )
        for writer in writers:
            writer.add(photograph)
    for writer in writers:
        writer.__exit__(None, None, None)
    return folder


class Gallery:
    """A person at the page."""

    def __init__(self, browser, path, *, fresh=True):
        self.browser = browser
        browser.get(path.absolute().as_uri())
        if fresh:
            self.run("localStorage.clear()")
            browser.refresh()
        browser.get_log("browser")

    def run(self, script, *arguments):
        return self.browser.execute_script(f"return {script}", *arguments)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def texts(self, selector):
        return self.run("Array.from(document.querySelectorAll(arguments[0]), (e) => e.textContent)", selector)

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def choose(self, selector, label):
        from selenium.webdriver.support.select import Select

        Select(self.find(selector)).select_by_visible_text(label)
        self.run("document.activeElement.blur()")  # the driver focuses the menu after it has told of the change

    def names(self):
        return self.texts(".card .name")

    def marks(self):
        """Marks of the photographs that are shown, None for photographs that were not looked at."""
        return self.run("Array.from(document.querySelectorAll('.card'), (e) => e.dataset.mark || null)")

    def kept(self):
        """The decisions that the browser keeps, without their time."""
        record = json.loads(self.run("localStorage.getItem(Object.keys(localStorage)[0])"))
        return {key: record[key] for key in ("classes", "photographs")}

    def download(self):
        """Press the button and return the file."""
        self.find("#save").click()
        path = self.browser.downloads / "decisions.json"
        for _ in range(100):
            if path.exists():
                break
            time.sleep(0.05)
        return path.rename(path.with_name(f"{len(list(path.parent.iterdir()))}.json"))

    def errors(self):
        """What the browser complains about, such as a violation of the content security policy."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def gallery(desktop, out):
    gallery = Gallery(desktop, out / "gallery.html")
    gallery.choose("#order", "least confident first")  # the order of the run
    yield gallery
    assert gallery.errors() == []


def test_hostile_names_are_text(gallery):
    assert gallery.names() == [printable(name) for name in NAMES]
    assert gallery.run("document.scripts.length") == 3
    assert gallery.texts("#failures li") == [f"{HOSTILE[0]}: the file is empty (0 bytes)"]
    for name in HOSTILE:
        gallery.run("document.querySelectorAll('.card button')[arguments[0]].click()", NAMES.index(name))
        assert gallery.find("#large .name").text.split() == printable(name).split()
        gallery.press("\ue00c")
        assert not gallery.run("document.getElementById('large').open")


def test_looking_through_by_keys(gallery, out):
    gallery.find("#begin").click()
    gallery.press("j", "x", "j", "0", "j", "3", "j", "j", "k", "x", "u", "m")
    assert gallery.marks()[:7] == ["checked", "wrong", "empty", "moved", "checked", None, None]
    assert gallery.run("document.body.className") == "bare"
    assert gallery.find("#large .name").text == printable(NAMES[4])
    gallery.press("u", "u")
    assert gallery.marks()[:5] == ["checked", "wrong", None, None, "checked"]
    gallery.press("U", "U", "\ue00c")
    assert gallery.marks()[:5] == ["checked", "wrong", "empty", "moved", "checked"]
    assert gallery.find("#count").text == "20 photographs, 5 checked"
    assert gallery.find("#progress").get_attribute("aria-valuenow") == "5"
    record = json.loads(gallery.download().read_text())
    assert [(entry["id"], entry["decision"]) for entry in record["photographs"]] == [
        (1, "checked"), (2, "wrong"), (3, "empty"), (4, "class"), (5, "checked")]  # fmt: skip
    assert record["photographs"][3]["class"] == 3
    gallery.choose("#state", "wrong masks")
    assert gallery.names() == [printable(NAMES[1])]


def test_marks_without_enlarging(gallery):
    gallery.press("j", "x", "j", "0", "j", "x", "x")
    assert gallery.marks()[:4] == ["wrong", "empty", "checked", None]
    gallery.press("u", "u", "u", "u")
    assert gallery.marks()[:4] == [None] * 4
    gallery.press("u")
    assert gallery.kept() == {"classes": [], "photographs": []}


def test_classes_are_named_merged_and_parted_by_clicks(gallery):
    def chips():
        return gallery.texts("#chips bdi")

    gallery.find("#chips [data-k='1']").click()
    assert len(gallery.names()) == 7
    gallery.find("#naming").click()
    gallery.press(*"<b>balloon</b>\ue007")
    assert chips() == ["<b>balloon</b>", "class 2", "class 3"]
    assert set(gallery.texts(".card .classes")) == {"<b>balloon</b>"}
    gallery.choose("#merge", "class 3")
    assert chips() == ["class 2", "class 3"] and len(gallery.names()) == 13
    assert gallery.run("getComputedStyle(document.querySelector('.card path.k1')).stroke") == gallery.run(
        "getComputedStyle(document.querySelector('.card path.k3')).stroke"
    )
    assert gallery.kept()["classes"] == [{"id": 1, "name": "<b>balloon</b>"}, {"id": 1, "into": 3}]
    gallery.find("#part").click()
    assert chips() == ["<b>balloon</b>", "class 2", "class 3"]
    gallery.find("#undo").click()
    assert chips() == ["class 2", "class 3"]
    gallery.find("#naming").click()
    gallery.press(*"class 2\ue007")  # a name that another class has merges the two
    assert chips() == ["class 2"] and len(gallery.names()) == 20


def test_decisions_stay_in_the_browser_and_come_back_from_a_file(gallery, out, start):
    gallery.press("j", "x", "j", "2")
    gallery.find("#chips [data-k='3']").click()
    gallery.find("#naming").click()
    gallery.press(*"\u732b \U0001f408\ue007")
    kept, file = gallery.kept(), gallery.download()
    assert kept["classes"] == [{"id": 3, "name": "\u732b \U0001f408"}] and len(kept["photographs"]) == 2
    again = Gallery(gallery.browser, out / "gallery.html", fresh=False)
    assert again.kept() == kept and "\u732b \U0001f408" in again.texts("#chips bdi")
    elsewhere = Gallery(start(), out / "gallery.html")
    elsewhere.find("#file").send_keys(str(file))
    elsewhere.press("?", "\ue00c")
    assert elsewhere.kept() == kept and elsewhere.marks().count("wrong") == 1
    broken = file.with_name("broken.json")
    broken.write_text(json.dumps({**json.loads(file.read_text()), "run": "another"}))
    elsewhere.find("#file").send_keys(str(broken))
    elsewhere.press("?", "\ue00c")
    assert elsewhere.find("#note").text == "Not loaded: these decisions are about another run."
    assert elsewhere.kept() == kept
    elsewhere.find("#undo").click()
    assert elsewhere.kept() == {"classes": [], "photographs": []}


def test_what_the_page_saves_can_be_applied_and_is_where_the_page_begins(gallery, out, tmp_path, start):
    for _ in HOSTILE:
        gallery.press("j", "x")
    gallery.find("#chips [data-k='1']").click()
    gallery.choose("#merge", "class 2")
    copy = tmp_path / "copy"
    shutil.copytree(out.parent, copy)
    applied = apply_decisions(gallery.download(), copy / "out")
    assert applied.wrong == len(HOSTILE) and applied.names == ("class 2", "class 3")
    assert [photograph.name for photograph in Results.read(copy / "out").photographs()] == NAMES[len(HOSTILE) :]
    elsewhere = Gallery(start(), copy / "out" / "gallery.html", fresh=False)
    assert elsewhere.marks().count("wrong") == len(HOSTILE) and elsewhere.texts("#chips bdi") == ["class 2", "class 3"]


def test_previews_load_when_they_are_needed(gallery):
    pictures = "Array.from(document.images, (e) => e.src).filter((source) => !source.startsWith('data:'))"
    assert gallery.run(pictures) == []
    gallery.run("document.querySelectorAll('.card button')[1].click()")
    for _ in range(100):
        if gallery.run("document.querySelector('#large img').naturalWidth") == 1280:
            break
        time.sleep(0.05)
    assert gallery.run("document.querySelector('#large img').naturalHeight") == 960
    assert gallery.run(pictures)[0].endswith("/gallery/00002.jpg") and len(gallery.run(pictures)) == 1
    assert gallery.run("new URL(document.querySelector('#large .files a').href).pathname").endswith(".jpg")


def test_links_open_the_photograph(gallery):
    for index, name in enumerate(HOSTILE):
        gallery.run("document.querySelectorAll('.card button')[arguments[0]].click()", index)
        link = gallery.find("#large .files a").get_attribute("href")
        gallery.press("\ue00c")
        gallery.run("window.open(arguments[0])", link)
        gallery.browser.switch_to.window(gallery.browser.window_handles[-1])
        try:
            assert gallery.run("document.images[0].naturalWidth") in (320, 1600), name
        finally:
            gallery.browser.close()
            gallery.browser.switch_to.window(gallery.browser.window_handles[0])


@pytest.mark.parametrize("typed", ["STRASSE IN KO\u0308LN", "stra\u00dfe in k\u00f6ln", "strasse in koln"])
def test_search_finds_names_in_any_form(gallery, typed):
    gallery.run("(document.getElementById('search').value = arguments[0], 0)", typed)
    gallery.find("#search").send_keys(".")
    assert gallery.names() == [NAMES[9]]


def test_two_thousand_photographs(desktop, tmp_path):
    rgb, labels = scene(0, (160, 120))
    with GalleryWriter(tmp_path / "gallery.html", [f"class {k}" for k in range(1, 31)], total=2000) as writer:
        for index in range(2000):
            regions = (RegionRecord(index % 30 + 1, 0.5, 0.5, 1),)
            region_map = (labels > 0).astype(np.uint8)
            name = f"{index:04}" + HOSTILE[index % len(HOSTILE)]
            writer.add(PhotographRecord(name, 0.5, regions, lambda region_map=region_map: region_map, lambda: rgb))
    gallery = Gallery(desktop, tmp_path / "gallery.html")
    assert len(gallery.names()) == 2000
    gallery.press("j", "2", "9", "j", "x")
    assert gallery.kept()["photographs"][0] == {
        "id": 1, "name": "0000" + HOSTILE[0], "decision": "class", "class": 29}  # fmt: skip
    gallery.find("#chips [data-k='7']").click()
    assert len(gallery.names()) == 67
    gallery.choose("#merge", "class 8")
    assert len(gallery.names()) == 134
    gallery.find("#chips [data-k='8']").click()
    gallery.find("#search").send_keys("KOLN")
    assert len(gallery.names()) == sum(index % len(HOSTILE) == 9 for index in range(2000))
    gallery.find("#begin").click()
    gallery.press(*"jjjj")
    assert gallery.find("#large .facts").text.startswith("5 of 166")
    gallery.press("\ue00c")
    assert gallery.find("#count").text == "166 of 2,000 photographs, 6 checked"
    assert gallery.errors() == []


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_phone(start, out, width):
    gallery = Gallery(start(width, 740, touch=True), out / "gallery.html")
    gallery.find("#chips [data-k='1']").click()

    def check():
        assert gallery.run("document.documentElement.scrollWidth") <= width
        small = gallery.run(
            "Array.from(document.querySelectorAll('button, select, .files a, input[type=search], input[type=text]'))"
            ".filter((e) => e.checkVisibility()).map((e) => [e.id || e.textContent, e.getBoundingClientRect()])"
            ".filter(([, box]) => box.height < 40 || box.width < 40 || box.right > innerWidth + 1)"
            ".map(([name]) => name)"
        )
        assert [name for name in small if not name.startswith("class ")] == []  # the classes scroll

    check()
    gallery.run("document.querySelector('.card button').click()")
    check()
    box = gallery.run("document.querySelector('.stage').getBoundingClientRect().height")
    assert box > 250
    gallery.run(
        "['touchstart', 'touchend'].forEach((kind, index) => {"
        "const target = document.querySelector('.stage');"
        "const touch = new Touch({ identifier: 1, target, clientX: 300 - 200 * index });"
        "touch.target.dispatchEvent(new TouchEvent(kind,"
        " { bubbles: true, touches: index ? [] : [touch], changedTouches: [touch] })); })"
    )
    assert gallery.find("#large .facts").text.startswith("2 of 7")
    gallery.find("[data-act=wrong]").click()
    assert gallery.kept()["photographs"][1]["decision"] == "wrong"
    assert gallery.errors() == []


def test_the_button_tells_whether_there_is_something_to_save(gallery, out):
    def calls():
        return gallery.run("document.getElementById('save').className") == "primary"

    assert not calls()
    gallery.press("j", "x")
    assert calls()
    gallery.download()
    assert not calls()
    gallery.press("u")
    assert calls()
