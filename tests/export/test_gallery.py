"""The gallery page, parsed as by a browser: content, completeness, and no injection through names."""

from __future__ import annotations

import base64
import functools
import hashlib
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from vitnp.errors import OutputError
from vitnp.export.gallery import GalleryWriter
from vitnp.export.gallery_page import set_decisions
from vitnp.export.photograph_record import PhotographRecord, RegionRecord
from vitnp.io.find import find_photographs
from vitnp.masks.palette import bright_colors

VOID = {"meta", "img", "input", "path"}
SCRIPT_NAME = "<script>alert(1)</script>.jpg"


class Page(html.parser.HTMLParser):
    """A page's elements, in order: tag, attributes, and all text within."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open = [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "within": list(self.open), "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, within=None, **attributes):
        return [
            element
            for element in self.elements
            if element["tag"] == tag
            and (within is None or within in element["within"])
            and all(element.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]

    def cards(self):
        return self.all("li")


def picture(height=120, width=160, seed=0):
    """Smooth colors, as in a photograph out of focus."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def labels(*discs, shape=(120, 160)):
    result = np.zeros(shape, np.uint8)
    i, j = np.mgrid[: shape[0], : shape[1]]
    for number, row, column, radius in discs:
        result[(i - row) ** 2 + (j - column) ** 2 < radius**2] = number
    return result


def record(name, rgb, labels, confidence):
    """A photograph with one region per class, whose numbers are those of the classes."""
    regions = tuple(RegionRecord(number, 1.0, 1.0, 0) for number in range(1, int(labels.max()) + 1))
    return PhotographRecord(name, confidence, regions, lambda: labels, lambda: rgb)


def write(path, photographs, classes=("class 1", "class 2", "class 3"), **options):
    with GalleryWriter(path, classes, **options) as gallery:
        for photograph in photographs:
            gallery.add(record(*photograph))
    return Page(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gallery.html"


def embedded(image):
    kind, data = re.fullmatch(r"data:image/(webp|jpeg);base64,([A-Za-z0-9+/=]+)", image["src"]).groups()
    return kind, Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def test_every_photograph_is_there_with_its_mask(path):
    two = labels((1, 40, 40, 25), (3, 80, 120, 20))
    page = write(
        path,
        [
            ("a.jpg", picture(), labels((1, 60, 80, 40)), 0.875),
            ("b/c.jpg", picture(seed=1), two, 0.25),
            ("nothing.jpg", picture(seed=2), labels(), 0.0),
        ],
        title="holidays",
    )
    assert [title["text"] for title in page.all("title") + page.all("h1")] == ["holidays"] * 2
    cards = page.cards()
    assert [card["data-k"] for card in cards] == ["1", "1 3", ""]
    assert [float(card["data-c"]) for card in cards] == [0.875, 0.25, 0.0]
    names = [page.all("span", card, class_="name")[0]["text"] for card in cards]
    assert names == ["a.jpg", "b/c.jpg", "nothing.jpg"]
    facts = [page.all("span", card, class_="facts")[0]["text"] for card in cards]
    assert facts == ["confidence 0.88class 1", "confidence 0.25class 1class 3", "confidence 0.00"]
    classes = [[path["class"] for path in page.all("path", card)] for card in cards]
    assert classes == [["halo", "k1"], ["halo", "halo", "k1", "k3"], []]
    assert page.all("span", id="count")[0]["text"] == "3 photographs"


def test_pictures_decode_to_the_photographs(path):
    rgb = picture(240, 320)
    page = write(path, [("a.jpg", rgb, labels(), 0.5)])
    (image,) = page.all("img")
    _, decoded = embedded(image)
    assert decoded.size == (267, 200) == (int(image["width"]), int(image["height"]))
    expected = np.asarray(Image.fromarray(rgb).resize((267, 200))).astype(int)
    assert np.abs(np.asarray(decoded.convert("RGB")).astype(int) - expected).mean() < 6


def test_outlines_lie_on_the_mask(path):
    # Labels twice as large as the photograph, which is the same picture.
    page = write(path, [("a.jpg", picture(120, 160), labels((2, 100, 200, 60), shape=(240, 320)), 0.5)])
    (card,) = page.cards()
    (svg,) = page.all("svg", card)
    _, _, width, height = map(int, (svg.get("viewbox") or svg["viewBox"]).split())
    (outline,) = page.all("path", card, class_="k2")
    steps = [int(number) for number in re.findall(r"-?\d+", outline["d"])]
    points = np.cumsum(np.reshape(steps, (-1, 2)), axis=0) / [width, height] * [320, 240]
    distances = np.hypot(points[:, 0] - 200.5, points[:, 1] - 100.5)
    assert np.abs(distances - 60).max() < 3
    assert len(points) > 30


@pytest.mark.parametrize(
    "name",
    [SCRIPT_NAME, '"><img src=x onerror=alert(1)>', "a & b <c>.jpg", "<!-- cards -->", "${title} $x", "ünï ☃.jpg"],
)
def test_names_are_shown_as_text_only(path, name):
    page = write(path, [(name, picture(), labels((1, 60, 80, 40)), 0.5)], classes=[name, name], title=name)
    assert len(page.all("script")) == 3 and len(page.all("img")) == 1
    assert not any(key.startswith("on") for element in page.elements for key in element)
    texts = [page.all("title")[0], page.all("h1")[0], *page.all("span", class_="name", within=page.cards()[0])]
    assert [element["text"] for element in texts] == [name] * 3
    assert SCRIPT_NAME not in page.source


def test_undecodable_and_invisible_characters_are_shown_as_escapes(path):
    name = b"caf\xe9\x1b.jpg\xe2\x80\xae".decode("utf-8", "surrogateescape")
    page = write(path, [(name, picture(), labels(), 0.5)], title=name)
    assert page.all("span", class_="name", within=page.cards()[0])[0]["text"] == r"caf\xe9\x1b.jpg\u202e"


def test_page_is_self_contained(path):
    page = write(path, [("a.jpg", picture(), labels((1, 60, 80, 40)), 0.5)])
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.source).replace("  // ", ""))
    assert "url(" not in page.source and "@import" not in page.source
    assert not page.all("link") and not page.all("iframe")
    assert all(element["src"].startswith("data:") for element in page.elements if "src" in element)
    assert not any("href" in element for element in page.elements)


