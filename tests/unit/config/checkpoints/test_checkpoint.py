"""What is wrong with a checkpoint folder is said by name before anything is made of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toy_engine import tiny_wan_spec

from batchgen.config.checkpoints.checkpoint import check_checkpoint
from batchgen.config.checkpoints.detect import detect
from batchgen.config.schema import ModelSpec
from batchgen.errors import WeightsError
from batchgen.planning.digests import checkpoint_digest

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 1\n"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
INDEX = f"{TEXT}.index.json"


@pytest.fixture
def model(tmp_path: Path) -> ModelSpec:
    """The embedded model, its checkpoint copied to where a test may change it."""
    spec = tiny_wan_spec()
    assert spec.weights_folder is not None
    return replace(spec, weights=str(shutil.copytree(spec.weights_folder, tmp_path / "w")))


def change(name: str, **values: object) -> Callable[[Path], object]:
    """Change a JSON file."""

    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return spoil


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def rename(name: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename((folder / name).with_name(new))


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def dead_link(name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("../../blobs/abc")

    return spoil


def shards(folder: Path, count: int = 2) -> dict[str, str]:
    """Split the text encoder; returns the index's map."""
    tensors = load_file(folder / TEXT)
    home = {
        name: f"model-{i % count + 1:05}-of-{count:05}.safetensors"
        for i, name in enumerate(sorted(tensors))
    }
    for file in {*home.values()}:
        part = {name: tensors[name] for name in tensors if home[name] == file}
        save_file(part, folder / "text_encoder" / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": home}))
    return home


def sharded(spoil: Callable[[Path, dict[str, str]], object]) -> Callable[[Path], object]:
    """A split text encoder without the whole file, then `spoil` it and its index's map."""

    def both(folder: Path) -> None:
        home = shards(folder)
        (folder / TEXT).unlink()
        spoil(folder, home)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": home}))

    return both


def add(name: str, tensor: str, values: np.ndarray) -> Callable[[Path], object]:
    """A tensor in a file, in place of the one of its name."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / name) | {tensor: values}
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return spoil


def add_twin(folder: Path, home: dict[str, str]) -> None:
    """One tensor in both shards."""
    name = min(home)
    other = next(file for file in home.values() if file != home[name])
    tensors = load_file(folder / "text_encoder" / other)
    tensors[name] = np.zeros(1, np.float32)
    save_file(tensors, folder / "text_encoder" / other, metadata={"format": "pt"})


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    # ------------------------------------------------------------------------------ tensors
    "index and whole file": (
        shards,
        r"text_encoder: has both model\.safetensors and model\.safetensors\.index\.json",
    ),
    "a shard is missing": (
        sharded(lambda f, home: (f / "text_encoder" / min(home.values())).unlink()),
        r"model-00001-of-00002\.safetensors: is missing \(named by model\.safetensors\.index\.json",
    ),
    "8 bits with scales": (
        add(TRANSFORMER, "blocks.0.attn1.to_q.weight_scale", np.ones(1, np.float32)),
        r"transformer/\S+\.safetensors: has blocks\.0\.attn1\.to_q\.weight_scale: its weights are",
    ),
    "whole numbers for weights": (
        add(TEXT, "shared.weight", np.zeros((95, 128), np.int8)),
        r"text_encoder/model\.safetensors: shared\.weight is stored as I8: not served; legal: a",
    ),
    "a tensor twice": (sharded(add_twin), r"-of-00002\.safetensors: tensor \S+ is in model-0000"),
    "an index that misses a tensor": (
        sharded(lambda f, home: home.pop(min(home))),
        r"index\.json: says that tensor \S+ is in None, found in model-0000",
    ),
    "an index that leads out": (
        sharded(lambda f, home: home.update({min(home): "../vae/config.json"})),
        r"weight_map names '\.\./vae/config\.json'; it must be a file beside it",
    ),
    "an index without metadata": (
        lambda f: (shards(f), (f / TEXT).unlink(), (f / INDEX).write_text('{"weight_map": {}}')),
        r"index\.json: has no readable weight_map",
    ),
    "a variant alone": (
        rename(TRANSFORMER, "diffusion_pytorch_model.fp16.safetensors"),
        r"has no diffusion_pytorch_model\.safetensors, only diffusion_pytorch_model\.fp16\.safe.*"
        r"copy or link it as diffusion_pytorch_model\.safetensors",
    ),
    "the name of another library": (
        rename(TRANSFORMER, "model.safetensors"),
        r"transformer: has no diffusion_pytorch_model\.safetensors, only model\.safetensors",
    ),
    "a tokenizer that is a pipe": (
        lambda f: (
            (f / "tokenizer" / "tokenizer.json").unlink(),
            os.mkfifo(f / "tokenizer" / "tokenizer.json"),
        ),
        r"tokenizer/tokenizer\.json: is no plain file",
    ),
    "a number in quotes": (
        change("transformer/config.json", num_layers="6"),
        r"num_layers is '6', but model\.transformer\.num_layers says 6",
    ),
    "tensors: pointer": (write(TRANSFORMER, POINTER), rf"{TRANSFORMER}: is a git-lfs pointer"),
    "tensors: empty": (write(TRANSFORMER, ""), rf"{TRANSFORMER}: is empty"),
    "tensors: cut off": (
        lambda f: (f / TRANSFORMER).write_bytes((f / TRANSFORMER).read_bytes()[:-1]),
        rf"{TRANSFORMER}: cannot be read as safetensors: .*cut off",
    ),
    "tensors: something else": (write(TRANSFORMER, "<html>" * 9), r"cannot be read as safetensors"),
    "tensors: a dead link": (dead_link(TRANSFORMER), r"is a link to \.\./\.\./blobs/abc, where"),
    "tensors: a folder": (
        lambda f: ((f / TRANSFORMER).unlink(), (f / TRANSFORMER).mkdir()),
        rf"{TRANSFORMER}: is no plain file",
    ),
    # ------------------------------------------------------------------------ configurations
    "config is missing": (remove("vae/config.json"), r"vae/config\.json: is missing"),
    "config: pointer": (write("vae/config.json", POINTER), r"vae/config\.json: is a git-lfs"),
    "config: a list": (write("vae/config.json", "[1]"), r"vae/config\.json: is not a JSON object"),
    "config: Latin-1": (
        lambda f: (f / "vae/config.json").write_bytes(b'{"a": "\xfc"}'),
        r"vae/config\.json: is not JSON",
    ),
    "config of another class": (
        change("vae/config.json", _class_name="AutoencoderKL"),
        r"vae/config\.json: is a AutoencoderKL, the model needs AutoencoderKLWan",
    ),
    "config of another text encoder": (
        change("text_encoder/config.json", model_type="t5"),
        r"text_encoder/config\.json: is a t5, the model needs umt5",
    ),
    "config that leads elsewhere": (
        change("text_encoder/config.json", transformers_weights="other.safetensors"),
        r"text_encoder/config\.json: transformers_weights is not served",
    ),
    "quantised": (
        change("transformer/config.json", quantization_config={"quant_method": "x"}),
        r"transformer/config\.json: quantization_config is not served",
    ),
    "scheduler is missing": (
        remove("scheduler/scheduler_config.json"),
        r"scheduler/scheduler_config\.json: is missing",
    ),
    "no scheduler": (
        lambda f: shutil.rmtree(f / "scheduler"),
        r"scheduler: there is no such folder; the model needs scheduler",
    ),
    "scheduler of another kind": (
        change("scheduler/scheduler_config.json", prediction_type="epsilon"),
        r"scheduler_config\.json: prediction_type is 'epsilon'; legal: 'flow_prediction'",
    ),
    "an adapter": (
        write("text_encoder/adapter_config.json", "{}"),
        r"adapter_config\.json: an adapter in the folder is not served",
    ),
    # -------------------------------------------------------------------------------- tokenizer
    "tokenizer: pointer": (
        write("tokenizer/tokenizer.json", POINTER),
        r"tokenizer/tokenizer\.json: is a git-lfs pointer",
    ),
    "tokenizer: nothing in it": (
        write("tokenizer/tokenizer.json", "{}"),
        r"tokenizer/tokenizer\.json: is not a tokenizer: Model missing",
    ),
    "tokenizer: empty": (write("tokenizer/tokenizer.json", ""), r"tokenizer\.json: is empty"),
    "tokenizer: its settings": (
        write("tokenizer/tokenizer_config.json", POINTER),
        r"tokenizer/tokenizer_config\.json: is a git-lfs pointer",
    ),
    "tokenizer of several versions": (
        change("tokenizer/tokenizer_config.json", fast_tokenizer_files=["tokenizer.5.json"]),
        r"tokenizer_config\.json: fast_tokenizer_files is not served",
    ),
    "tokenizer is missing": (
        remove("tokenizer/tokenizer.json"),
        r"tokenizer: has no tokenizer; one of tokenizer\.json, spiece\.model",
    ),
    # ------------------------------------------------------------------------------- the folder
    "a second transformer": (
        change("model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]),
        r"model_index\.json: has a component transformer_2, which model\.family wan does not load",
    ),
    "a second transformer, no index": (
        lambda f: (
            (f / "model_index.json").unlink(),
            shutil.copytree(f / "transformer", f / "transformer_2"),
        ),
        r"/w: has a component transformer_2, which model\.family wan does not load",
    ),
    "another pipeline's switch": (
        change("model_index.json", expand_timesteps=True),
        r"model_index\.json: expand_timesteps is True, which model\.family wan does not serve",
    ),
    "index: pointer": (write("model_index.json", POINTER), r"model_index\.json: is a git-lfs"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_that_cannot_be_meant_is_refused(model: ModelSpec, case: str) -> None:
    spoil, message = CASES[case]
    check_checkpoint(model)
    spoil(Path(model.weights))
    with pytest.raises(WeightsError, match=message):
        check_checkpoint(model)


def test_a_tokenizer_that_needs_another_package_names_it(model: ModelSpec) -> None:
    if find_spec("sentencepiece") is not None:
        pytest.skip("sentencepiece is installed here")
    rename("tokenizer/tokenizer.json", "spiece.model")(Path(model.weights))
    with pytest.raises(WeightsError, match=r"spiece\.model: is read with .*pip install sentencepi"):
        check_checkpoint(model)


def test_the_files_of_a_split_component_are_those_of_its_index(model: ModelSpec) -> None:
    folder = Path(model.weights)
    sharded(lambda f, home: None)(folder)
    (folder / "text_encoder/model-00009-of-00009.safetensors").write_text("left over")
    names = [file.name for file in check_checkpoint(model)["text_encoder"]]
    assert names == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"
    ]  # fmt: skip


def test_an_empty_slot_of_the_index_is_no_component(model: ModelSpec) -> None:
    index = json.loads((Path(model.weights) / "model_index.json").read_text())
    assert index["transformer_2"] == [None, None]
    assert set(check_checkpoint(model)) == {
        "transformer", "text_encoder", "vae", "scheduler", "tokenizer"
    }  # fmt: skip


def at(model: ModelSpec, folder: Path) -> ModelSpec:
    return replace(model, weights=str(folder))


def as_found(folder: Path) -> object:
    """By `model=auto`."""
    return detect({"family": "auto", "weights": str(folder)}, folder)


def test_the_folder_that_was_meant_is_named(model: ModelSpec, tmp_path: Path) -> None:
    folder = Path(model.weights)
    with pytest.raises(WeightsError, match=rf"one component of .*model\.weights={folder}$"):
        check_checkpoint(at(model, folder / "transformer"))
    with pytest.raises(WeightsError, match=rf"safetensors: is a file; .*model\.weights={folder}$"):
        check_checkpoint(at(model, folder / TRANSFORMER))
    alone = Path(shutil.copy(folder / TRANSFORMER, tmp_path / "wan.safetensors"))
    with pytest.raises(WeightsError, match=rf"by itself is model\.files\.transformer={alone} bes"):
        check_checkpoint(at(model, alone))
    with pytest.raises(WeightsError, match=rf"holds checkpoints; .*model\.weights={folder}$"):
        check_checkpoint(at(model, folder.parent))
    with pytest.raises(WeightsError, match=r"xxx: cannot be read: File name too long"):
        check_checkpoint(at(model, tmp_path / ("x" * 300)))
    home = tmp_path / "high_noise_model"
    home.mkdir()
    shutil.move(alone, home)
    with pytest.raises(WeightsError, match=rf"model\.files\.transformer={home}/wan\.safetensors b"):
        check_checkpoint(at(model, home))
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(WeightsError, match="link: is a link to gone, where there is nothing"):
        check_checkpoint(at(model, tmp_path / "link"))
    hub = tmp_path / "hub"
    root = hub / "models--org--name"
    for commit in ("aaa", "bbb"):
        shutil.copytree(folder, root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("bbb")
    for place in (root, root / "snapshots", hub):
        for look in (lambda at_: check_checkpoint(at(model, at_)), as_found):
            with pytest.raises(WeightsError, match=rf"model\.weights={root}/snapshots/bbb$"):
                look(place)
    snapshot, blobs = root / "snapshots" / "bbb", root / "blobs"
    blobs.mkdir()
    for number, file in enumerate([path for path in snapshot.rglob("*") if path.is_file()]):
        file.rename(blobs / f"{number:064x}")  # as the hub keeps them
        file.symlink_to(os.path.relpath(blobs / f"{number:064x}", file.parent))
    check_checkpoint(at(model, snapshot))
    assert checkpoint_digest(at(model, snapshot)) == checkpoint_digest(model)
