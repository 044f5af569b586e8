"""Components that several families' checkpoints have."""

from __future__ import annotations

from batchgen.families.family import Component

FLOW_SCHEDULER = Component(
    name="scheduler",
    kind="scheduler",
    loads="diffusers.FlowMatchEulerDiscreteScheduler",
    stage="denoise",
    dims="scheduler",
)
KL_VAE = Component(name="vae", loads="diffusers.AutoencoderKL", stage="decode", dims="vae")


def encoder(name: str, class_name: str, model_type: str, *layers: str) -> Component:
    """A text encoder of transformers; `layers`: its lists of blocks, which can stream."""
    return Component(
        name=name,
        loads=f"transformers.{class_name}",
        model_type=model_type,
        stage="encode",
        dims=name,
        layers=layers,
    )


def tokenizer(number: str = "") -> Component:
    """The tokenizer of the text encoder with the same number: "", "_2", ..."""
    return Component(
        name=f"tokenizer{number}",
        kind="tokenizer",
        loads="transformers.AutoTokenizer",
        stage="encode",
        dims=f"text_encoder{number}",
    )
