"""Tensors of diffusers' transformers by the names, and in the parts, in which the models' makers
publish them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Renames = Iterable[tuple[str, str]]  # patterns, each tried on what those before have made


def as_published(class_name: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """`tensors` of a model of a class of diffusers."""
    return _MAKERS[class_name](dict(tensors))


def _renamed(tensors: Tensors, renames: Renames) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        for pattern, by in renames:
            name = re.sub(pattern, by, name)
        found[name] = tensor
    return found


def _join(tensors: Tensors, parts: Iterable[str], into: str) -> None:
    """Rows of several layers, in one; of each group in which the first layer is found."""
    first, *others = parts
    for name in [name for name in tensors if re.search(rf"\.{re.escape(first)}\.", name)]:
        head, tail = re.split(rf"(?<=\.){re.escape(first)}(?=\.)", name)
        pieces = [tensors.pop(name), *(tensors.pop(f"{head}{one}{tail}") for one in others)]
        tensors[f"{head}{into}{tail}"] = torch.cat(pieces)


def _swap(tensors: Tensors, *heads: str) -> None:
    """Of a modulation: scale and shift are shift and scale."""
    for name in [f"{head}.{leaf}" for head in heads for leaf in ("weight", "bias")]:
        if name in tensors:
            tensors[name] = torch.cat(tensors[name].chunk(2)[::-1])


def _wan(tensors: Tensors) -> Tensors:
    return _renamed(
        tensors,
        (
            (r"^condition_embedder\.(time|text)_embedder\.linear_1", r"\1_embedding.0"),
            (r"^condition_embedder\.(time|text)_embedder\.linear_2", r"\1_embedding.2"),
            (r"^condition_embedder\.time_proj", "time_projection.1"),
            (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
            (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
            (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
            (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
            (r"^condition_embedder\.image_embedder\.pos_embed", "img_emb.emb_pos"),
            (r"\.attn1\.", ".self_attn."),
            (r"\.attn2\.", ".cross_attn."),
            (r"\.to_out\.0\.", ".o."),
            (r"\.to_([qkv])\.", r".\1."),
            (r"\.add_([kv])_proj\.", r".\1_img."),
            (r"\.norm_added_k\.", ".norm_k_img."),
            (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
            (r"\.ffn\.net\.2\.", ".ffn.2."),
            (r"(blocks\.\d+)\.norm2\.", r"\1.norm3."),  # the first of them has no weights
            (r"(blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
            (r"^scale_shift_table", "head.modulation"),
            (r"^proj_out", "head.head"),
        ),
    )


def _flux(tensors: Tensors) -> Tensors:
    _swap(tensors, "norm_out.linear")
    single = {name: tensors.pop(name) for name in list(tensors) if name.startswith("single_")}
    _join(single, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1")
    _join(tensors, ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv")
    _join(tensors, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv")
    renames = (
        (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
        (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
        (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
        (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
        (r"^context_embedder", "txt_in"),
        (r"^x_embedder", "img_in"),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"^proj_out", "final_layer.linear"),
        *_double("norm1.linear", "img_mod.lin", "norm1_context.linear", "txt_mod.lin"),
        (r"\.ff\.net\.0\.proj", ".img_mlp.0"),
        (r"\.ff\.net\.2", ".img_mlp.2"),
        (r"\.ff_context\.net\.0\.proj", ".txt_mlp.0"),
        (r"\.ff_context\.net\.2", ".txt_mlp.2"),
    )
    return _renamed(tensors, renames) | _renamed(
        single,
        (
            (r"^single_transformer_blocks", "single_blocks"),
            (r"\.norm\.linear", ".modulation.lin"),
            (r"\.attn\.norm_q\.weight", ".norm.query_norm.scale"),
            (r"\.attn\.norm_k\.weight", ".norm.key_norm.scale"),
            (r"\.proj_out", ".linear2"),
        ),
    )


def _double(*modulations: str) -> Renames:
    """Of blocks of two streams, as both FLUX have them."""
    pairs = zip(modulations[::2], modulations[1::2], strict=True)
    return (
        (r"^transformer_blocks", "double_blocks"),
        *((rf"\.{re.escape(old)}", f".{new}") for old, new in pairs),
        (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
        (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
        (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
        (r"\.attn\.to_out\.0", ".img_attn.proj"),
        (r"\.attn\.to_add_out", ".txt_attn.proj"),
    )


def _flux2(tensors: Tensors) -> Tensors:
    _swap(tensors, "norm_out.linear")
    _join(tensors, ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.qkv")
    _join(tensors, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.qkv")
    return _renamed(
        tensors,
        (
            (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
            (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
            (r"^context_embedder", "txt_in"),
            (r"^x_embedder", "img_in"),
            (r"^(\w+_stream_modulation\w*)\.linear", r"\1.lin"),
            (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
            (r"^proj_out", "final_layer.linear"),
            (r"^single_transformer_blocks", "single_blocks"),
            (r"(single_blocks\.\d+)\.attn\.to_qkv_mlp_proj", r"\1.linear1"),
            (r"(single_blocks\.\d+)\.attn\.to_out", r"\1.linear2"),
            (r"(single_blocks\.\d+)\.attn\.norm_q\.weight", r"\1.norm.query_norm.scale"),
            (r"(single_blocks\.\d+)\.attn\.norm_k\.weight", r"\1.norm.key_norm.scale"),
            *_double(),
            (r"\.ff\.linear_in", ".img_mlp.0"),
            (r"\.ff\.linear_out", ".img_mlp.2"),
            (r"\.ff_context\.linear_in", ".txt_mlp.0"),
            (r"\.ff_context\.linear_out", ".txt_mlp.2"),
        ),
    )


def _sd3(tensors: Tensors) -> Tensors:
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("transformer_blocks"))
    _swap(tensors, "norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
    for one in ("attn", "attn2"):
        _join(tensors, (f"{one}.to_q", f"{one}.to_k", f"{one}.to_v"), f"x_block.{one}.qkv")
    _join(
        tensors,
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "context_block.attn.qkv",
    )
    return _renamed(
        tensors,
        (
            (r"^transformer_blocks", "joint_blocks"),
            (r"^pos_embed\.pos_embed", "pos_embed"),
            (r"^pos_embed\.proj", "x_embedder.proj"),
            (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
            (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
            (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
            (r"^proj_out", "final_layer.linear"),
            (r"\.norm1\.linear", ".x_block.adaLN_modulation.1"),
            (r"\.norm1_context\.linear", ".context_block.adaLN_modulation.1"),
            (r"\.(attn2?)\.norm_([qk])\.", r".x_block.\1.ln_\2."),
            (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
            (r"\.(attn2?)\.to_out\.0", r".x_block.\1.proj"),
            (r"\.attn\.to_add_out", ".context_block.attn.proj"),
            (r"\.ff\.net\.0\.proj", ".x_block.mlp.fc1"),
            (r"\.ff\.net\.2", ".x_block.mlp.fc2"),
            (r"\.ff_context\.net\.0\.proj", ".context_block.mlp.fc1"),
            (r"\.ff_context\.net\.2", ".context_block.mlp.fc2"),
        ),
    )


def _ltx(tensors: Tensors) -> Tensors:
    return _renamed(
        tensors,
        (
            (r"^proj_in", "patchify_proj"),
            (r"^time_embed", "adaln_single"),
            (r"norm_q", "q_norm"),
            (r"norm_k", "k_norm"),
        ),
    )


def _hunyuan_video(tensors: Tensors) -> Tensors:
    _swap(tensors, "norm_out.linear")
    refiner = {n: tensors.pop(n) for n in list(tensors) if n.startswith("context_embedder")}
    single = {name: tensors.pop(name) for name in list(tensors) if name.startswith("single_")}
    _join(refiner, ("attn.to_q", "attn.to_k", "attn.to_v"), "self_attn_qkv")
    _join(single, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1")
    _join(tensors, ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn_qkv")
    _join(tensors, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn_qkv")
    whole = (
        (r"^x_embedder", "img_in"),
        (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.mlp.0"),
        (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.mlp.2"),
        (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.mlp.0"),
        (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.mlp.2"),
        (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
        (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"^proj_out", "final_layer.linear"),
        (r"^transformer_blocks", "double_blocks"),
        (r"\.norm1\.linear", ".img_mod.linear"),
        (r"\.norm1_context\.linear", ".txt_mod.linear"),
        (r"\.attn\.norm_([qk])\.", r".img_attn_\1_norm."),
        (r"\.attn\.norm_added_([qk])\.", r".txt_attn_\1_norm."),
        (r"\.attn\.to_out\.0", ".img_attn_proj"),
        (r"\.attn\.to_add_out", ".txt_attn_proj"),
        (r"\.ff\.net\.0\.proj", ".img_mlp.fc1"),
        (r"\.ff\.net\.2", ".img_mlp.fc2"),
        (r"\.ff_context\.net\.0\.proj", ".txt_mlp.fc1"),
        (r"\.ff_context\.net\.2", ".txt_mlp.fc2"),
    )
    text = (
        (r"^context_embedder", "txt_in"),
        (r"\.proj_in\.", ".input_embedder."),
        (r"token_refiner\.refiner_blocks", "individual_token_refiner.blocks"),
        (r"time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
        (r"time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
        (r"time_text_embed\.text_embedder", "c_embedder"),
        (r"norm_out\.linear", "adaLN_modulation.1"),
        (r"\.attn\.to_out\.0", ".self_attn_proj"),
        (r"\.ff\.net\.0\.proj", ".mlp.fc1"),
        (r"\.ff\.net\.2", ".mlp.fc2"),
    )
    alone = (
        (r"^single_transformer_blocks", "single_blocks"),
        (r"\.norm\.linear", ".modulation.linear"),
        (r"\.attn\.norm_([qk])\.", r".\1_norm."),
        (r"\.proj_out", ".linear2"),
    )
    return _renamed(tensors, whole) | _renamed(refiner, text) | _renamed(single, alone)


def _z_image(tensors: Tensors) -> Tensors:
    _join(tensors, ("attention.to_q", "attention.to_k", "attention.to_v"), "attention.qkv")
    return _renamed(
        tensors,
        (
            (r"^all_(final_layer|x_embedder)\.2-1\.", r"\1."),
            (r"\.attention\.to_out\.0\.", ".attention.out."),
            (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
        ),
    )


_MAKERS: dict[str, Callable[[Tensors], Tensors]] = {
    "WanTransformer3DModel": _wan,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux2,
    "SD3Transformer2DModel": _sd3,
    "LTXVideoTransformer3DModel": _ltx,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "QwenImageTransformer2DModel": lambda tensors: tensors,
    "ZImageTransformer2DModel": _z_image,
}
