"""The house rules that can be read off the source: layers, sizes, names, forbidden words."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
MAX_MEDIAN = 200

# A module belongs to the longest prefix; it imports from its own layer and those below.
LAYERS = [
    {"tardisd.testing"},
    {"tardisd.cli", "tardisd.__main__"},
    {"tardisd.daemon", "tardisd.control", "tardisd.instances", "tardisd.reload"},
    {"tardisd.replay", "tardisd.backfill", "tardisd.transfer", "tardisd.state"},
    {
        "tardisd.wire",
        "tardisd.supervise",
        "tardisd.metrics",
        "tardisd.log",
        "tardisd.systemd",
        "tardisd.watch",
        "tardisd.overdue",
        "tardisd.venue",
        "tardisd.dumps",
    },
    # Budgets stand this low because the contract of plugins hands them out.
    {"tardisd.config", "tardisd.plugins", "tardisd.venue.budget", "tardisd.venue.book"},
    {
        "tardisd.market",
        "tardisd.errors",
        "tardisd.progress",
        "tardisd.wall",
        "tardisd.allocator",
        "tardisd",
    },
]
HEIGHT = {prefix: -depth for depth, layer in enumerate(LAYERS) for prefix in layer}
PUBLIC_TO_PLUGINS = -4  # wire, supervise and everything below
CATCHES_EVERYTHING = {"tardisd.supervise", "tardisd.plugins.registry"}


def module_name(path: Path) -> str:
    """Return the import name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "plugins" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path for top in ("tardisd", "plugins") for path in (ROOT / top).rglob("*.py")
}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}
every_module = pytest.mark.parametrize("name", sorted(SOURCES))


def imports(name: str) -> Iterator[str]:
    """Return every module that a module imports, wherever in it; `from a import b` may name a.b."""
    package = name if SOURCES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in SOURCES else base


def height(module: str) -> int:
    """Return how high a module of the core stands; a new top-level one must be given a layer."""
    prefix = module
    while prefix:
        if prefix in HEIGHT and (prefix != "tardisd" or module == "tardisd"):
            return HEIGHT[prefix]
        prefix = prefix.rpartition(".")[0]
    raise AssertionError(f"{module} has no layer: add it to LAYERS")


def is_core(module: str) -> bool:
    """Tell whether a module is the core's."""
    return f"{module}.".startswith("tardisd.")


def is_plugin(module: str) -> bool:
    """Tell whether a module is a first-party plugin's."""
    return module.startswith("tardisd_")


@every_module
def test_imports_point_downward(name):
    if is_core(name):
        own = height(name)
        assert [
            module for module in imports(name) if is_core(module) and height(module) > own
        ] == []


@every_module
def test_the_core_knows_no_plugin(name):
    if is_core(name):
        assert [module for module in imports(name) if is_plugin(module)] == []


@every_module
def test_plugins_use_what_any_plugin_may(name):
    if is_plugin(name):
        ours = name.split(".")[0]
        own = [m for m in imports(name) if is_plugin(m) and m.split(".")[0] != ours]
        deep = [m for m in imports(name) if is_core(m) and height(m) > PUBLIC_TO_PLUGINS]
        private = [m for m in imports(name) if is_core(m) and "._" in m]
        assert own + deep + private == []


@every_module
def test_trio_alone(name):
    assert "asyncio" not in {module.split(".")[0] for module in imports(name)}


@every_module
def test_one_module_reads_the_wall_clock(name):
    clocks = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}
    read = [
        f"{name}:{node.lineno}"
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (node.value.id, node.attr) in clocks
    ]
    assert name == "tardisd.wall" or read == []


@every_module
def test_modules_are_short(name):
    assert len(SOURCES[name].read_text().splitlines()) <= MAX_LINES


def test_most_modules_are_shorter():
    lengths = [len(path.read_text().splitlines()) for path in SOURCES.values()]
    assert statistics.median(length for length in lengths if length > 1) <= MAX_MEDIAN


@every_module
def test_few_catch_everything(name):
    if name in CATCHES_EVERYTHING:
        return
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = {part.id for part in ast.walk(node.type or node) if isinstance(part, ast.Name)}
        where = f"{name}:{node.lineno}"
        assert node.type is not None, f"{where}: bare except"
        assert "Exception" not in caught, f"{where}: except Exception"
        if "BaseException" in caught:  # cleaning up and passing it on is fine
            last = node.body[-1]
            assert isinstance(last, ast.Raise), f"{where}: except BaseException"
            assert last.exc is None, f"{where}: except BaseException that raises another"


@every_module
def test_what_is_public_is_explained(name):
    tree = TREES[name]
    assert ast.get_docstring(tree), f"{name} has no docstring"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, kinds) and not node.name.startswith("_")
        if not ast.get_docstring(node)
    ]
    assert bare == []


@every_module
def test_all_is_importable(name):
    module = import_module(name)
    listed = getattr(module, "__all__", [])
    assert len(set(listed)) == len(listed)
    assert [entry for entry in listed if not hasattr(module, entry)] == []


def test_test_files_have_names_of_their_own():
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(set(names)) == len(names)


def test_the_rules_can_fail():
    assert height("tardisd.daemon") > height("tardisd.plugins.base")
    assert height("tardisd.replay.clock") > PUBLIC_TO_PLUGINS
    with pytest.raises(AssertionError, match="no layer"):
        height("tardisd.attic")
