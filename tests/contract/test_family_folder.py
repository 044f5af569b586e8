"""A family is whole only with a comparison with its pipeline, counts of its costs, and docs."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml  # type: ignore[import-untyped]

from batchgen.config.composing.compose import compose_job
from batchgen.config.userfiles import CONF
from batchgen.errors import ConfigError
from batchgen.families.family import family_names, family_spec
from batchgen.families.table import BEGIN, END, presets, renewed

ROOT = Path(__file__).parents[2]
NO_MODEL = {"null"}  # its rows are noise
DRAWN = sorted({*family_names()} - NO_MODEL)
COUNTED = [name for name in DRAWN if not family_spec(name).OWN_ENGINE]


def loaded(file: Path) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"read_{file.stem}", file)
    assert found is not None and found.loader is not None
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def compared() -> set[str]:
    """The families whose rows tests of parity hold against a pipeline's."""
    files = sorted((ROOT / "tests" / "parity").glob("test_*.py"))
    modules = [loaded(file) for file in files if "\nCOMPARED = " in file.read_text()]
    return {name for module in modules for name in module.COMPARED}


@pytest.fixture(scope="module")
def counted() -> dict[str, set[str]]:
    """Families of the packaged models that a test counts, by what it counts: flops or weights."""
    family = {model.name: name for name, models in presets().items() for model in models}
    found: dict[str, set[str]] = {"flops": set(), "weights": set()}
    for file in sorted((ROOT / "tests" / "unit" / "families").glob("test_*counts.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_flops_"):
                texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                found["flops"] |= {family[text] for text in texts & {*family}}
        weighed = getattr(loaded(file), "BILLIONS", {})
        found["weights"] |= {family[name] for name in weighed}
    return found


@pytest.mark.parametrize("name", DRAWN)
def test_a_family_is_compared_with_its_pipeline(name: str, compared: set[str]) -> None:
    assert name in compared, f"no test of tests/parity names {name} in its COMPARED"


@pytest.mark.parametrize("what", ["flops", "weights"])
@pytest.mark.parametrize("name", COUNTED)
def test_the_costs_of_a_family_are_counted(
    name: str, what: str, counted: dict[str, set[str]]
) -> None:
    assert name in counted[what], f"no test_*counts.py counts the {what} of a model of {name}"


def test_no_test_names_a_family_that_is_not_there(
    compared: set[str], counted: dict[str, set[str]]
) -> None:
    assert compared == {*DRAWN}
    assert counted == {"flops": {*COUNTED}, "weights": {*COUNTED}}


@pytest.mark.parametrize("name", family_names())
def test_a_family_is_described(name: str) -> None:
    """In the list of families, and by a packaged model of the README."""
    listed = (ROOT / "batchgen" / "families" / "README.md").read_text()
    assert f"\n| {name} |" in listed, f"batchgen/families/README.md has no line of {name}"
    readme = (ROOT / "README.md").read_text()
    packaged = [file.stem for file in (CONF / "model").glob("*.yaml") if _family(file) == name]
    assert packaged, f"no preset of {name} in config/conf/model"
    if name not in NO_MODEL:
        assert any(f"`{preset}`" in readme for preset in packaged), (
            f"no model of {name} in README.md"
        )
    assert family_spec(name).__doc__


def test_jobs_that_are_shipped_compose_and_are_described(small_folder: Path) -> None:
    """As typed: any.yaml is told its checkpoint and manifest."""
    readme = (ROOT / "jobs" / "README.md").read_text()
    for file in sorted((ROOT / "jobs").glob("*.yaml")):
        given = [f"model.weights={small_folder}", f"manifest={ROOT / 'manifests/demo.parquet'}"]
        job = compose_job(file, given if file.stem == "any" else [])
        assert Path(job.config.manifest).is_file()
        assert f"\n| {file.name} |" in readme, f"jobs/README.md has no line of {file.name}"


def test_every_family_has_a_job_or_a_command() -> None:
    readme = (ROOT / "jobs" / "README.md").read_text()
    jobs = [yaml.safe_load(file.read_text()) for file in (ROOT / "jobs").glob("*.yaml")]
    shown = {job["defaults"][1]["model"] for job in jobs}
    shown |= {*re.findall(r"model=([\w.-]+)", readme)}
    families = {_family(file) for file in (CONF / "model").glob("*.yaml") if file.stem in shown}
    assert {*family_names()} <= families, "families without a job in jobs/"


def _family(file: Path) -> str:
    line = next(line for line in file.read_text().splitlines() if line.startswith("family:"))
    return line.removeprefix("family:").strip(' "')


def test_the_readmes_table_of_families_is_of_today() -> None:
    text = (ROOT / "README.md").read_text()
    again = "renew it: python -m batchgen.families.table README.md"
    assert renewed(text) == text, again
    assert text.count(BEGIN) == text.count(END) == 1


def test_a_file_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no table: it stands between the lines"):
        renewed(f"some text\n{BEGIN}\n")
