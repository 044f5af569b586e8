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
