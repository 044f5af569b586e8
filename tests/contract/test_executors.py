"""Every executor is a module of the folder, found by its name, with what `Executor` lists."""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path
from typing import Literal

import pytest

from batchgen.config.build import hint_of
from batchgen.config.schema import SlurmConfig
from batchgen.errors import ConfigError
from batchgen.runner import executors
from batchgen.runner.executors import Executor, check_profile, executor_for, executor_named

ALL = sorted(module.name for module in pkgutil.iter_modules(executors.__path__))
METHODS = ("launch", "is_alive", "drain", "kill")


def test_the_folder_is_the_registry() -> None:
    assert {"inline", "local", "slurm"} <= set(ALL)
    assert Literal[tuple(ALL)] == hint_of("slurm.executor")  # type: ignore[valid-type]


@pytest.mark.parametrize("name", ALL)
def test_an_executor_has_every_member_with_the_arguments_of_the_protocol(name: str) -> None:
    module = executor_named(name)
    assert module.POLL_S > 0
    assert isinstance(module.NEEDS_DRIVER, bool)
    for method in METHODS:
        wanted = list(inspect.signature(getattr(Executor, method)).parameters)[1:]
        assert list(inspect.signature(getattr(module, method)).parameters) == wanted, method


@pytest.mark.parametrize("name", ALL)
def test_the_profile_of_defaults_is_one_that_it_can_check(name: str) -> None:
    check_profile(SlurmConfig(executor=name))


def test_a_new_file_in_the_folder_is_an_executor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file, and no line elsewhere."""
    source = Path(executors.__path__[0], "inline.py").read_text(encoding="utf-8")
    (tmp_path / "swarm.py").write_text(source, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"'swarm' is not served .* served: inline, local, slurm"):
        check_profile(SlurmConfig(executor="swarm"))
    monkeypatch.setattr(executors, "__path__", [*executors.__path__, str(tmp_path)])
    made = executor_for(SlurmConfig(executor="swarm", nodes=2, partition="long"))
    assert made.__file__ == str(tmp_path / "swarm.py")  # type: ignore[attr-defined]
