"""`slurm init` writes a profile from what the cluster says; `slurm check` tests whether a profile
works."""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from batchgen.cli.result import OK, ROWS_LEFT, Result
from batchgen.cli.verbs import Verbs, add_verb, path_argument
from batchgen.errors import UsageError, naming
from batchgen.paths import at_home

if TYPE_CHECKING:
    from batchgen.config.schema import DeviceConfig, SlurmConfig
    from batchgen.scheduler.setup.check import Checked
    from batchgen.scheduler.setup.findings import CheckLine
    from batchgen.scheduler.setup.profiles import Choice

FOLDER = Path("slurm")
INIT = """\
examples:
  batchgen slurm init mycluster                      writes slurm/mycluster.yaml
  batchgen slurm init long --partition long
"""
CHECK = """\
examples:
  batchgen slurm check mycluster                     on two nodes, where runs are kept
  batchgen slurm check mycluster --write             and note the measured device figures
  batchgen slurm check mycluster slurm.partition=debug slurm.timeout_min=5

exit codes: 0 the profile works (warnings are printed); 1 something failed; 2 usage
"""


def add_parser(verbs: Verbs[argparse.ArgumentParser]) -> None:
    group = verbs.add_parser("slurm", help="make a cluster profile, try it on the cluster")
    whats = group.add_subparsers(dest="what", metavar="WHAT", required=True)
    init = add_verb(
        whats,
        "init",
        handle_init,
        summary="write a profile from what the cluster says of itself",
        description="Read partitions, GPUs, limits and preemption rules; write slurm/NAME.yaml.",
        epilog=INIT,
    )
    init.add_argument("name", metavar="NAME", help="name of the profile: slurm=NAME")
    init.add_argument("--partition", metavar="P", help="(default: the default one, or with GPUs)")
    init.add_argument("--force", action="store_true", help="replace a profile that is there")
    init.add_argument("--folder", type=path_argument, default=FOLDER, help="(default: slurm)")
    check = add_verb(
        whats,
        "check",
        handle_check,
        summary="try a profile with a short job on two nodes",
        description="Submit a probe with the parameters of real tasks: environment, ranks, GPUs, "
        "clocks,\nthe shared folder as two nodes see it, sbatch from a node; measure the devices.",
        epilog=CHECK,
    )
    check.add_argument("profile", metavar="PROFILE", help="as in slurm=PROFILE")
    check.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of slurm.*")
    check.add_argument("--root", default="outputs", help="where runs are kept (default: outputs)")
    check.add_argument("--nodes", type=int, choices=(1, 2), default=2, help="(default: 2)")
    check.add_argument(
        "--wait", type=float, default=15.0, metavar="MIN", help="for the job to start (default: 15)"
    )
    check.add_argument(
        "--write", action="store_true", help="put the measured figures into the profile"
    )


# --------------------------------------------------------------------------------------------- init
def handle_init(args: argparse.Namespace) -> Result:
    from batchgen.config.userfiles import packaged
    from batchgen.durable import write_bytes_atomic
    from batchgen.scheduler.commands import refuse_absent
    from batchgen.scheduler.setup.info import read_cluster
    from batchgen.scheduler.setup.profiles import choose, profile_text

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", args.name):
        raise UsageError(f"NAME {args.name!r}: letters, digits and . _ - make a file name")
    if packaged(f"slurm/{args.name}"):
        raise UsageError(f"NAME {args.name!r}: is a packaged profile; take another name")
    file: Path = args.folder / f"{args.name}.yaml"
    if file.exists() and not args.force:
        raise UsageError(f"{file} is there already; --force replaces it")
    refuse_absent()
    info = read_cluster()
    choice = choose(info, args.partition)
    with naming({"--folder": file.parent}):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(file, profile_text(args.name, info, choice).encode())
    _print_choice(choice)
    print(f"\nwritten   {file}\nnext      batchgen slurm check {args.name}")
    data = {
        "profile": str(file),
        "cluster": info.limits.cluster,
        "partition": choice.partition.name,
        "ranks_per_node": choice.ranks_per_node,
        "max_array_size": info.limits.max_array_size,
        "notes": list(choice.notes),
    }
    return Result(OK, data)


