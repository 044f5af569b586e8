"""Checkpoints are loaded whole or refused with the file and the tensor that are wrong."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from toy_engine import Keeper, ListSource, request, small_spec, system, tiny_wan_spec

from batchgen import config as config_package
from batchgen.config.build import build
from batchgen.config.schema import ModelSpec
from batchgen.engine.engine import Engine
from batchgen.engine.loading.checkpoint import meta_model
from batchgen.engine.loading.parts import parts
from batchgen.engine.loading.weights import check_weights, convert_weights, load_components
from batchgen.errors import ConfigError, WeightsError
from batchgen.families.wan import spec as planned
from batchgen.planning.digests import checkpoint_digest, stamps

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def add_token(file: Path, number: int) -> None:
    content = json.loads(file.read_text())
    content["model"]["vocab"]["<more>"] = number
    file.write_text(json.dumps(content))


def pickle_transformer(folder: Path) -> None:
    tensors = load_file(folder / TRANSFORMER)
    torch.save(tensors, folder / "transformer/diffusion_pytorch_model.bin")
    (folder / TRANSFORMER).unlink()


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, r"/model: there is no such folder"),
    "no part": (
        lambda f: shutil.rmtree(f / "vae"),
        r"/model/vae: there is no such folder; the model needs vae",
    ),
    "no config": (
        lambda f: (f / "transformer/config.json").unlink(),
        r"transformer/config\.json: is missing",
    ),
    "config is not JSON": (
        lambda f: (f / "vae/config.json").write_text("{"),
        r"vae/config\.json: is not JSON",
    ),
    "config of another class": (
        lambda f: change_config(f / "transformer/config.json", _class_name="FluxModel"),
        r"transformer/config\.json: is a FluxModel, the model needs WanTransformer3DModel",
    ),
    "other dimensions": (
        lambda f: change_config(f / "transformer/config.json", num_layers=3),
        r"transformer/config\.json: num_layers is 3, but model\.transformer\.num_layers says 2",
    ),
    "no weights": (
        lambda f: (f / TRANSFORMER).unlink(),
        r"/transformer: has no weights; diffusion_pytorch_model\.safetensors or \S+\.index\.json",
    ),
    "torn file": (
        lambda f: (f / TRANSFORMER).write_bytes((f / TRANSFORMER).read_bytes()[:1000]),
        rf"{TRANSFORMER}: cannot be read as safetensors",
    ),
    "missing tensor": (
        lambda f: change_tensors(f / TRANSFORMER, lambda t: t.pop("blocks.1.attn1.to_q.weight")),
        rf"{TRANSFORMER}: missing tensor blocks\.1\.attn1\.to_q\.weight",
    ),
    "extra tensor": (
        lambda f: change_tensors(
            f / "vae/diffusion_pytorch_model.safetensors",
            lambda t: t.update({"decoder.conv_inn.bias": torch.zeros(1)}),
        ),
        r"vae/diffusion_pytorch_model\.safetensors: unexpected tensor decoder\.conv_inn\.bias "
        r"\(did you mean 'decoder\.conv_in\.bias'\?\)",
    ),
    "wrong shape": (
        lambda f: change_tensors(
            f / TRANSFORMER, lambda t: t.update({"proj_out.bias": torch.zeros(63)})
        ),
        rf"{TRANSFORMER}: tensor proj_out\.bias has shape \[63\], the model needs \[64\]",
    ),
    "missing tied tensor": (
        lambda f: change_tensors(
            f / "text_encoder/model.safetensors",
            lambda t: [t.pop(n) for n in list(t) if n.endswith(("shared.weight", "tokens.weight"))],
        ),
        r"text_encoder/model\.safetensors: missing tensors shared\.weight, encoder\.embed_tokens",
    ),
    "pickled": (
        pickle_transformer,
        r"transformer/diffusion_pytorch_model\.bin: pickled weights are not loaded.*"
        r"batchgen weights convert \S+\.bin \S+\.safetensors",
    ),
    "a tokenizer that cannot pad": (
        lambda f: (f / "tokenizer/tokenizer_config.json").write_text("{}"),
        r"/tokenizer: the tokenizer has no pad_token",
    ),
    "a tokenizer of a class that cannot be made of it": (
        lambda f: change_config(
            f / "tokenizer/tokenizer_config.json", tokenizer_class="T5Tokenizer"
        ),
        r"/tokenizer: cannot be loaded as a tokenizer: ",
    ),
    "a tokenizer of another model": (
        lambda f: add_token(f / "tokenizer/tokenizer.json", 288),
        r"/tokenizer: has a token of number 288, but model\.text_encoder\.vocab_size says 288",
    ),
    "no tokenizer": (
        lambda f: (f / "tokenizer/tokenizer.json").unlink(),
        r"/tokenizer: has no tokenizer; one of tokenizer\.json",
    ),
}


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_folder, tmp_path / "model"))


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_that_does_not_fit_is_refused(folder: Path, case: str) -> None:
    spoil, message = CASES[case]
    check_weights(small_spec(str(folder)))
    spoil(folder)
    with pytest.raises(WeightsError, match=message):
        check_weights(small_spec(str(folder)))
    with pytest.raises(WeightsError, match=message):
        Engine.load(small_spec(str(folder)), system(), "cpu")


def test_a_single_pickled_file_is_refused_with_the_command(tmp_path: Path) -> None:
    file = tmp_path / "wan.pth"
    torch.save({"a": torch.zeros(1)}, file)
    command = re.escape(f"batchgen weights convert {file} {tmp_path / 'wan.safetensors'}")
    with pytest.raises(WeightsError, match=command):
        check_weights(small_spec(str(file)))


def shard(folder: Path) -> None:
    """Split the transformer in two files with an index."""
    tensors = load_file(folder / TRANSFORMER)
    (folder / TRANSFORMER).unlink()
    names, home = sorted(tensors), folder / "transformer"
    files = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    owner = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        part = {name: tensors[name] for name in names if owner[name] == file}
        save_file(part, home / file, metadata={"format": "pt"})
    index = home / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": owner}))


def test_sharded_weights_load_and_a_missing_shard_is_named(folder: Path) -> None:
    whole = load_components(small_spec(str(folder)), torch.float32)["transformer"].state_dict()
    shard(folder)
    sharded = load_components(small_spec(str(folder)), torch.float32)["transformer"].state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    gone = folder / "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"
    gone.unlink()
    with pytest.raises(WeightsError, match=re.escape(f"{gone}: is missing")):
        check_weights(small_spec(str(folder)))


@pytest.mark.parametrize("in_shards", [False, True])
def test_a_variant_is_loaded_where_a_component_has_it(folder: Path, in_shards: bool) -> None:
    """As the libraries name it; the text encoder has none, the tensors of the other file are no
    part of it."""
    home, stem = folder / "transformer", "diffusion_pytorch_model"
    if in_shards:
        shard(folder)
        index = home / f"{stem}.safetensors.index.json"
        (home / f"{stem}.safetensors.index.fp16.json").write_text(
            index.read_text().replace(f"{stem}-", f"{stem}.fp16-")
        )
        index.unlink()
        for file in home.glob(f"{stem}-*"):
            file.rename(home / file.name.replace(stem, f"{stem}.fp16"))
    else:
        tensors = load_file(home / f"{stem}.safetensors")
        half = {name: tensor.half() for name, tensor in tensors.items()}
        save_file(half, home / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
    plain, spec = small_spec(str(folder)), small_spec(str(folder), variant="fp16")
    found = load_components(spec, torch.float32)["transformer"].state_dict()
    theirs = WanTransformer3DModel.from_pretrained(home, variant="fp16", dtype=torch.float32)
    assert all(torch.equal(found[name], one) for name, one in theirs.state_dict().items())
    assert stamps(spec)[0][0].endswith(("fp16.safetensors", "fp16-00001-of-00002.safetensors"))
    if in_shards:
        with pytest.raises(WeightsError, match=r"only .*; set model\.variant=fp16"):
            check_weights(plain)
    else:
        digests = [checkpoint_digest(one).weights for one in (plain, spec)]
        assert len({*digests}) == 2
        with pytest.raises(WeightsError, match="no component has files of the variant bf16"):
            check_weights(small_spec(str(folder), variant="bf16"))


def test_a_second_expert_is_not_left_out_in_silence(two_expert_folder: Path) -> None:
    spec = replace(tiny_wan_spec(), weights=str(two_expert_folder))
    with pytest.raises(WeightsError, match=r"model_index\.json: has a component transformer_2"):
        check_weights(spec)


def test_embedded_and_random_weights_pass() -> None:
    check_weights(tiny_wan_spec())
    check_weights(small_spec("random"))


def test_an_unknown_family_is_named_with_the_legal_ones() -> None:
    with pytest.raises(ConfigError, match=r"model\.family: 'wann' is not one of .*wan.*'wan'"):
        check_weights(small_spec(family="wann"))


# -------------------------------------------------------------------------------------- conversion
def test_a_converted_folder_loads_with_the_same_tensors(folder: Path, tmp_path: Path) -> None:
    spec = small_spec(str(folder))
    before = load_components(spec, torch.float32)
    pickle_transformer(folder)
    text = folder / "text_encoder"
    torch.save(load_file(text / "model.safetensors"), text / "pytorch_model.bin")
    (text / "model.safetensors").unlink()
    written = convert_weights(folder, tmp_path / "new")
    assert not [path for path in written if path.suffix == ".bin"]
    after = load_components(small_spec(str(tmp_path / "new")), torch.float32)
    for part in ("text_encoder", "transformer"):
        ours, theirs = after[part].state_dict(), before[part].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_pickled_index_is_renamed_with_its_shards(tmp_path: Path) -> None:
    src = tmp_path / "src"
    src.mkdir()
    torch.save({"a": torch.ones(2)}, src / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (src / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert_weights(src, tmp_path / "dst")
    renamed = json.loads((tmp_path / "dst/model.safetensors.index.json").read_text())
    assert renamed["weight_map"] == {"a": "model-00001-of-00001.safetensors"}
    assert torch.equal(
        load_file(tmp_path / "dst/model-00001-of-00001.safetensors")["a"], torch.ones(2)
    )


def test_a_training_checkpoint_is_unwrapped_and_views_get_their_own_memory(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    torch.save({"step": 3, "state_dict": {"a": base[:4], "b": base}}, tmp_path / "x.ckpt")
    assert convert_weights(tmp_path / "x.ckpt", tmp_path / "x.safetensors") == [
        tmp_path / "x.safetensors"
    ]
    tensors = load_file(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a"], base[:4])
    assert torch.equal(tensors["b"], base)


class Payload:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (Path.touch, (Path("/tmp/batchgen-must-not-exist"),))  # type: ignore[return-value]


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.bin").write_bytes(pickle.dumps({"a": Payload()}, protocol=2))
    with pytest.raises(WeightsError, match=r"evil\.bin: cannot be read as plain tensors"):
        convert_weights(tmp_path / "evil.bin", tmp_path / "evil.safetensors")
    assert not Path("/tmp/batchgen-must-not-exist").exists()
    assert not (tmp_path / "evil.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "holds list, not a state dict"), ({"a": torch.ones(1), "lr": 3}, "lr: not a tensor")],
)
def test_only_state_dicts_are_converted(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=message):
        convert_weights(tmp_path / "x.pt", tmp_path / "x.safetensors")


def test_conversion_overwrites_nothing(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_text("mine")
    with pytest.raises(WeightsError, match="exists already"):
        convert_weights(tmp_path / "x.pt", tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="there is no such file"):
        convert_weights(tmp_path / "y.pt", tmp_path / "z.safetensors")


# ------------------------------------------------------------------------------------------ random
def test_random_weights_are_the_same_every_time_and_draw_finite_frames() -> None:
    spec = small_spec("random")
    first, second = (load_components(spec, torch.float32) for _ in range(2))
    for part in ("text_encoder", "transformer", "vae"):
        ours, theirs = first[part].state_dict(), second[part].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    keeper = Keeper()
    engine = Engine.load(spec, system(), "cpu")
    engine.render(ListSource([request(0, prompt="\u7ea2 \U0001f534", num_steps=8)]), keeper)
    assert keeper.errors == {}
    assert len(set(keeper.frames["row-0"].ravel().tolist())) > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_random_weights_run_in_the_precision_of_the_checkpoint(
    small_folder: Path, dtype: torch.dtype
) -> None:
    """The same modules stay in float32 as when a checkpoint is loaded in half precision."""
    random = load_components(small_spec("random"), dtype)
    loaded = load_components(small_spec(str(small_folder)), dtype)
    for part in ("text_encoder", "transformer", "vae"):
        ours = {name: t.dtype for name, t in random[part].state_dict().items()}
        assert ours == {name: t.dtype for name, t in loaded[part].state_dict().items()}, part


# -------------------------------------------------------------------------------- packaged models
def packaged(name: str) -> ModelSpec:
    """A model as shipped."""
    path = Path(config_package.__file__).parent / "conf" / "model" / f"{name}.yaml"
    return build(ModelSpec, yaml.safe_load(path.read_text()))


def test_the_embedded_weights_fit_the_packaged_model() -> None:
    check_weights(packaged("tiny-wan"))


@pytest.mark.parametrize(("name", "billions"), [("1.3b", 1.42), ("14b", 14.29)])
def test_packaged_dimensions_make_the_published_models(name: str, billions: float) -> None:
    """Wan2.1, built without memory: as many parameters as published."""
    spec = packaged(f"wan2.1-t2v-{name}")
    sizes = {
        part.name: sum(p.numel() for p in meta_model(part.model_class, part.config).parameters())
        for part in parts(spec, torch.bfloat16)
        if part.model_class is not None
    }
    assert sizes["transformer"] / 1e9 == pytest.approx(billions, rel=0.005)
    assert sizes["text_encoder"] / 1e9 == pytest.approx(5.68, rel=0.005)
    assert sizes["vae"] / 1e6 == pytest.approx(127, rel=0.01)
    for name, rel in (("transformer", 0.001), ("text_encoder", 0.001), ("vae", 0.05)):
        assert planned.parameters(spec, name) == pytest.approx(sizes[name], rel=rel)


@pytest.mark.parametrize("weights", ["random", "folder"])
def test_every_component_loaded_is_a_sign_of_life(small_folder: Path, weights: str) -> None:
    spec = small_spec("random" if weights == "random" else str(small_folder))
    signs: list[None] = []
    parts = load_components(spec, torch.float32, lambda: signs.append(None))
    assert len(signs) == len(parts) == 4
