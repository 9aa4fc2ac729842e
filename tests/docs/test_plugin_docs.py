"""The plugins shown in docs/plugins.md work as they stand there."""

from __future__ import annotations

import importlib
import io
import re
from pathlib import Path

import contract_page

import tardisd
from tardisd.plugins.hooks import GROUP
from tardisd.plugins.registry import Registry
from tardisd.testing.memory import MemoryStorage
from tardisd.transfer.importing import import_files

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "plugins.md").read_text()
SMALLEST, SINK = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def drop_in(folder, name, code):
    folder.chmod(0o755)
    path = folder / f"{name}.py"
    path.write_text(code)
    path.chmod(0o644)
    registry = Registry.discover([folder])
    [record] = [record for record in registry.plugins if record.origin == str(path)]
    assert (record.state, record.reason) == ("loaded", "")
    return registry, record


def test_the_first_page_is_a_file_of_five_lines():
    assert TEXT.index(SMALLEST) < 150
    assert len([line for line in SMALLEST.splitlines() if line]) == 5


async def test_the_smallest_plugin_imports_its_files(tmp_path):
    registry, _ = drop_in(tmp_path, "acme", SMALLEST)
    raw = b"acme_time,px,qty,taker\n1709251200000,61130.98,0.00213000,buy\n"
    series, storage = tardisd.Series.parse("acme:BTC/USDT@trade"), MemoryStorage()
    result = await import_files(
        [("any.csv", io.BytesIO(raw))],
        series,
        storage,
        registry.formats(),
        covers=None,
        spool_dir=tmp_path,
        progress=lambda _: None,
    )
    assert result.added == 1
    found = await storage.last_before(series, 2**62)
    assert found.fields["price"].texts() == ["61130.98"]


def test_the_smallest_plugin_recognises_its_files(tmp_path):
    registry, record = drop_in(tmp_path, "acme", SMALLEST)
    assert (record.kind, record.name) == ("format", "acme")
    [acme] = [form for form in registry.formats() if form.name == "acme"]
    cells = [["acme_time", "px", "qty", "taker"], ["1709251200000", "1.5", "2", "buy"]]
    layout = acme.match(tardisd.Sample("any.csv", cells), "trade")
    assert layout == tardisd.Layout(("time", "price", "amount", "side"), header=True)
    assert acme.match(tardisd.Sample("any.csv", cells[1:]), "trade") is None


async def test_the_sink_writes_what_it_is_given(tmp_path):
    registry, record = drop_in(tmp_path, "tape", SINK)
    assert (record.kind, record.name) == ("sink", "tape")

    class OneBlock:
        def encode(self, form):
            assert form == "ndjson"
            return self

        def bytes(self):
            return memoryview(b'{"seq":1}\n')

    plugin = registry.get("sink", "tape")
    context = tardisd.Context("tape", tmp_path, None)
    tape = plugin(plugin.Options(path="x.ndjson"), context)
    async with tape.run(), tape.open(None) as writer:
        assert tape.forms == ("ndjson",)
        await writer.write(OneBlock())
        await writer.write(OneBlock())
    assert (tmp_path / "x.ndjson").read_text() == '{"seq":1}\n' * 2


def test_the_page_of_the_contract_is_up_to_date():
    told = "run `python tests/docs/contract_page.py`, and see whether CONTRACT_VERSION must grow"
    assert contract_page.PAGE.read_text() == contract_page.page(), told


def test_everything_of_the_contract_is_on_the_page():
    """Whatever the page is made of: no public class of the contracts, and no method, is missing."""
    text = contract_page.PAGE.read_text()
    homes = ("analyzer", "base", "exchange", "format", "host", "sessions", "sink", "storage")
    for home in homes:
        module = importlib.import_module(f"tardisd.plugins.{home}")
        for name, cls in vars(module).items():
            mine = isinstance(cls, type) and cls.__module__ == module.__name__
            if not mine or name.startswith("_") or name == "Alone":
                continue
            assert f"### {name}\n" in text, f"{name} is missing: add it to PARTS"
            section = text.split(f"### {name}\n")[1].split("\n## ")[0].split("\n### ")[0]
            for member, value in vars(cls).items():
                if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                    assert f"{member}(" in section or f"`{member}:" in section, (name, member)
                    assert value.__doc__, f"{name}.{member} says nothing"


def test_every_hook_and_name_is_mentioned():
    from tardisd.plugins import hooks

    named = {name for name in vars(hooks) if name.startswith(f"{GROUP}_")}
    vocabulary = {name for name in tardisd.__all__ if not name.startswith("_")}
    missing = [name for name in sorted(named | vocabulary) if f"`{name}`" not in TEXT]
    assert missing == []
