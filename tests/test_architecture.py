"""Imports point down the layers, there are no cycles, and the light commands stay light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from batchgen.runfile import RunFile

PACKAGE = Path(__file__).parents[1] / "batchgen"
LAYERS = [
    {"request", "records", "errors", "paths", "regular", "runfile", "planfile"}
    | {"failpoints", "processes", "anchor", "durable", "words", "progress", "pictures", "loras"},
    {"numerics", "caches"},
    {"config", "families"},
    {"planning", "media", "ledger"},
    {"catalog", "notices", "bars"},
    {"report", "judges"},
    {"engine", "models"},
    {"worker", "scheduler"},
    {"runner", "export"},
    {"api"},
    {"bench"},
    {"cli", "__main__"},
]
SAME_LEVEL_ALLOWED = {
    ("config", "families"),  # a family declares keys of its model, in terms of the schema
    ("families", "config"),
}
# Inside a room: a module or a folder of modules imports from its own line or the lines before it.
INSIDE = {
    "engine": [
        {"clock", "isolation", "figures", "memory"},
        {"contract", "devices"},
        {"loading", "packs"},
        {"encoding", "ranks"},
        {"reuse", "adapters"},
        {"ladder"},
        {"parallel"},  # one forward of several ranks: it knows no row and no tick
        {"attention"},
        {"compiled"},
        {"replica"},
        {"rows", "assemble"},
        {"engine", "singly"},
        {"decode"},
        {"choose", "fitting"},
    ],
    "engine.encoding": [{"prompts", "texts", "abreast"}, {"pictures"}],
    "engine.ranks": [{"collective", "peer"}, {"orders"}, {"team"}],
    "engine.rows": [
        {"lane", "snapshot"},
        {"meter"},
        {"forwards", "caching"},
        {"flight"},
        {"finish", "look", "room"},
        {"director"},
        {"render"},
    ],
    "engine.fitting": [{"lockstep"}, {"calibrate", "calibrate_blocks"}],
    "worker": [
        {
            "admission",
            "as_planned",
            "drain",
            "ending",
            "judging",
            "latents",
            "states",
            "texts",
            "watchdog",
        },
        {"meetings", "queue", "sink"},
        {"audit", "pilot", "post", "source"},
        {"replica", "follower"},
        {"entry"},
    ],
    "worker.meetings": [{"address", "place"}, {"meeting"}],
}
TORCH_SIDE = {"engine", "models"}  # knows neither planning nor a run folder
TORCH_SIDE_MAY_IMPORT = {
    *(
        "request",
        "records",
        "errors",
        "caches",
        "config",
        "failpoints",
        "families",
        "numerics",
        "pictures",
        "loras",
        "engine",
        "models",
    )
}
MOST_LINES = 400
MOST_LINES_OF_A_FOLDER = 2600  # of its own files
LIGHT = ["torch", "diffusers", "pandas", "pyarrow", "hydra", "submitit", "numpy", "omegaconf"]


@cache
def modules() -> dict[str, Path]:
    """Dotted module name (without the package) -> file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    """batchgen modules imported anywhere in a file, without the package prefix."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{a.name}" for a in node.names} | {node.module or ""}
    inside = {n.removeprefix("batchgen.") for n in names if n.startswith("batchgen.")}
    known = modules()
    return frozenset(n for n in inside if n in known)


def room(module: str) -> str:
    """The top folder; `families/<name>/model.py` is ranked apart from a family's light side."""
    top, *rest = module.split(".")
    torch_side = {"model", "frames"}  # what models share
    return "models" if top == "families" and torch_side & {*rest[-1:]} else top


def level(folder: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if folder in layer)


def test_imports_point_down() -> None:
    """A module imports only from lower layers or its own folder."""
    wrong = []
    for name, path in modules().items():
        top = room(name)
        if top in {"", "tiny"}:
            continue
        for target in imports(path):
            other = room(target)
            if other in {top, ""} or (top, other) in SAME_LEVEL_ALLOWED:
                continue
            if other == "tiny":
                # the weights' home; benches measure the embedded model
                allowed = target in {"tiny", "tiny.domain"} or top == "bench"
            elif top in TORCH_SIDE:
                allowed = other in TORCH_SIDE_MAY_IMPORT
            else:
                single_files = level(other) == level(top) and level(top) in {0, len(LAYERS) - 1}
                allowed = level(other) < level(top) or single_files
            if not allowed:
                wrong.append(f"{name} imports {target}")
    assert not wrong, wrong


