"""Where Hydra finds a user's own YAML files: read strictly, never in the place of packaged ones."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource

from batchgen.config.composing.yamlfile import read_yaml
from batchgen.errors import ConfigError

CONF = Path(__file__).parent / "conf"
_SCHEME = "batchgen"


def packaged(name: str) -> bool:
    """Whether `base`, `model/tiny-wan`, `slurm/local` ... is a file of the package."""
    return (CONF / f"{name}.yaml").is_file()


def names_of(group: str, folders: Iterable[Path]) -> list[str]:
    """Names of the models or profiles in the package and in a user's folders, sorted."""
    found = [path for folder in (CONF, *folders) for path in (folder / group).glob("[!.]*.yaml")]
    return sorted({path.stem for path in found})


def source_of(folder: Path) -> str:
    """A folder of the user's as an entry of Hydra's search path."""
    return f"{_SCHEME}://{folder}"


def folder_of(source: str) -> Path:
    """The folder of an entry of a search path that was recorded, whoever made it."""
    return Path(source.partition("://")[2] or source)


class UserFolder(ConfigSource):  # type: ignore[misc]
    """Own models, profiles and other files of one folder, for Hydra.

    `base` is always the packaged file, and Hydra's own groups are Hydra's. A model or a profile
    with a packaged name is refused once it is asked for: both meanings are likely.
    """

    @staticmethod
    def scheme() -> str:
        return _SCHEME

    def available(self) -> bool:
        return os.path.isdir(self.path)

    def is_group(self, config_path: str) -> bool:
        return not _is_hydras(config_path) and os.path.isdir(os.path.join(self.path, config_path))

    def is_config(self, config_path: str) -> bool:
        name = config_path.removesuffix(".yaml")
        file = self._file(config_path)
        if _is_hydras(name) or not os.path.lexists(file):
            return False
        if packaged(name) and "/" in name:
            group, _, word = name.rpartition("/")
            raise ConfigError(
                f"{file}: {word} is the name of a packaged {_NOUNS.get(group, 'file')}; rename "
                f"this file and choose it by its new name: {group}=<name>"
            )
        return not packaged(name)

    def load_config(self, config_path: str) -> ConfigResult:
        file = self._file(config_path)
        text, config = read_yaml(file, os.path.dirname(config_path).replace("/", "."))
        return ConfigResult(
            provider=self.provider,
            path=source_of(Path(self.path)),
            config=config,
            header=self._get_header_dict(text[:512]),
        )

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        folder = Path(self.path, config_path)
        files, groups = [], []
        for entry in folder.iterdir() if os.access(folder, os.R_OK) else ():
            if entry.is_dir():
                groups.append(entry.name)
            elif entry.suffix == ".yaml":
                files.append(entry.stem)
        wanted = {ObjectType.CONFIG: files, ObjectType.GROUP: groups, None: files + groups}
        return sorted(set(wanted[results_filter]))

    def _file(self, config_path: str) -> Path:
        return Path(self.path, self._normalize_file_name(config_path))


_NOUNS = {"model": "model", "slurm": "profile"}


def _is_hydras(name: str) -> bool:
    return name == "hydra" or name.startswith("hydra/")


def register() -> None:
    """Tell Hydra of these folders; a second time changes nothing."""
    Plugins.instance().register(UserFolder)
