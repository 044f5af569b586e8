"""Modules that see a timestep or a text alone: what is recalled of them against computing it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_cases import first_quick
from toy_cogvideox import COGVIDEOX
from toy_engine import Keeper, draw, request, small_spec, system
from toy_hunyuan_video15 import HUNYUAN_VIDEO15
from toy_loras import as_planned, files_of, save_lora
from toy_ltx import LTX
from toy_qwen_image import QWEN_IMAGE
from toy_split import SPECS, experts, family_on, recall_of

from batchgen.engine.devices.device import lone_layout
from batchgen.engine.engine import Engine
from batchgen.engine.memory.stream import tensors_of
from batchgen.engine.reuse.blocks import named
from batchgen.engine.reuse.recall import Ahead, Memo, Recall
from batchgen.families.family import Item, family_names, family_spec
from batchgen.families.recalled import Recalled
from batchgen.numerics.edges import in_batches, make_batch_invariant
from batchgen.request import Bucket

BUCKETS = {
    "wan": Bucket(64, 64, 5),
    "wan22": Bucket(64, 64, 5),
    "flux": Bucket(64, 64, 1),
    "qwen_image": Bucket(64, 64, 1),
    "flux2_klein": Bucket(64, 64, 1),
    "sd3": Bucket(64, 64, 1),
    "z_image": Bucket(64, 64, 1),
    "ltx": LTX.bucket,
    "cogvideox": COGVIDEOX.bucket,
    "hunyuan-video-1.5": HUNYUAN_VIDEO15.bucket,
    "wan_i2v": Bucket(64, 64, 5),
    "wan22_i2v": Bucket(64, 64, 5),
}
TOKEN_TIMES = {"wan22_ti2v"}  # of whose items with an image no timestep is recalled
CHEAP = ("timestep", "projected", "embedded")


def recalled_of(name: str) -> tuple[Recalled, ...]:
    parts = family_spec(SPECS[name].family).COMPONENTS
    return next(part.recalled for part in parts if part.name == experts(name)[0])


class Subject:
    """A family with five items of different timesteps, and of two texts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.family: Any = family_on(name)
        self.experts = experts(name)
        self.recall = recall_of(name, self.family)
        texts = [self._item(name, seed).condition for seed in range(2)]
        self.memos = [self.recall.text(text[0]) for text in texts]  # held
        self.items = [
            replace(self._item(name, seed), condition=texts[seed % 2]) for seed in range(5)
        ]

    def _item(self, name: str, seed: int) -> Item:
        item: Item = self.family.random_item(BUCKETS[name], seed, self.experts[0])
        return item

    def forward(self, items: Sequence[Item], *, on: bool) -> torch.Tensor:
        self.recall.on = on
        return torch.cat(self.family.forward(items))

    def ruin(self) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
        """Make the weights of what is recalled useless; what they were."""
        transformer, before = self.family.modules[self.experts[0]], []
        for one in recalled_of(self.name):
            if one.sees == "combined":
                continue  # no two steps of a row are alike
            for module in named(transformer, one.modules):
                for parameter in module.parameters():
                    before.append((parameter, parameter.detach().clone()))
                    parameter.data.fill_(torch.nan)
        return before


@pytest.fixture(params=first_quick(BUCKETS, len(BUCKETS) - 2))
def subject(request: pytest.FixtureRequest, one_thread: None) -> Subject:
    return Subject(request.param)


@torch.no_grad()
def test_what_is_recalled_has_the_bits_of_what_is_computed(subject: Subject) -> None:
    """Alone always; in packs wherever they have the bits of each item alone."""
    for item in subject.items:
        plain = subject.forward([item], on=False)
        assert torch.equal(subject.forward([item], on=True), plain)
        assert torch.equal(subject.forward([item], on=True), plain)
    subject.recall.clear()
    plain = subject.forward(subject.items, on=False)
    first, again = (subject.forward(subject.items, on=True) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first, plain, atol=1e-5, rtol=0)
    alone = torch.cat([subject.forward([item], on=False) for item in subject.items])
    if torch.equal(plain, alone):
        assert torch.equal(first, plain)


@torch.no_grad()
def test_what_is_recalled_is_not_computed_again(subject: Subject) -> None:
    """Its weights may be anything by then; cleared, they count."""
    first = subject.forward(subject.items, on=True)
    before = subject.ruin()
    try:
        assert len(before) >= 4
        assert torch.equal(subject.forward(subject.items, on=True), first)
        subject.recall.clear()
        assert subject.forward(subject.items, on=True).isnan().all()
    finally:
        for parameter, value in before:
            parameter.data.copy_(value)


@torch.no_grad()
def test_signals_are_those_that_are_computed(subject: Subject) -> None:
    for item in subject.items:
        for kind in CHEAP:
            subject.recall.on = False
            plain = subject.family.signal(item, kind)
            subject.recall.on = True
            for _ in range(2):
                assert torch.equal(subject.family.signal(item, kind), plain)