def test_only_the_page_s_own_script_may_run(path):
    page = write(path, [("a.jpg", picture(), labels(), 0.5)])
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    script = page.all("script")[-1]["text"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_classes_have_their_colors(path):
    page = write(path, [("a.jpg", picture(), labels((1, 60, 80, 40)), 0.5)])
    colors = bright_colors()
    for number in (1, 2, 3):
        assert f"--c{number}:#{bytes(colors[number].tolist()).hex()};" in page.source
        assert f".k{number}{{--k:var(--c{number})}}" in page.source


def test_scripts_get_the_names_as_they_are(path):
    undecodable = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    names = [SCRIPT_NAME, "a\nb.jpg", undecodable]
    page = write(path, [(name, picture(), labels(), 0.5) for name in names], classes=["</script>"])
    run = json.loads(page.all("script", id="run")[0]["text"])
    assert run["classes"] == ["</script>"]
    assert run["photographs"] == [[1, SCRIPT_NAME], [2, "a\nb.jpg"], [3, "caf\\xe9.jpg", "Y2Fm6S5qcGc="]]
    assert json.loads(page.all("script", id="decisions")[0]["text"]) is None


def test_every_element_that_the_script_uses_exists(path):
    page = write(path, [])
    script = page.all("script")[-1]["text"]
    ids = {element["id"] for element in page.elements if "id" in element}
    wanted = set(re.findall(r'get\("(\w+)"\)', script))
    assert wanted and wanted <= ids
    for menu, table in (("order", "orders"), ("state", "states")):
        (select,) = page.all("select", id=menu)
        entries = re.search(rf"const {table} = {{(.*?)}};", script, re.DOTALL)[1]
        assert [option["value"] for option in page.all("option", select)]
        assert all(f" {option['value']}: (" in entries for option in page.all("option", select))


def test_links_lead_to_the_files(path):
    files = {"photograph": path.parent / "in" / "a #1 %.jpg", "mask": path.parent / "javascript:alert(1).png"}
    photograph = PhotographRecord(
        "a.jpg", 0.5, (), labels, picture, path=files["photograph"], outputs={"mask": files["mask"]}
    )
    with GalleryWriter(path, ["object"]) as gallery:
        gallery.add(photograph)
    page = Page(path)
    links = {link["text"]: link["href"] for link in page.all("a", page.cards()[0])}
    assert links == {"photograph": "in/a%20%231%20%25.jpg", "mask": "javascript%3Aalert%281%29.png"}


def test_failures_are_listed(path):
    failures = [{"photograph": SCRIPT_NAME, "error": f"{SCRIPT_NAME}: the file is empty"}]
    page = write(path, [], failures=lambda: failures)
    (listed,) = page.all("details", id="failures")
    assert [item["text"] for item in page.all("li", listed)] == [f"{SCRIPT_NAME}: the file is empty"]
    assert [name["text"] for name in page.all("bdi", listed)] == [SCRIPT_NAME]
    assert page.all("summary", listed)[0]["text"] == "1 photograph failed"


def with_preview(name, rgb):
    return PhotographRecord(
        name, 0.5, (), lambda: np.zeros(rgb.shape[:2], np.uint8), lambda: None, load_preview=lambda: rgb
    )


def test_previews_lie_beside_the_page_and_are_replaced_with_it(path):
    for count in (3, 2, 0):
        with GalleryWriter(path, ["object"]) as gallery:
            for number in range(count):
                gallery.add(with_preview(f"{number}.jpg", picture(400, 500, number)))
        found = sorted(file.name for file in path.with_suffix("").glob("*.jpg"))
        assert found == [f"{number:05}.jpg" for number in range(1, count + 1)]
        assert [card["data-p"] for card in Page(path).cards()] == [f"gallery/{name}" for name in found]
        for number, name in enumerate(found):
            with Image.open(path.with_suffix("") / name) as preview:
                difference = np.asarray(preview).astype(int) - picture(400, 500, number)
            assert np.abs(difference).mean() < 4
    assert list(path.parent.iterdir()) == [path]


def test_previews_are_no_photographs(path):
    with GalleryWriter(path, ["object"]) as gallery:
        gallery.add(with_preview("a.jpg", picture()))
    Image.fromarray(picture()).save(path.parent / "b.jpg")
    assert [photograph.path.name for photograph in find_photographs([path.parent])] == ["b.jpg"]


def test_an_unfinished_run_leaves_the_previews_that_were_there(path):
    with GalleryWriter(path, ["object"]) as gallery:
        gallery.add(with_preview("a.jpg", picture()))
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    with pytest.raises(KeyboardInterrupt), GalleryWriter(path, ["object"]) as gallery:
        gallery.add(with_preview("b.jpg", picture(seed=1)))
        raise KeyboardInterrupt
    assert {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()} == before


def test_a_folder_of_another_program_is_left_alone(path):
    path.with_suffix("").mkdir()
    (path.with_suffix("") / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="vitnp did not make it"):
        GalleryWriter(path, ["object"])


def test_decisions_of_a_page_can_be_exchanged(path):
    write(path, [("a.jpg", picture(), labels(), 0.5)])
    before = path.read_bytes()
    assert set_decisions(path, {"vitnp": "decisions", "names": ["</script>"]})
    assert json.loads(Page(path).all("script", id="decisions")[0]["text"])["names"] == ["</script>"]
    assert set_decisions(path, {}) and path.read_bytes() == before
    path.write_text("<html>of an older version</html>")
    assert not set_decisions(path, {}) and not set_decisions(path.with_name("missing.html"), {})


def test_bytes_stay_bounded_however_ragged_the_picture(path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (600, 800, 3), np.uint8)
    ragged = (rng.random((600, 800)) < 0.5).astype(np.uint8)
    write(path, [])
    bare = path.stat().st_size
    write(path, [(f"{k}.jpg", noise, ragged, 0.5) for k in range(5)])
    assert (path.stat().st_size - bare) / 5 < 16_000
    disc = labels((1, 150, 200, 120), shape=(300, 400))
    write(path, [(f"{k}.jpg", picture(300, 400, k), disc, 0.5) for k in range(5)])
    assert (path.stat().st_size - bare) / 5 < 12 * 1024


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (20, 9000)])
def test_extreme_shapes(path, shape):
    page = write(path, [("a.jpg", np.full((*shape, 3), 90, np.uint8), np.ones(shape, np.uint8), 1.0)])
    _, decoded = embedded(page.all("img")[0])
    assert max(decoded.size) <= 600 and min(decoded.size) >= 1
    assert 1 / 3 - 1e-3 <= float(page.cards()[0]["style"].removeprefix("--r:")) <= 3


