"""`bench WHAT`: measure batchgen itself."""

from __future__ import annotations

import argparse
from functools import partial

from batchgen.bench import Bench, bench_named, bench_names
from batchgen.cli.result import OK, Result
from batchgen.cli.verbs import Verbs, add_verb


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    group = verbs.add_parser("bench", help="measure batchgen itself")
    benches = group.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name in bench_names():
        bench = bench_named(name)
        parser = add_verb(
            benches,
            name,
            partial(_run, bench),
            summary=bench.SUMMARY,
            description=bench.DESCRIPTION,
            epilog=bench.EPILOG,
        )
        bench.add_arguments(parser)


def _run(bench: Bench, args: argparse.Namespace) -> Result:
    return Result(OK, bench.run(args))
