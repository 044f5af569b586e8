"""LoRA adapters of the transformers: peft's layers beside the weights, never merged into them.

All files are there from set-up, since blocks stream, compile and divide with what is in them. A
forward is of rows of one set of files; switching to a set says which adapters add to their modules'
outputs, and how strongly. Without a set each module returns what the weights alone make, to the
bit, whatever was drawn before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgen.engine.loading.loras import Factors, check_factors, read_lora
from batchgen.errors import ConfigError, WeightsError
from batchgen.families.family import FamilyModel, Item
from batchgen.loras import NoLora, parse
from batchgen.request import NO_LORA, Loras, Request

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

_PREFIX = "transformer"  # of names, whichever transformer it is


class Adapters:
    """The adapters of one family's transformers; one set adds at a time."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        """`names`: of all that are there, as `Lora.name`."""
        self.names = tuple(names)
        self.active = NO_LORA
        self._layers: dict[str, list[BaseTunerLayer]] = {}  # by transformer

    @property
    def tests(self) -> tuple[Loras, ...]:
        """Sets for the self-test of a device: none, and all of them at once."""
        return (NO_LORA, Loras(",".join(self.names))) if self.names else (NO_LORA,)

    def check(self, loras: Loras) -> None:
        """ConfigError if a row's set holds what was not loaded: it would be drawn without."""
        if missing := [one.name for one in parse(loras) if one.name not in self.names]:
            raise ConfigError(f"lora {missing[0]}: was not loaded with this engine")

    def lead(self, family: FamilyModel, experts: Sequence[str]) -> None:
        """From now on the family's forwards and signals are drawn with the set of their items, and
        only items of one set share one. Called once, when the adapters are there."""
        if not self.names:
            return
        from peft.tuners.tuners_utils import BaseTunerLayer

        for expert in experts:
            modules = family.modules[expert].modules()
            self._layers[expert] = [m for m in modules if isinstance(m, BaseTunerLayer)]
        self._switch(self.active)
        model: Any = family
        forward, signal, group = model.forward, model.signal, model.group
        model.forward = lambda items: self._with(items, lambda: forward(items))
        model.signal = lambda item, kind: self._with([item], lambda: signal(item, kind))
        model.group = _grouped(group)

    def _with(self, items: Sequence[Item], run: Callable[[], Any]) -> Any:
        wanted = {item.request.lora for item in items}
        assert len(wanted) == 1, wanted
        [loras] = wanted
        if loras != self.active:
            self._switch(loras)
        return run()

    def _switch(self, loras: Loras) -> None:
        found = parse(loras)
        for expert, layers in self._layers.items():
            own = {lora.file: lora.strength for lora in found if lora.expert in ("", expert)}
            for layer in layers:
                _set(layer, own)
        self.active = loras


def _set(layer: BaseTunerLayer, strengths: Mapping[str, float]) -> None:
    """Let these adapters add to a module's output, in this order; none: it is as if there were no
    adapters."""
    layer.enable_adapters(bool(strengths))
    layer.set_adapter([*strengths], inference_mode=True)
    made: Any = layer
    for name, strength in strengths.items():
        made.set_scale(name, strength)


def _grouped(group: Callable[[Request], Hashable]) -> Callable[[Request], Hashable]:
    return lambda request: (group(request), request.lora)


def load_adapters(
    family: str,
    components: Mapping[str, Any],
    experts: Sequence[str],
    files: Mapping[str, Path],
) -> Adapters:
    """Put adapters beside the weights of the transformers among `components`; `files`: by
    `Lora.name`. WeightsError naming the file that cannot be drawn with."""
    for adapter, path in files.items():
        [lora] = parse(adapter)
        try:
            for name, factors in read_lora(family, path, lora.expert, experts).items():
                check_factors(factors, components[name])
                _inject(components[name], lora.file, factors)
        except NoLora as error:
            raise WeightsError(f"{path}: {error}") from error
    return Adapters([*files])


def _inject(transformer: Any, name: str, factors: Factors) -> None:
    """As the pipelines of diffusers do it; a file is there once, whoever names it."""
    if name in getattr(transformer, "peft_config", {}):
        return

    def prefixed(named: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{_PREFIX}.{key}": value for key, value in named.items()}

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are meant
        transformer.load_lora_adapter(
            prefixed(factors.tensors),
            prefix=_PREFIX,
            adapter_name=name,
            network_alphas=prefixed(factors.alphas) or None,
            metadata=prefixed(factors.metadata) if factors.metadata else None,
            low_cpu_mem_usage=True,
        )
    transformer.requires_grad_(False).eval()
