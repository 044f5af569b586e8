"""Text of rows, as long as a page can hold."""

from __future__ import annotations


def cut(text: str, most: int, end: bool = False) -> str:
    """`text` of at most so many bytes: its beginning or its `end`, with dots where it was cut."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= most:
        return data.decode()
    if end:
        return "… " + data[-most:].decode("utf-8", "ignore")
    return data[:most].decode("utf-8", "ignore") + " …"


def cut_tags(text: str, most: int) -> str:
    """Of tags with commas between them the first, whole ones that have room in so many bytes."""
    data = text.encode("utf-8", "backslashreplace")
    return data.decode() if len(data) <= most else data[:most].rpartition(b",")[0].decode() + ",…"
