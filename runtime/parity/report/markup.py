"""HTML from nested calls: text is escaped by being text, so that nothing can be forgotten."""

from __future__ import annotations

from typing import Any

from tfswa.runtime.escape import html_text

VOID = ("meta", "link", "img", "br")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *inside: object, **attributes: Any) -> Markup:
    """Make an element.

    Args:
        name: of the element.
        inside: ``Markup`` as it is, all else as text; None is nothing.
        attributes: ``class_`` and ``data_row`` stand for ``class`` and ``data-row``; True is an attribute
            without a value, None and False leave it out.
    """
    opened = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{opened}>")
    return Markup(f"<{name}{opened}>{join(*inside)}</{name}>")


def join(*parts: object) -> Markup:
    """Set parts beside one another; as in ``element``."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html_text(value)}"'


def _escaped(part: object) -> str:
    return "" if part is None else html_text(part)