@pytest.mark.parametrize(
    "total, limit, expected",
    [
        (3, 10, [0, 1, 2]),
        (10, 10, list(range(10))),
        (10, 5, [1, 3, 5, 7, 9]),
        (7, 3, [2, 4, 6]),
        (None, 2, [0, 1]),
    ],
)
def test_large_collections_show_an_even_choice(path, total, limit, expected):
    count, loaded = total or 5, []

    def load_thumbnail(number):
        loaded.append(number)
        return picture()

    with GalleryWriter(path, ["object"], total=total, limit=limit) as gallery:
        for number in range(count):
            thumbnail = functools.partial(load_thumbnail, number)
            gallery.add(PhotographRecord(f"{number}.jpg", 0.5, (), labels, thumbnail))
    page = Page(path)
    assert [int(page.all("span", card, class_="name")[0]["text"][:-4]) for card in page.cards()] == expected
    assert loaded == expected
    chosen = "" if len(expected) == count else f", chosen from {count}"
    assert page.all("span", id="count")[0]["text"] == f"{len(expected)} photographs{chosen}"


def test_a_photograph_that_is_gone_has_no_card(path):
    with GalleryWriter(path, ["object"]) as gallery:
        gallery.add(PhotographRecord("gone.jpg", 0.5, (), labels, lambda: None))
        gallery.add(record("there.jpg", picture(), labels(), 0.5))
    page = Page(path)
    assert [page.all("span", card, class_="name")[0]["text"] for card in page.cards()] == ["there.jpg"]


