"""Text conditions as the Wan pipeline makes them, but differentiable and in batches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from batchgen.tiny.models import TEXT_LENGTH


def embed(
    tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, prompts: list[str]
) -> Tensor:
    """Encode prompts to ``(n, TEXT_LENGTH, width)``, zero past each prompt's own length.

    The empty prompt is the encoding of the end-of-text token alone. Only the longest prompt's
    length is computed; the attention mask hides the padding of shorter ones.
    """
    batch = tokenizer(
        prompts, padding="longest", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    mask = batch["attention_mask"].to(encoder.device)
    states = encoder(
        input_ids=batch["input_ids"].to(encoder.device), attention_mask=mask
    ).last_hidden_state
    return F.pad(states * mask.unsqueeze(-1), (0, 0, 0, TEXT_LENGTH - states.shape[1]))
