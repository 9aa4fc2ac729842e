"""Which version of the contracts a plugin needs, and whether this tardisd keeps it; loads nothing.

A plugin may say `TARDISD_CONTRACT = "1.2"` in its module: it needs contract 1, with all that had
been added to it by 1.2. One that was written for a newer tardisd mostly fails while it is imported,
before anyone could ask it; so the line is looked for in its source then, where it must be plain.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tardisd.errors import PluginError, Unavailable
from tardisd.plugins import CONTRACT_VERSION

DECLARATION = "TARDISD_CONTRACT"
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})")


def check_contract(needed: object, upgrade: str) -> None:
    """Return when a plugin that needs this contract (None: any) can be used.

    `upgrade` says how to get another version of the plugin. Raises Unavailable when tardisd is too
    old for it, PluginError when it is too old for tardisd, or what it says is no version.
    """
    if needed is None:
        return
    match = _VERSION.fullmatch(needed) if isinstance(needed, str) else None
    if match is None:
        raise PluginError(
            f"{DECLARATION} is {needed!r}; write the contract it needs as text, such as"
            f' "{CONTRACT_VERSION}"'
        )
    theirs = (int(match[1]), int(match[2]))
    ours = tuple(map(int, CONTRACT_VERSION.split(".")))
    if theirs > ours:
        raise Unavailable(
            f"needs plugin contract {needed}, and this tardisd has {CONTRACT_VERSION}",
            "pip install --upgrade tardisd",
        )
    if theirs[0] < ours[0]:
        raise PluginError(
            f"was written for plugin contract {needed}, which {CONTRACT_VERSION} of this tardisd"
            f" does not keep; {upgrade}"
        )


def declared_in_source(folder: Path | None, module: str) -> str | None:
    """Return the contract that a plugin's source says it needs, without running it."""
    if folder is None:
        return None
    inner = module.split(".")[1:]
    files = [folder] if folder.is_file() else [folder / "__init__.py"]
    if inner:
        files += [
            folder.joinpath(*inner).with_suffix(".py"),
            folder.joinpath(*inner, "__init__.py"),
        ]
    for file in files:
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in tree.body:
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
                and any(isinstance(it, ast.Name) and it.id == DECLARATION for it in node.targets)
            ):
                return node.value.value
    return None
