"""What documents, docstrings and comments call a module or a file of the project is one."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from batchgen.paths import RunPaths

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "batchgen"
MAP = PACKAGE / "README.md"
FOLDERS = ("batchgen", "tests", "jobs", "manifests", "slurm")
DOTTED = re.compile(r"\bbatchgen((?:\.[a-z_]\w*)+)")
PATH = re.compile(r"(?<![\w/.<>*-])(?:[\w-]+/)+[\w-]+\.py\b")
NAME = re.compile(r"`(\w+(?:\.py|/))`")
PLAIN = 2  # lines of the map's table above its first room


def files() -> Iterator[Path]:
    """What is written about: all of the package and its tests, and documents."""
    yield from (path for path in ROOT.glob("*.md"))
    for folder in FOLDERS:
        found = (ROOT / folder).rglob("*.*")
        yield from (path for path in found if path.suffix in {".py", ".md"})


def said(path: Path) -> str:
    """What a reader is told: a document, or the docstrings and comments of a module."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, owners)]
    return "\n".join([*comments, *(ast.get_docstring(node) or "" for node in nodes)])


def is_module(name: str) -> bool:
    """Whether `.engine.packs.Packer` leads to a module, and then to a name that it has."""
    here = PACKAGE
    for part in name.removeprefix(".").split("."):
        if (here / part).is_dir():
            here = here / part
            continue
        module = here / f"{part}.py"
        inside = module if module.exists() else here / "__init__.py"
        return module.exists() or re.search(rf"\b{part}\b", inside.read_text()) is not None
    return True


def is_file(name: str, path: Path) -> bool:
    """Whether it is one from the root, from the package, or from a folder above who names it."""
    return any(
        (base / name).is_file() for base in (PACKAGE, *path.parents) if base.is_relative_to(ROOT)
    )


def test_every_module_and_file_that_is_named_exists() -> None:
    wrong, count = [], 0
    for path in files():
        text = said(path)
        gone = [name for name in DOTTED.findall(text) if not is_module(name)]
        names = PATH.findall(text)
        gone += [name for name in names if not is_file(name, path)]
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in gone]
        count += len(names)
    assert not wrong
    assert count > 40  # they are found at all


def test_the_map_names_every_room_and_what_is_in_it() -> None:
    """A line of its table begins with rooms; files and folders that it names are in them."""
    lines = [line.split("|") for line in MAP.read_text().splitlines() if line.startswith("|")]
    there = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    rooms, wrong = set[str](), []
    for _, head, text, _ in lines[PLAIN:]:
        own = [name.strip().removesuffix("/") for name in head.split(",")]
        rooms |= {*own}
        inside = {
            found.name for name in own for found in [PACKAGE / name, *(PACKAGE / name).rglob("*")]
        }
        wrong += [
            f"{head.strip()}: {name}"
            for name in NAME.findall(text)
            if name.removesuffix("/") not in inside | there | {"inputs"}  # of a run
        ]
    assert not wrong
    assert rooms == {name for name in there if not name.startswith("__")}


def test_the_readme_of_runs_names_all_that_a_run_folder_may_hold() -> None:
    run, text = RunPaths(Path("/run")), (ROOT / "outputs" / "README.md").read_text()
    own = [name for name, value in vars(RunPaths).items() if isinstance(value, property)]
    parts = {getattr(run, name).relative_to(run.root).parts[0] for name in own}
    assert len(parts) > 15
    hidden = {"run.next.json"}  # while a replan is installed
    assert [part for part in sorted(parts - hidden) if part not in text] == []
