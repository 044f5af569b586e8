"""FLOPs and weights of video families, against what real models count on the meta device."""

from __future__ import annotations

import pytest
import torch
from test_counts import flops, on_meta, packaged

from batchgen.engine.loading.checkpoint import meta_model
from batchgen.engine.loading.parts import parts
from batchgen.families.family import family_spec
from batchgen.families.ltx import spec as ltx
from batchgen.request import Bucket

BILLIONS = {  # weights of the transformer
    "ltx-video": 1.923,
    "ltx-video-0.9.1": 1.923,
}


@pytest.mark.parametrize("name", BILLIONS)
def test_weights_are_those_of_the_published_model(name: str) -> None:
    model = packaged(name)
    for part in parts(model, torch.bfloat16):
        if part.model_class is None:
            continue
        module = meta_model(part.model_class, part.config)
        count = sum(p.numel() for p in module.parameters())
        predicted = family_spec(model.family).parameters(model, part.name)
        assert predicted == pytest.approx(count, rel=0.02), part.name
        if part.name == "transformer":
            assert count / 1e9 == pytest.approx(BILLIONS[name], rel=0.001)
