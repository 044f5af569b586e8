"""Measuring one row: shares of work it shared with others.

Seconds are the host's. On an accelerator the host runs ahead by no more than a launch queue, so
shares of ticks follow the device without a wait per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import quantiles
from time import perf_counter

from batchgen.engine.devices.device import Memory
from batchgen.engine.encoding.prompts import EncodedRow
from batchgen.records import Determinism, RowStats, StageSeconds


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all rows of a render."""

    device: str
    determinism: Determinism


@dataclass(slots=True)
class RowMeter:
    """Grows while the row is drawn; `stats` is its picture at any moment."""

    waiting_since: float = field(default_factory=perf_counter)
    queue: float = 0.0
    encode: float = 0.0
    decode: float = 0.0
    d2h: float = 0.0
    ticks: list[float] = field(default_factory=list)  # the row's share of each tick
    ahead: float = 0.0  # spent for it since the last one: its share of forwards, its decisions
    steps_total: int = 0
    restored: int = 0  # solver steps that an earlier attempt has taken
    forwards: int = 0  # forwards that held an item of this row
    mates: int = 0  # items in them, this row's included
    prompt_tokens: int = 0
    prompt_truncated: bool = False
    negative_prompt_tokens: int = 0
    negative_prompt_truncated: bool = False
    kernels: set[str] = field(default_factory=set)  # that attended in its forwards
    computed: list[float] = field(default_factory=list)  # evaluations of each branch
    cache_bytes: int = 0  # most that its cache kept on this rank
    cache_restarts: int = 0  # of its cache, without what it had kept

    def note_texts(self, row: EncodedRow) -> None:
        """Take over what encoding the row's texts found."""
        self.encode = row.seconds
        self.prompt_tokens, self.prompt_truncated = row.prompt_tokens, row.prompt_truncated
        self.negative_prompt_tokens = row.negative_prompt_tokens
        self.negative_prompt_truncated = row.negative_prompt_truncated

    def note_forward(self, mates: int, seconds: float, kernels: str) -> None:
        """A forward held an item of this row, among `mates`, whose share is `seconds`; `kernels`:
        of attention, joined by `+`."""
        self.forwards += 1
        self.mates += mates
        self.ahead += seconds
        self.kernels.update(kernels.split("+"))

    def note_tick(self, seconds: float) -> None:
        """The row took a step, which cost it `seconds` beside its forwards."""
        self.ticks.append(self.ahead + seconds)
        self.ahead = 0.0

    def note_computed(self, branch: int, branches: int, share: float = 1.0) -> None:
        """An evaluation of one of the row's branches, or a share of its blocks, was computed."""
        self.computed = self.computed or [0.0] * branches
        self.computed[branch] += share

    def stop_waiting(self) -> None:
        """Book the time since `waiting_since` as queueing."""
        self.queue += perf_counter() - self.waiting_since

    @property
    def denoise(self) -> float:
        """Seconds of denoising."""
        return sum(self.ticks) + self.ahead

    @property
    def busy(self) -> float:
        """Seconds of encoding and denoising."""
        return self.encode + self.denoise

    def stats(self, setting: Setting, memory: Memory, rung: str = "") -> RowStats:
        """The row's record so far; `rung` is the memory ladder's."""
        ordered = sorted(self.ticks)
        cuts = quantiles(ordered, n=20) if len(ordered) > 1 else ordered * 19
        return RowStats(
            stages=StageSeconds(self.queue, self.encode, self.denoise, self.decode, self.d2h),
            steps_total=self.steps_total,
            steps_computed=sum(self.computed),
            steps_computed_cond=sum(self.computed[:1]),
            steps_computed_uncond=sum(self.computed[1:]),
            cache_bytes=self.cache_bytes,
            cache_restarts=self.cache_restarts,
            steps_restored=self.restored,
            step_p50_s=cuts[9] if cuts else 0.0,
            step_p95_s=cuts[18] if cuts else 0.0,
            batch_size_mean=self.mates / self.forwards if self.forwards else 0.0,
            peak_mem_gib=memory.peak_device_gib,
            host_rss_gib=memory.host_rss_gib,
            memory_rung=rung,
            prompt_tokens=self.prompt_tokens,
            prompt_truncated=self.prompt_truncated,
            negative_prompt_tokens=self.negative_prompt_tokens,
            negative_prompt_truncated=self.negative_prompt_truncated,
            determinism=setting.determinism,
            attention_kernel="+".join(sorted(self.kernels - {""})),
            device=setting.device,
        )