@torch.no_grad()
def test_signals_without_a_text_in_them_are_computed_once_a_timestep(subject: Subject) -> None:
    """Whatever the latents; cleared, again."""
    transformer, ran = subject.family.modules[subject.experts[0]], list[str]()
    item, other = subject.items[:2]
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(type(module).__name__))
        for module in transformer.modules()
    ]
    for kind in CHEAP[:2]:
        first = subject.family.signal(item, kind)
        ran.clear()
        again = subject.family.signal(replace(item, latents=other.latents), kind)
        assert torch.equal(again, first)
        assert (not ran) == subject.family.signals_alike
        subject.recall.clear()
        assert torch.equal(subject.family.signal(item, kind), first) and ran
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_of_a_text_only_what_there_is_room_for_is_kept(one_thread: None) -> None:
    subject = Subject("wan")
    recall = subject.recall
    plain = subject.forward(subject.items, on=True)
    whole = sum(memo.bytes for memo in subject.memos)
    tokens, width, layers = 16, 128, 2
    assert whole == 2 * (1 + 2 * layers) * tokens * width * 4  # embedded, keys and values
    for room in (0, whole // 3, whole):
        recall.clear()
        recall.text_bytes = room
        for _ in range(2):
            assert torch.equal(subject.forward(subject.items, on=True), plain)
        held = sum(memo.bytes for memo in subject.memos)
        assert held <= room and (held > 0) == (room > 0)


@torch.no_grad()
def test_timesteps_of_the_oldest_use_are_forgotten(one_thread: None) -> None:
    subject = Subject("wan")
    recall, item = subject.recall, subject._item("wan", 9)
    subject.forward([item], on=True)
    one = recall.bytes
    assert one == (64 + 128 + 6 * 128) * 4  # the sinusoid, the embedding, its projection
    recall.timestep_bytes = 3 * one
    for timestep in (1.0, 2.0, 3.0, 1.0, 4.0, 5.0, 6.0):
        moved = replace(item, timestep=timestep)
        assert torch.equal(subject.forward([moved], on=True), subject.forward([moved], on=False))
        assert recall.bytes <= 4 * one
    assert [*recall._timesteps] == [1.0, 4.0, 5.0, 6.0]


@torch.no_grad()
def test_tables_of_rows_in_flight_are_kept_however_many_there_are(one_thread: None) -> None:
    subject = Subject("qwen_image")
    recall, item = subject.recall, subject._item("qwen_image", 0)
    made: list[float] = []

    def forward(one: Item) -> None:
        made.append(one.timestep)
        subject.family.forward([one])

    def tabulate(*timesteps: float) -> tuple[Memo, ...]:
        row = Ahead([replace(item, timestep=timestep) for timestep in timesteps], 1)
        [found] = recall.tabulate(forward, [row])
        return found

    held = tabulate(1.0, 2.0)
    assert made == [1.0, 2.0] and all(memo.outputs for memo in held)
    recall.timestep_bytes = 0
    subject.forward([replace(item, timestep=3.0)], on=True)  # and what was there before goes
    assert tabulate(2.0, 1.0)[::-1] == held
    assert made == [1.0, 2.0]
    recall.timestep_bytes, held = 0, ()
    subject.forward([replace(item, timestep=4.0)], on=True)
    tabulate(2.0)
    assert made == [1.0, 2.0, 2.0]


def test_a_text_is_kept_as_long_as_someone_has_its_memo() -> None:
    recall = Subject("wan").recall
    text = torch.zeros(1, 2, 3)
    memo: Memo | None = recall.text(text)
    assert recall.text(text) is memo is not recall.text(text.clone())
    assert memo is not None
    memo.outputs[torch.nn.Identity(), 1] = text
    assert recall.bytes == text.nbytes
    memo = None
    gc.collect()
    assert recall.bytes == 0


@pytest.mark.parametrize("determinism", first_quick(["strict", "throughput"], 1))
def test_rows_in_flight_are_those_without(small_folder: Path, determinism: str) -> None:
    """Rows of shared and own texts that join late; and nothing of texts stays behind them."""
    rows = [
        request(
            i,
            prompt=f"text {i % 4}",
            width=64,
            num_steps=2 + i % 3,
            guidance_scale=(4.0, 1.0)[i % 3 == 0],
        )
        for i in range(9)
    ]
    drawn: dict[bool, Keeper] = {}
    for on in (True, False):
        engine = Engine.load(
            small_spec(str(small_folder)),
            system(determinism=determinism, batch={"max_rows_in_flight": 4}),
            "cpu",
        )
        engine.replica.recall.on = on
        drawn[on] = draw(engine, rows)
        assert (engine.replica.recall.bytes > 0) == on
        gc.collect()
        assert not engine.replica.recall._texts
    drawn[True].assert_packed()
    for row in rows:
        ours, plain = (drawn[on].latents[row.row_id] for on in (True, False))
        if determinism == "strict":
            assert torch.equal(ours, plain)
            assert np.array_equal(drawn[True].frames[row.row_id], drawn[False].frames[row.row_id])
        assert float((ours - plain).abs().max()) <= 1e-5


def test_every_family_names_modules_that_there_are() -> None:
    recalls = {
        name
        for name in family_names()
        for part in family_spec(name).COMPONENTS
        if any(one.sees != "combined" for one in part.recalled)  # of these there are tables: below
    }
    assert {SPECS[name].family for name in BUCKETS} == recalls - TOKEN_TIMES
    for name in BUCKETS:
        subject = Subject(name)
        for expert in subject.experts:
            transformer = subject.family.modules[expert]
            assert len(recalled_of(name)) >= 2
            for one in recalled_of(name):
                assert named(transformer, one.modules), (name, one)
                assert not one.like or named(transformer, one.like), (name, one)


@torch.no_grad()
def test_of_items_of_many_timesteps_none_is_recalled(one_thread: None) -> None:
    """One for each token: the row's own would be wrong for some of them."""
    subject = Subject("wan")
    transformer, item = subject.family.modules["transformer"], subject.items[0]
    timesteps = torch.linspace(0, item.timestep, 2 * 4 * 4)[None]

    def forward() -> torch.Tensor:
        found: torch.Tensor = transformer(
            hidden_states=item.latents,
            timestep=timesteps,
            encoder_hidden_states=subject.family._padded(item.condition),
            return_dict=False,
        )[0]
        return found

    plain = forward()
    subject.forward([item], on=True)  # the row's own is kept
    assert torch.equal(subject.recall._of([item], forward), plain)


class Lone:
    """A family of one Linear, whose pipeline computes the branches of some items at once."""

    def __init__(self, linear: torch.nn.Linear, x: torch.Tensor) -> None:
        self.modules = {"transformer": torch.nn.ModuleDict({"linear": linear})}
        self.x = x
        self.sizes = [2, 1]

    def forward(self, items: Sequence[Item]) -> torch.Tensor:
        transformer: Any = self.modules["transformer"]
        with in_batches(self.sizes):
            found: torch.Tensor = transformer["linear"](self.x)
        return found

    def signal(self, item: Item, kind: str) -> None: ...


@torch.no_grad()
def test_what_a_pipeline_computes_of_two_branches_at_once_has_those_bits(
    one_thread: None,
) -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(512, 512), torch.randn(1, 512)
    pair, alone = (
        torch.nn.functional.linear(x.repeat(n, 1), linear.weight, linear.bias)[:1] for n in (2, 1)
    )
    make_batch_invariant(linear)
    family: Any = Lone(linear, x.repeat(2, 1))
    Recall().lead(family, ["transformer"], [Recalled("linear", "timestep")])
    items = [Subject("wan").items[0]] * 2
    for _ in range(2):
        assert torch.equal(family.forward(items), torch.cat([pair, alone]))


TOYS_AWAY: dict[str, Any] = {
    "qwen_image": QWEN_IMAGE,
    "cogvideox": COGVIDEOX,
    "hunyuan-video-1.5": HUNYUAN_VIDEO15,
}


@pytest.mark.parametrize("name", first_quick(TOYS_AWAY, 1))
def test_tables_stand_in_for_weights_that_are_not_on_the_device(
    name: str, one_thread: None, tmp_path: Path
) -> None:
    """They come once for all rows that join together with a set of adapters; bits are those of
    weights that stay."""
    lora = save_lora(tmp_path / "on all.safetensors", family_on(name).transformer)
    files = {} if name == "hunyuan-video-1.5" else files_of(str(lora))
    first = TOYS_AWAY[name].row(0)
    rows = [
        replace(first, row_index=i, row_id=f"row-{i}", seed=i, num_steps=2 + (i == 2))
        for i in range(3)
    ]
    if files:
        rows[1] = replace(rows[1], lora=as_planned(str(lora)))

    def engine(mode: str, **changes: Any) -> Engine:
        layout = lone_layout(SPECS[name], system(), torch.device("cpu"))
        own = system(memory={"mode": mode}, **changes)
        layout = replace(layout, memory=mode)
        return Engine.load(SPECS[name], own, "cpu", layout=layout, loras=files)

    plain = draw(engine("resident"), rows)
    made = engine("model")
    transformer = made.family.modules["transformer"]
    away = {m for one in recalled_of(name) if one.like for m in named(transformer, one.modules)}
    sizes = [sum(t.nbytes for t in tensors_of(module)) for module in away]
    whole = sum(t.nbytes for t in tensors_of(transformer))
    for drawn in draw(made, rows), draw(engine("stream"), rows):
        assert not drawn.errors and len(drawn.latents) == 3
        for row, latents in plain.latents.items():
            assert torch.equal(drawn.latents[row], latents)
    peak = made.replica.residency.gauge.peaks["denoise"]
    assert peak == whole - sum(sizes) + max(sizes)
    counted = draw(engine("model", determinism="throughput"), rows)
    assert counted.report.streamed_gib * 1024**3 == (1 + len(files)) * sum(sizes)
    residency, module = made.replica.residency, next(iter(away))
    inside = residency.gauge.inside
    with pytest.raises(ValueError, match="bad row"), residency.brought(module):
        raise ValueError("bad row")
    assert residency.is_away(module) and residency.gauge.inside == inside
