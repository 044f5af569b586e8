"""One small model of every family that the engine draws rows of in packs: checkpoints and rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_two_experts
from toy_engine import draw, request, save_small, small_spec, system, tiny_wan_spec, two_experts
from toy_flux import flux_spec, save_flux
from toy_loras import as_planned, files_of, save_lora
from toy_wan_images import PICTURES, SHAPE, SMALL, digests
from toy_wan_images import save as save_illustrated
from toys import TOYS
from video_toys import VIDEO_TOYS

from batchgen.caches.tables import Tables
from batchgen.config.schema import ModelSpec
from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.engine.parallel.mesh import leave
from batchgen.engine.ranks.team import Dismissed
from batchgen.families.family import Capabilities, family_names, family_spec
from batchgen.request import Request

FAMILIES = [name for name in family_names() if not family_spec(name).OWN_ENGINE]
TEXTS = ("a red cat", "the blue dog sits on a big house", "sky")
IMAGE: dict[str, Any] = {"width": 64, "height": 64, "num_frames": 1, "solver": "euler"}
TOKENS_16 = {"wan22_ti2v": {"width": 128, "height": 64, "num_frames": 5}}  # of 32x32 pixels


@dataclass(frozen=True)
class Small:
    """A checkpoint of a family, its rows and the files that they are drawn with."""

    spec: ModelSpec
    row: Callable[[int], Request]  # mixed steps, and texts and images of different ones
    files: Mapping[str, Path]  # of LoRA, where it is served
    loras: tuple[str, ...]  # sets of them that rows are drawn with; the first is none

    @property
    def served(self) -> Capabilities:
        return family_spec(self.spec.family).capabilities(self.spec)

    def engine(self, tables: Tables | None = None, **changes: Any) -> Engine:
        """`changes` are those of the system."""
        return Engine.load(
            self.spec,
            system(**changes),
            "cpu",
            images=PICTURES.__getitem__,
            loras=self.files,
            tables=tables,
        )


def small(name: str, folder: Path) -> Small:
    """The family's checkpoint, written to `folder`."""
    spec, row = SMALL_FAMILIES[name](folder / "model")
    served = "lora" in family_spec(name).capabilities(spec).columns
    texts = _loras(spec, folder) if served else ()
    return Small(spec, row, files_of(*texts), ("", *map(as_planned, texts)))


def fixture_of(names: Iterable[Any]) -> Any:
    """The fixture `family`: of each name its small model, `Small`, for the tests of a module."""

    @pytest.fixture(scope="module", params=names, name="family")
    def family(
        request: pytest.FixtureRequest, one_thread: None, tmp_path_factory: pytest.TempPathFactory
    ) -> Small:
        return small(request.param, tmp_path_factory.mktemp(request.param))

    return family


def _loras(spec: ModelSpec, folder: Path) -> tuple[str, ...]:
    """One set, of each expert's Linears."""
    engine = Engine.load(spec, system(), "cpu")
    experts, files = engine.replica.residency.plan.experts, []
    for seed, name in enumerate(experts):
        path = folder / f"{name}.safetensors"
        save_lora(path, engine.family.modules[name], seed=seed)
        files.append(f"{name}:{path}" if len(experts) > 1 else str(path))
    return (",".join(files),)


Made = tuple[ModelSpec, Callable[[int], Request]]


def _wan(folder: Path) -> Made:
    return small_spec(str(save_small(folder))), lambda i: _clip(i, **SHAPE)


def _wan22(folder: Path) -> Made:
    spec = two_experts(tiny_wan_spec(), weights=str(save_two_experts(folder)))
    return spec, lambda i: _clip(i, **SHAPE)


def _flux(folder: Path) -> Made:
    spec = flux_spec(str(save_flux(folder, flux_spec())))
    return spec, lambda i: _mixed(i, sigma_shift=1.0, true_cfg_scale=1.0 + 2 * (i % 2), **IMAGE)


def _toy(toy: Any, **changes: Any) -> Callable[[Path], Made]:
    def made(folder: Path) -> Made:
        return toy.spec(str(toy.save(folder, toy.spec(**changes))), **changes), toy.row

    return made


def _illustrated(name: str) -> Callable[[Path], Made]:
    def made(folder: Path) -> Made:
        spec, images = save_illustrated(SMALL[name](), folder), digests()
        spare = "image" not in family_spec(name).capabilities(spec).needs

        def row(i: int) -> Request:
            image = None if spare and i % 2 else images[i % 3]
            return _clip(i, image=image, **TOKENS_16.get(name, SHAPE))

        return spec, row

    return made


def _mixed(number: int, **changes: Any) -> Request:
    """Rows of mixed steps and texts."""
    values = {"prompt": TEXTS[number % 3], "num_steps": 2 + number % 3}
    return request(number, **(values | changes))


def _clip(number: int, **changes: Any) -> Request:
    return _mixed(number, guidance_scale=(4.0, 1.0, 3.0)[number % 3], **changes)


def alike(row: Request, **changes: Any) -> Request:
    """Of equal size as all others of a family whose rows have several."""
    size = {"width": 64, "height": 64} if row.num_frames == 1 else {}
    return replace(row, **(size | changes))


# A new family adds itself.
SMALL_FAMILIES: dict[str, Callable[[Path], Made]] = {
    "wan": _wan,
    "wan22": _wan22,
    "flux": _flux,
    **{name: _illustrated(name) for name in SMALL},
    **{name: _toy(toy) for name, toy in TOYS.items()},
    # Feed-forwards are 8/3 as wide, and a SiLU has other bits in what is left of 32 numbers.
    "z_image": _toy(TOYS["z_image"], heads=6),
    **{toy.family: _toy(toy) for toy in VIDEO_TOYS.values()},
}


def draw_in_a_team(
    mesh: Any,
    team: Any,
    spec: ModelSpec,
    files: Mapping[str, Path],
    changes: Mapping[str, Any],
    rows: list[Request],
) -> Any:
    """Frames, evaluations and errors of rows on the leader; `changes` are the layout's."""
    layout = replace(lone_layout(spec, system(), torch.device("cpu")), **changes)
    leave()  # the engine's ranks meet by themselves
    read = PICTURES.__getitem__
    engine = Engine.load(spec, system(), "cpu", layout=layout, team=team, images=read, loras=files)
    if not team.leads:
        with suppress(Dismissed):
            engine.follow()
        return None
    keeper = draw(engine, rows)
    computed = {name: stats.steps_computed for name, stats in keeper.stats.items()}
    return keeper.frames, computed, {name: str(e) for name, e in keeper.errors.items()}
