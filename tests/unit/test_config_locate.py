"""Lines in TOML source that the property test does not write."""

from __future__ import annotations

import pytest

from tardisd.config.locate import locate


@pytest.mark.parametrize(
    ("source", "path", "line"),
    [
        ("[a.b]\n[a]\nc = 1", ("a",), 2),  # the header wins over what was only on the way
        ("[a]\nb.c = 1\nb.d = 2", ("a", "b"), 2),
        ("[[a]]\n[a.b]\n[[a]]\n[a.b]\nc=1", ("a", 1, "b", "c"), 5),
        ("[[a.b]]\n[[a.b]]\n[[a.b.c]]\nd = 1", ("a", "b", 1, "c", 0, "d"), 4),
        ("a = [\n  { b = 1 },\n  { b = [\n 7 ] } ]", ("a", 1, "b", 0), 4),
        ('a = """\nb = 1\n"""\nc = 2', ("c",), 4),
        ("a = 1979-05-27 07:32:00 # x = 1\nb = 1", ("b",), 2),
        (" \"a\" . 'b' = 1", ("a", "b"), 1),
        ("a = 1", ("a", "missing", 3), 1),
        ("", ("x",), 1),
    ],
)
def test_line(source, path, line):
    assert locate(source).nearest(path) == line
