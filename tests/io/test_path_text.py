"""File names in text and JSON: valid, visible, and exact."""

from __future__ import annotations

import base64
import json
import os
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitnp.io.path_text import ascii_json, drawable, path_entries, printable, valid_unicode

anything = st.text(st.characters(exclude_categories=()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name-1.jpg", "plain name-1.jpg"),
        ("猫 ž 👩\u200d👧", "猫 ž 👩\u200d👧"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("caf\udce9 \ud83d", r"caf\xe9 \ud83d"),
    ],
)
def test_what_terminals_obey_or_hide_is_visible(text, shown):
    assert printable(text) == shown


@settings(derandomize=True, deadline=None, max_examples=100)
@given(anything)
def test_printable_text_is_one_line_that_utf8_encodes(text):
    shown = printable(text)
    shown.encode("utf-8")
    assert not {"Cc", "Cs", "Zl", "Zp"} & set(map(unicodedata.category, shown)) and printable(shown) == shown


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.text() | st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3))
def test_json_is_ascii_and_exact(value):
    text = ascii_json([value])
    assert text.isascii() and text.isprintable() and json.loads(text) == [value]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.dictionaries(anything, anything, max_size=3))
def test_json_never_has_lone_surrogates(value):
    text = ascii_json(value)
    assert text.isascii()
    json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("caf\udce9", r"caf\xe9"),
        ("\ud83d", r"\ud83d"),
        (r"\ud83d", r"\ud83d"),
        ("\\\udce9", r"\\xe9"),
        ("\udce9\ud83d\ude00", "\\xe9\U0001f600"),
    ],
)
def test_surrogates_in_json(text, read):
    assert json.loads(ascii_json(text)) == read
    assert valid_unicode(read) == read


@pytest.mark.skipif(sys.platform == "win32", reason="bytes as POSIX has them")
@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.binary(max_size=20))
def test_paths_keep_their_bytes(name):
    path = os.fsdecode(name)
    entries = json.loads(ascii_json(path_entries("photograph", path)))
    exact = base64.b64decode(entries["photograph_bytes"]) if len(entries) == 2 else entries["photograph"].encode()
    assert exact == name


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Grüße.jpg", "Grusse.jpg"),
        ("İstanbul é ﬁ", "Istanbul e fi"),
        ("東京 · …", "?? · …"),
        ("“Ö”™ é", "“O”™ e"),
        ("a\nb", r"a\nb"),
        ("", ""),
    ],
)
def test_drawable_text_has_only_letters_of_the_font(text, expected):
    from PIL import ImageFont

    assert drawable(text) == expected
    font = ImageFont.load_default(15)
    missing = bytes(font.getmask("東"))
    assert not [letter for letter in drawable(text).replace(" ", "") if bytes(font.getmask(letter)) == missing]