def _print_choice(choice: Choice) -> None:
    from batchgen.scheduler.setup.profiles import describe

    ranks, cpus = choice.ranks_per_node, choice.cpus_per_rank
    print(f"partition {choice.partition.name}: {choice.group.nodes} x {describe(choice.group)}")
    print(f"element   1 node, {ranks} ranks of {cpus} CPUs, {choice.mem_gb} GB", end="")
    print(f", {choice.timeout_min} min; {choice.nodes} at once")
    for note in choice.notes:
        print(f"look at   {note}")


# -------------------------------------------------------------------------------------------- check
def handle_check(args: argparse.Namespace) -> Result:
    from batchgen.scheduler.commands import refuse_absent
    from batchgen.scheduler.setup.check import check
    from batchgen.scheduler.setup.findings import measured_device

    slurm = _profile(args.profile, args.overrides)
    file = FOLDER / f"{args.profile}.yaml"
    if args.write and not file.is_file():
        raise UsageError(f"--write: there is no {file} below the current folder")
    refuse_absent(f"see its scripts: `batchgen submit JOB slurm={args.profile} --dry-run`")
    with naming({"--root": args.root}):
        checked = check(slurm, at_home(args.root), nodes=args.nodes, wait_s=60 * args.wait)
    _print_findings(checked.findings)
    device = measured_device(slurm, checked.ranks)
    if device is not None:
        _give_figures(device, file if args.write else None)
    if checked.folder is not None:
        print(f"\nThe probe's files and logs are in {checked.folder}")
    return Result(ROWS_LEFT if checked.failed else OK, _data(checked, device))


def _profile(name: str, overrides: list[str]) -> SlurmConfig:
    """The profile as a job would get it; ConfigError if it does not exist or has a wrong key."""
    from batchgen.config.composing.compose import compose_job
    from batchgen.runner.executors import check_profile

    wrong = [word for word in overrides if not word.startswith("slurm.")]
    if wrong:
        raise UsageError(f"{wrong[0]}: only keys of slurm.* can be set here")
    with tempfile.TemporaryDirectory(prefix="batchgen-") as folder:
        job = Path(folder) / "job" / "check.yaml"
        job.parent.mkdir()
        job.write_text("defaults: [base, {model: tiny-wan}, _self_]\nmanifest: none\n")
        slurm = compose_job(job, [f"slurm={name}", *overrides]).config.slurm
    if slurm.executor != "slurm":
        raise UsageError(f"the profile {name!r} has executor {slurm.executor!r}: no Slurm to try")
    check_profile(slurm)
    return slurm


def _print_findings(findings: tuple[CheckLine, ...]) -> None:
    width = max(len(finding.what) for finding in findings)
    print()
    for finding in findings:
        print(f"{finding.verdict:<5} {finding.what:<{width}}  {finding.said}")
        if finding.advice:
            print(f"{'':<5} {'':<{width}}  -> {finding.advice}")


def _give_figures(device: DeviceConfig, file: Path | None) -> None:
    from batchgen.durable import write_bytes_atomic
    from batchgen.scheduler.setup.findings import device_block, with_device

    if file is None:
        print(
            f"\nMeasured, for the profile (--write puts it there):\n{device_block(device)}", end=""
        )
        return
    with naming({"--write": file}):
        write_bytes_atomic(file, with_device(file.read_text(encoding="utf-8"), device).encode())
    print(f"\nThe measured device figures are in {file}")


def _data(checked: Checked, device: DeviceConfig | None) -> dict[str, object]:
    return {
        "ok": not checked.failed,
        "findings": [asdict(finding) for finding in checked.findings],
        "device": asdict(device) if device else None,
        "folder": str(checked.folder) if checked.folder else None,
    }
