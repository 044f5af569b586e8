"""One folder per model family: `spec.py` is light, `model.py` is torch. The folder is the registry;
`family.py` says what the two hold."""
