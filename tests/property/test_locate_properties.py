"""The locator against documents whose lines are known because the test wrote them."""

from __future__ import annotations

import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from tardisd.config.locate import locate

KEYS = st.sampled_from(
    ["a", "b", "c-1", "2024", "x_y", "a.b", "", "é", 'q"q', "sp ace", "#no", "[t]", "=", "back\\s"]
)
TEXTS = st.one_of(
    st.text(st.sampled_from(list("ab\"'\\#[]{}=,.\n\r\té ")), max_size=12),
    st.sampled_from(['"', 'a"', 'a""', '"""', "'", "b'", "b''", "\\", '\\"', "a\n'\n[b]\nc = 1"]),
)  # every character that means something elsewhere, and strings that end in quotes
SCALARS = st.one_of(
    TEXTS,
    st.integers(-(2**60), 2**60),
    st.booleans(),
    st.floats(allow_nan=False),
    st.datetimes(),
    st.dates(),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3),
        st.lists(st.dictionaries(KEYS, inner, max_size=2), min_size=1, max_size=3),
    ),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(KEYS, TREES, max_size=4)


class Author:
    """Writes a document down in any style TOML knows, and the line of everything in it."""

    def __init__(self, draw):
        self.draw = draw
        self.text = ""
        self.lines = {}

    def pick(self, *options):
        return self.draw(st.sampled_from(options))

    def note(self, path):
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def noise(self):
        self.text += self.pick("", "", "\n", "# [no] = \"table\" '''\n", "  \t", "\r\n")

    def key(self, key):
        bare = key != "" and all(it.isascii() and (it.isalnum() or it in "-_") for it in key)
        forms = [basic(key)]
        if bare:
            forms.append(key)
        if "'" not in key and "\n" not in key:
            forms.append(f"'{key}'")
        return self.pick(*forms)

    def dotted(self, keys):
        return self.pick(".", " . ", ".\t").join(self.key(key) for key in keys)

    def document(self, document):
        self.body((), (), document)
        self.noise()
        return self.text

    def body(self, path, names, table):
        """Write a table's pairs, then its tables with headers; names are the header's keys."""
        later = []
        for key, value in table.items():
            style = self.pick("pair", "dotted", "header")
            if (isinstance(value, dict) and style == "header") or (
                is_tables(value) and style != "pair"
            ):
                later.append((key, value))
            elif isinstance(value, dict) and value and style == "dotted":
                self.pairs_dotted(path, (key,), value)
            else:
                self.pair(path, (key,), value)
        for key, value in later:
            if isinstance(value, dict):
                self.table((*path, key), (*names, key), value)
                continue
            for index, element in enumerate(value):
                self.noise()
                self.note((*path, key))
                self.note((*path, key, index))
                self.text += f"[[{self.dotted((*names, key))}]]"
                self.newline()
                self.body((*path, key, index), (*names, key), element)

    def table(self, path, names, value):
        only_tables = value and all(isinstance(inner, dict) for inner in value.values())
        if only_tables and self.pick(True, False):  # left out: its tables' headers imply it
            for key, inner in value.items():
                self.table((*path, key), (*names, key), inner)
            return
        self.noise()
        for length in range(1, len(path) + 1):
            self.note(path[:length])
        self.text += f"[{self.pick('', ' ')}{self.dotted(names)}]"
        self.newline()
        self.body(path, names, value)

    def pairs_dotted(self, path, keys, table):
        for key, value in table.items():
            if isinstance(value, dict) and value and self.pick(True, False):
                self.pairs_dotted(path, (*keys, key), value)
            else:
                self.pair(path, (*keys, key), value)

    def pair(self, path, keys, value):
        self.noise()
        self.pair_here(path, keys, value)
        self.newline()

    def pair_here(self, path, keys, value):
        for length in range(1, len(keys) + 1):
            self.note((*path, *keys[:length]))
        self.text += self.dotted(keys) + self.pick("=", " = ", "\t=  ")
        self.value((*path, *keys), value)

    def newline(self):
        self.text += self.pick("\n", "  # ] } ' \"\n", "\r\n")

    def value(self, path, value):
        if isinstance(value, dict):
            self.text += "{ "
            for index, (key, inner) in enumerate(value.items()):
                self.text += ", " if index else ""
                self.pair_here(path, (key,), inner)
            self.text += " }"
        elif isinstance(value, list):
            self.text += "["
            for index, inner in enumerate(value):
                self.text += "," if index else ""
                self.text += self.pick("", " ", "\n", ' # , ] "\n')
                self.note((*path, index))
                self.value((*path, index), inner)
            self.text += self.pick("", "\n", " # end\n  ") + "]"
        elif isinstance(value, str):
            self.text += self.pick(*strings(value))
        elif isinstance(value, bool | int | float):
            self.text += str(value).lower()
        else:
            self.text += self.pick(value.isoformat(), value.isoformat().replace("T", " "))


def is_tables(value):
    return isinstance(value, list) and value != [] and all(isinstance(it, dict) for it in value)


def basic(text):
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def strings(text):
    """Return every way to write a text: basic, literal, and both over several lines."""
    forms = [basic(text)]
    if "\r" not in text:
        escaped = text.replace("\\", "\\\\").replace('"""', '""\\"')
        forms.append(f'"""\n{escaped}"""')
        if "'''" not in text:
            forms.append(f"'''\n{text}'''")
        if not set("'\n") & set(text):
            forms.append(f"'{text}'")
    return forms


def paths(value, path=()):
    """Return the path of everything in a parsed document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = set()
    for key, deeper in inner:
        found.add((*path, key))
        if isinstance(deeper, dict | list):
            found |= paths(deeper, (*path, key))
    return found


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.data())
def test_everything_is_found_where_it_was_written(document, data):
    author = Author(data.draw)
    source = author.document(document)
    parsed = tomllib.loads(source)
    found = locate(source)
    assert set(found) == paths(parsed)
    assert dict(found) == author.lines


@given(DOCUMENTS, st.data(), st.lists(st.one_of(KEYS, st.integers(0, 3)), max_size=4))
@settings(max_examples=50, deadline=None)
def test_nearest_is_the_longest_known_beginning(document, data, path):
    found = locate(Author(data.draw).document(document))
    known = [tuple(path[:n]) for n in range(len(path) + 1) if tuple(path[:n]) in found]
    assert found.nearest(tuple(path)) == (found[known[-1]] if known else 1)
