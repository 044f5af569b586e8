"""One light module per model family: sizes, FLOPs, bytes and capabilities, without torch."""
