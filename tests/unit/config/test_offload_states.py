"""DiffSynth's four states of a component, as ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from batchgen.config.composing.aliases import resolve_aliases
from batchgen.config.composing.compose import compose_job
from batchgen.errors import ConfigError

JOB = Path(__file__).parents[3] / "jobs" / "demo.yaml"
FP8 = "float8_e4m3fn"


def resolved(states: Mapping[str, Any], **memory: Any) -> tuple[Any, Any]:
    """(what is said of the component, of all memory)."""
    job = {"system": {"components": {"transformer": dict(states)}, "memory": memory}}
    system = resolve_aliases(job)["system"]
    return system["components"]["transformer"], system["memory"]


def devices(offload: str, onload: str, preparing: str = "cuda") -> dict[str, str]:
    values = {"offload": offload, "onload": onload, "preparing": preparing}
    return {f"{state}_device": device for state, device in values.items()}


@pytest.mark.parametrize(
    ("states", "limit", "memory"),
    [
        (devices("cuda", "cuda"), None, "resident"),
        (devices("cpu", "cuda"), None, "model"),
        (devices("cpu", "cpu", "cuda"), None, "model"),  # without a limit all are prepared
        (devices("cpu", "cpu", "cuda"), 12, "stream"),
        (devices("cpu", "cpu", "cpu"), None, "stream"),
        (devices("disk", "cpu", "cuda"), 12, "disk"),
        (devices("disk", "disk", "disk"), None, "disk"),
        ({"offload_device": "cpu"}, None, "model"),  # the others are as computation
    ],
)
def test_places(states: Mapping[str, str], limit: float | None, memory: str) -> None:
    own, whole = resolved(states, vram_limit=limit)
    assert own == {"memory": memory} and whole == {"vram_limit": limit}


def test_precisions() -> None:
    states = devices("cpu", "cpu", "cuda") | {"computation_dtype": "torch.bfloat16"}
    own, memory = resolved(states | {"offload_dtype": FP8, "onload_dtype": FP8}, vram_limit=8)
    assert own == {"memory": "stream", "dtype": "bfloat16"}
    assert memory == {"vram_limit": 8, "store_dtype": "fp8"}
    own, memory = resolved(states | {"offload_dtype": "bfloat16"})
    assert own["dtype"] == "bfloat16" and "store_dtype" not in memory


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({"offload_device": "gpu"}, "offload_device: 'gpu' is not one of cuda, cpu, disk"),
        ({"computation_device": "cpu"}, "computation_device: 'cpu': all compute on the device"),
        ({"onload_dtype": "int8"}, "onload_dtype: 'int8' is not one of bfloat16"),
        ({"onload_dtype": "float16"}, "kept in the precision that they are computed in"),
        ({"offload_device": "cpu", "memory": "stream"}, "say memory model, but memory says"),
    ],
)
def test_what_has_no_counterpart_is_refused(states: Mapping[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=r"system\.components\.transformer") as caught:
        resolved(states)
    assert said in str(caught.value)


def test_they_are_typed_as_keys_and_recorded_as_ours() -> None:
    where = "system.components.text_encoder"
    job = compose_job(JOB, [f"{where}.offload_device=cpu", f"{where}.computation_dtype=float32"])
    own = job.config.system.components["text_encoder"]
    assert (own.memory, own.dtype) == ("model", "float32")
    assert job.resolved["system"]["components"] == {
        "text_encoder": {"memory": "model", "dtype": "float32"}
    }
    with pytest.raises(ConfigError, match="offload_devise"):
        compose_job(JOB, [f"{where}.offload_devise=cpu"])