def own(top: str, module: str) -> str:
    """The file or the folder of a room that a module is in."""
    return module.removeprefix(f"{top}.").split(".")[0]


@pytest.mark.parametrize("top", INSIDE)
def test_the_modules_of_a_room_are_ranked(top: str) -> None:
    ranks = {name: rank for rank, line in enumerate(INSIDE[top]) for name in line}
    inside = {n: path for n, path in modules().items() if n.startswith(f"{top}.")}
    assert {own(top, n) for n in inside} == set(ranks)
    wrong = [
        f"{name} imports {target}"
        for name, path in inside.items()
        for target in imports(path) & inside.keys()
        if ranks[own(top, target)] > ranks[own(top, name)]
    ]
    assert not wrong, wrong


def test_families_specs_and_cache_strategies_load_no_torch() -> None:
    code = "from batchgen.families.family import family_names, family_spec\n"
    code += "for name in family_names(): family_spec(name)\n"
    code += "from batchgen.caches.strategy import names, strategy\n"
    code += "for name in names(): strategy(name)"
    assert not {"torch", "diffusers", "pyarrow", "numpy"} & set(loaded_after(code))


def test_no_import_cycles() -> None:
    """The graph of modules sorts; graphlib raises CycleError with the cycle otherwise."""
    graph = {name: imports(path) - {name, ""} for name, path in modules().items()}
    order = list(TopologicalSorter(graph).static_order())
    assert "records" in order


def test_no_module_is_called_utils() -> None:
    banned = {"utils", "common", "helpers", "misc"}
    assert not [n for n in modules() if n.split(".")[-1] in banned]


def test_no_file_is_too_long_to_read() -> None:
    long = {n: len(path.read_text().splitlines()) for n, path in modules().items()}
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES}


def test_no_folder_is_too_large_to_know() -> None:
    lines: Counter[Path] = Counter()
    for path in modules().values():
        lines[path.parent] += len(path.read_text().splitlines())
    assert not {folder: n for folder, n in lines.items() if n > MOST_LINES_OF_A_FOLDER}


def loaded_after(code: str) -> list[str]:
    probe = f"import sys\n{code}\nprint('loaded', *(m for m in {LIGHT!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def test_help_and_status_are_light(tmp_path: Path) -> None:
    """`--help` and `status` load none of the heavy packages, so that they start at once."""
    header = RunFile(
        name="n", tag="", created=0.0, rows=3, unique_rows=3, plan_id="", manifest="",
        manifest_digest="", key_context={}, config={}, overrides=[],
    )  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(header.to_json()))
    call = (
        "from batchgen.cli.main import main\ntry:\n    main({argv!r})\nexcept SystemExit:\n    pass"
    )
    assert loaded_after("import batchgen; assert 'submit' in dir(batchgen)") == []
    assert loaded_after(call.format(argv=["--help"])) == []
    assert loaded_after(call.format(argv=["status", str(tmp_path)])) == []
    assert loaded_after(call.format(argv=["status", str(tmp_path / "no-run")])) == []
    assert "pyarrow" in loaded_after("import pyarrow")  # the probe can fail


def test_a_rank_and_a_steward_start_soon() -> None:
    """Each task of a large job and each command pays for what it imports."""
    rank = "batchgen.runner.task, batchgen.worker.replica, batchgen.worker.follower"
    heavy = {"torch", "diffusers", "pandas"}
    assert not (heavy | {"hydra", "submitit"}) & set(
        loaded_after(f"import {rank}, batchgen.runner.recover")
    )
    for module in ("batchgen.runner.steward", "batchgen.catalog.collect"):
        loaded = set(loaded_after(f"import {module}"))
        assert "pyarrow" in loaded and not heavy & loaded
