"""One folder per model family, found by its name: `spec.py` needs no torch, `model.py` does.
`family.py` says what the two hold."""
