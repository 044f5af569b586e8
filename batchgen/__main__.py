"""`python -m batchgen`."""

from batchgen.cli.main import entry

if __name__ == "__main__":
    entry()
