"""`weights convert`: rewrites pickled checkpoints as safetensors."""

from __future__ import annotations

import argparse

from batchgen.cli.result import OK, Result
from batchgen.cli.verbs import Verbs, add_verb, path_argument
from batchgen.errors import naming

EPILOG = """\
examples:
  batchgen weights convert old/model.pth new/diffusion_pytorch_model.safetensors
  batchgen weights convert old-checkpoint/ new-checkpoint/
  batchgen weights convert wan.pth wan.safetensors      for model.files.transformer=wan.safetensors
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    group = verbs.add_parser("weights", help="convert checkpoints to safetensors")
    convert = add_verb(
        group.add_subparsers(dest="what", metavar="WHAT", required=True),
        "convert",
        handle_convert,
        summary=".pth, .pt, .bin or .ckpt to safetensors",
        description="Rewrite pickled weights as safetensors; nothing in the pickle is executed.",
        epilog=EPILOG,
    )
    convert.add_argument("src", metavar="SRC", type=path_argument, help="file or checkpoint folder")
    convert.add_argument("dst", metavar="DST", type=path_argument, help="new file or folder")


def handle_convert(args: argparse.Namespace) -> Result:
    from batchgen.engine.loading.weights import convert_weights

    with naming({"SRC": args.src, "DST": args.dst}):
        written = convert_weights(args.src, args.dst)
    for file in written:
        print(file)
    return Result(OK, {"written": [str(file) for file in written]})