def test_one_photograph_is_singular(path):
    assert write(path, [("a.jpg", picture(), labels(), 0.5)]).all("span", id="count")[0]["text"] == "1 photograph"


def test_without_webp_it_is_jpeg(path, monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    kind, decoded = embedded(write(path, [("a.jpg", picture(), labels(), 0.5)]).all("img")[0])
    assert kind == "jpeg" and decoded.format == "JPEG"


def test_same_content_same_bytes(path):
    photographs = [("a.jpg", picture(), labels((1, 60, 80, 40)), 0.5)]
    write(path, photographs)
    before = path.read_bytes()
    write(path, photographs)
    assert path.read_bytes() == before


def test_unknown_classes_are_refused(path):
    with GalleryWriter(path, ["object"]) as gallery, pytest.raises(ValueError, match="from 1 to 1, got 2"):
        gallery.add(record("a.jpg", picture(), labels((2, 60, 80, 40)), 0.5))
    assert Page(path).cards() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_unfinished_run_leaves_what_was_there(path, error):
    path.write_text("before")
    with pytest.raises(error), GalleryWriter(path, ["object"]) as gallery:
        gallery.add(record("a.jpg", picture(), labels(), 0.5))
        raise error
    assert path.read_text() == "before" and list(path.parent.iterdir()) == [path]


def test_missing_folder_is_one_clear_message(tmp_path):
    with pytest.raises(OutputError, match="folder doesn't exist"):
        write(tmp_path / "missing" / "gallery.html", [])
