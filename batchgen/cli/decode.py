"""`decode`: make the latents that a run has left into pictures and clips."""

from __future__ import annotations

import argparse

from batchgen.cli.result import Result
from batchgen.cli.runs import add_run_argument, find_run
from batchgen.cli.verbs import Verbs, add_budget_argument, add_overrides, add_verb, overrides_of

EPILOG = """\
examples:
  batchgen run jobs/demo.yaml output.format=latents     draw; nothing is decoded
  batchgen decode latest                                mp4 or png, as the model's own
  batchgen decode RUN output.format=gif slurm=h100x8    (`latest` is then the run above)
  batchgen decode RUN --submit                          start it and return at once

It is a run of its own: `status`, `resume`, `report` ... take its folder. Nothing that was decided
when the rows were drawn can be changed; their files are those of a run that draws and decodes
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    parser = add_verb(
        verbs,
        "decode",
        handle,
        summary="make a run's latents into pictures",
        description="Decode the ok rows of a run that was drawn under output.format=latents.",
        epilog=EPILOG,
    )
    add_run_argument(parser)
    add_overrides(parser, "Hydra overrides: where to decode, and the media that are wanted")
    add_budget_argument(parser)
    parser.add_argument("--submit", action="store_true", help="start it and return at once")


def handle(args: argparse.Namespace) -> Result:
    """Exit code 0 only if every row that has latents is decoded."""
    from batchgen.bars import progress_bars
    from batchgen.cli.run import drive_to_end, started_result
    from batchgen.runner.decode import begin_decoding
    from batchgen.runner.submit import submit

    source, overrides = find_run(args), overrides_of(args)
    with progress_bars():
        begun = begin_decoding(source, overrides, verb="submit" if args.submit else "decode")
    args.made, args.at_stake = str(begun.run.root), True
    begun.note("decode", str(source.root), *overrides)
    if args.submit:
        return started_result(begun.run, submit(begun.run, begun.settings))
    print(f"run      {begun.run.root}", flush=True)
    return drive_to_end(begun.run, begun.settings)
