"""A Slurm on PATH for the states that a real one cannot be made to show.

`FakeSlurm(folder)` puts `sbatch squeue scancel scontrol sacct sinfo srun` into `folder/bin`; each
is this file, and what they know is in `folder/state.json`. `steer` makes a command misbehave;
`work` runs what was submitted, one job after the other, with the variables that Slurm would set.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sacct", "sinfo", "srun")
FOLDER = "FAKE_SLURM"  # variable of the commands
UNREACHABLE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
TIMED_OUT = "Batch job submission failed: Socket timed out on send/recv operation"
BUSY = (
    "Slurm temporarily unable to accept job, sleeping and retrying\n"
    "sbatch: error: Batch job submission failed: Resource temporarily unavailable"
)
POLICY = (
    "AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates "
    "accounting/QOS policy (job submit limit, user's size and/or time limits)"
)
LISTED = ("PENDING", "RUNNING", "COMPLETING", "REQUEUE_HOLD")
TITLES = {
    "%i": "JOBID", "%A": "JOBID", "%F": "ARRAY_JOB_ID", "%j": "NAME", "%T": "STATE",
    "%N": "NODELIST", "%r": "REASON", "%x": "EXC_NODES",
}  # fmt: skip
NODES = ("node1", "node2", "node3", "node4")
Json = dict[str, Any]


@contextmanager
def opened(folder: str) -> Iterator[Json]:
    """The state, alone; written back at the end."""
    path = os.path.join(folder, "state.json")
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        state: Json = json.loads(file.read())
        try:
            yield state
        finally:
            file.truncate(0)
            file.write(json.dumps(state))


# ------------------------------------------------------------------------------------- the commands
def command(name: str, argv: Sequence[str]) -> int:
    """One call of a command of Slurm."""
    folder = os.environ[FOLDER]
    if name == "srun":
        return srun(argv)
    with opened(folder) as state:
        state["calls"].append([name, *argv])
        number = sum(call[0] == name for call in state["calls"])
        rules = [r for r in state["rules"] if r["command"] == name]
        rule = next((r for r in rules if r["first"] <= number <= r["last"]), {})
    said = rule.get("say", "")
    match rule.get("do"):
        case "hang":
            time.sleep(float(said))
        case "fail":
            print(f"{name}: error: {said}" if name == "sbatch" else said, file=sys.stderr)
            return 1
        case "garble":
            print(said)
            return 0
        case "banner":
            print(said)
    with opened(folder) as state:
        text = ANSWERS[name](state, list(argv), float(said) if rule.get("do") == "blind" else 0.0)
    if rule.get("do") == "lose":  # it was done, but nobody hears of it
        print(f"{name}: error: {said}", file=sys.stderr)
        return 1
    if rule.get("do") == "die":
        os.kill(os.getpid(), 9)
    text += "\n" if text else ""
    print(text[: -int(said)] if rule.get("do") == "cut" else text, end="")
    return 0


def sbatch(state: Json, argv: list[str], blind: float) -> str:
    """One job per element; element numbers as `--array` has them."""
    with open(argv[-1]) as file:
        script = file.read()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.M))
    found = re.fullmatch(r"0-(\d+)%(\d+)", options.get("array", ""))
    count = int(found[1]) + 1 if found else 0
    if count > state["max_array_size"]:
        print("sbatch: error: Invalid job array specification", file=sys.stderr)
        sys.exit(1)
    if sum(j["state"] in LISTED for j in state["jobs"]) + max(1, count) > state["max_submit"]:
        print(f"sbatch: error: {POLICY}", file=sys.stderr)
        sys.exit(1)
    array = state["next_id"]
    for element in range(max(1, count)):
        job = {
            "job_id": str(array + element),
            "array": str(array),
            "element": element if count else None,
            "throttle": int(found[2]) if found else 1,
            "name": options["job-name"],
            "script": script,
            "wishes": {k: v for k, v in os.environ.items() if k.startswith("SBATCH_")},
            "after": re.findall(r"\d+", options.get("dependency", "")),
            "state": "PENDING",
            "reason": "Dependency" if "dependency" in options else "Priority",
            "node": "",
            "excluded": (options.get("exclude") or "").strip("'"),
            "at": time.time(),
        }
        state["jobs"].append(job)
    state["next_id"] += max(1, count)
    return str(array) if "--parsable" in argv else f"Submitted batch job {array}"


def squeue(state: Json, argv: list[str], blind: float) -> str:
    """With `--name=a,b` or `--jobs=ARRAY`, and a `--format` of the fields used here."""
    given = dict(word.split("=", 1) for word in argv if "=" in word)
    key, chosen = ("array", "--jobs") if "--jobs" in given else ("name", "--name")
    states = given.get("--states", ",".join(LISTED)).split(",")
    wanted = given["--format"]
    listed = [
        job
        for job in state["jobs"]
        if job[key] in given[chosen].split(",")
        and job["state"] in states
        and time.time() - job["at"] >= blind
    ]
    if "--jobs" in given and not any(j["array"] == given["--jobs"] for j in state["jobs"]):
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        sys.exit(1)
    head = [] if "--noheader" in argv else [re.sub("%[a-zA-Z]", lambda m: TITLES[m[0]], wanted)]
    return "\n".join([*head, *(_filled(wanted, job) for job in listed)])


def _filled(wanted: str, job: Json) -> str:
    fields = {
        "%i": _task_id(job), "%A": job["job_id"], "%F": job["array"], "%j": job["name"],
        "%T": job["state"], "%N": job["node"], "%r": job["reason"], "%x": job["excluded"],
    }  # fmt: skip
    return re.sub(r"%[a-zA-Z]", lambda match: str(fields[match[0]]), wanted)


def _task_id(job: Json) -> str:
    return job["array"] if job["element"] is None else f"{job['array']}_{job['element']}"


def scancel(state: Json, argv: list[str], blind: float) -> str:
    """By `--name`, or by task ids; `--state=PENDING` spares what runs."""
    names = [a.partition("=")[2] for a in argv if a.startswith("--name=")]
    ids = [a for a in argv if not a.startswith("--")]
    for job in state["jobs"]:
        hit = job["name"] in names or _task_id(job) in ids or job["array"] in ids
        spared = "--state=PENDING" in argv and job["state"] != "PENDING"
        if hit and not spared and job["state"] in LISTED:
            job["state"] = "CANCELLED"
    return ""


def scontrol(state: Json, argv: list[str], blind: float) -> str:
    if argv == ["show", "config"]:
        return (
            f"ClusterName             = fake\nMaxArraySize            = {state['max_array_size']}"
        )
    if argv[:2] == ["show", "hostnames"]:
        return "\n".join(_hosts(argv[2]))
    if argv[0] == "update":
        _update(state, argv[1:])
    return ""


def _update(state: Json, argv: list[str]) -> None:
    """Of an array only what is pending is changed, and exit status 1 tells of the rest."""
    if wrong := [word for word in argv if re.match(r"\w+[+-]=", word)]:
        print(f"scontrol: error: Option {wrong[0]} does not accept [+|-]= syntax", file=sys.stderr)
        sys.exit(1)
    wanted = dict(word.split("=") for word in argv)
    jobs = [j for j in state["jobs"] if j["array"] == wanted["JobId"] and j["state"] in LISTED]
    if "ArrayTaskThrottle" in wanted:
        for job in jobs:
            job["throttle"] = int(wanted["ArrayTaskThrottle"])
    if "ExcNodeList" in wanted:
        hosts = _hosts(wanted["ExcNodeList"])
        told = "No error" if {*hosts} <= {*NODES} else "Invalid node name specified"
        for job in jobs:
            if job["state"] == "PENDING" and told == "No error":
                job["excluded"] = ",".join(hosts)
        begun = "Job is no longer pending execution"
        said = [(_task_id(job), told if job["state"] == "PENDING" else begun) for job in jobs]
        if any(text != "No error" for _, text in said):
            print(*(f"{task}: {text}" for task, text in said), sep="\n", file=sys.stderr)
            sys.exit(1)


def _hosts(text: str) -> list[str]:
    """The nodes of a list such as node1,node[3-4]."""
    found = []
    for name, numbers in re.findall(r"(\w+)(?:\[([-,\d]+)\])?", text):
        for part in numbers.split(",") if numbers else ():
            first, _, last = part.partition("-")
            found += [f"{name}{k}" for k in range(int(first), int(last or first) + 1)]
        found += [] if numbers else [name]
    return found


def sacct(state: Json, argv: list[str], blind: float) -> str:
    old = [job for job in state["jobs"] if time.time() - job["at"] >= blind]
    return "\n".join(f"{_task_id(job)}|{job['state']}" for job in old)


def sinfo(state: Json, argv: list[str], blind: float) -> str:
    """With `--Node`, one line for each in a `--format`."""
    if "--Node" in argv:
        wanted = next(a.partition("=")[2] for a in argv if a.startswith("--format="))
        wanted = wanted.replace("%P", "main*")
        told = state["nodes"].items()
        return "\n".join(wanted.replace("%N", name).replace("%t", how) for name, how in told)
    return "main* up infinite 4 idle node[1-4]"


ANSWERS: dict[str, Callable[[Json, list[str], float], str]] = {
    "sbatch": sbatch, "squeue": squeue, "scancel": scancel, "scontrol": scontrol,
    "sacct": sacct, "sinfo": sinfo,
}  # fmt: skip


def srun(argv: Sequence[str]) -> int:
    """The command behind the options, as the one rank of its task."""
    words = list(argv)
    while words[0].startswith("-"):
        del words[: 2 if words[0] in ("--output", "--error") else 1]
    os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}
    os.execvp(words[0], words)


# ---------------------------------------------------------------------------------------- for tests
class FakeSlurm:
    """Slurm as a folder; `bin` belongs in front of PATH and `env` into the environment."""

    def __init__(self, folder: Any, max_array_size: int = 1001) -> None:
        self.folder = str(folder)
        self.bin = os.path.join(self.folder, "bin")
        self.env = {FOLDER: self.folder, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        os.makedirs(self.bin)
        import warm  # not by the commands: they start often

        empty = {"next_id": 1001, "jobs": [], "calls": [], "rules": [], "max_submit": 10**9}
        nodes = dict.fromkeys(NODES, "idle")
        with open(os.path.join(self.folder, "state.json"), "w") as file:
            json.dump({**empty, "max_array_size": max_array_size, "nodes": nodes}, file)
        for name in COMMANDS:
            path = os.path.join(self.bin, name)
            with open(path, "w") as file:
                file.write(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} {name} "$@"\n')
            os.chmod(path, 0o755)
        warm.stand_in(os.path.join(self.bin, "python"))

    def steer(
        self, name: str, do: str, say: object = "", *, skip: int = 0, calls: int = 10**9
    ) -> None:
        """From now on, but for the next `skip` calls, `calls` calls of a command `do`: `fail`,
        `hang` (seconds), `garble`, `banner` (and then work), `cut` (characters off the end),
        `blind` (knows nothing younger than so many seconds), `lose` (works but says it did not),
        `die` (works and is killed). The rule given last goes first."""
        with opened(self.folder) as state:
            first = sum(call[0] == name for call in state["calls"]) + skip + 1
            rule = {
                "command": name,
                "do": do,
                "say": say,
                "first": first,
                "last": first + calls - 1,
            }
            state["rules"].insert(0, rule)

    def heal(self) -> None:
        """Every command behaves."""
        with opened(self.folder) as state:
            state["rules"] = []

    def limit(self, submitted: int) -> None:
        """How many jobs may be listed at once; array elements count."""
        with opened(self.folder) as state:
            state["max_submit"] = submitted

    def calls(self, name: str) -> int:
        with opened(self.folder) as state:
            return sum(call[0] == name for call in state["calls"])

    def asked(self) -> list[list[str]]:
        """All calls so far, with their arguments."""
        with opened(self.folder) as state:
            return list(state["calls"])

    def jobs(self, name: str = "") -> list[Json]:
        """All that was ever accepted, of one job name or all, in order."""
        with opened(self.folder) as state:
            return [job for job in state["jobs"] if name in ("", job["name"])]

    def set_node(self, name: str, how: str) -> None:
        """What sinfo says of a node: idle, mix, drain, down* ..."""
        with opened(self.folder) as state:
            state["nodes"][name] = how

    def change(self, job_id: str, **values: str) -> None:
        """A job's `state`, `reason`, `node`."""
        with opened(self.folder) as state:
            next(job for job in state["jobs"] if job["job_id"] == job_id).update(values)

    def work(self, name: str = "") -> int:
        """Run what is ready, of one job name or all, until nothing is; how many jobs ran."""
        ran = 0
        while job := next((j for j in self.jobs(name) if self._is_ready(j)), None):
            self._run(job)
            ran += 1
        return ran

    def _is_ready(self, job: Json) -> bool:
        ended = all(j["state"] not in LISTED for j in self.jobs() if j["array"] in job["after"])
        return ended and job["state"] == "PENDING" and "held" not in job["reason"].lower()

    def _run(self, job: Json) -> None:
        import subprocess

        import warm

        node = next(node for node in NODES if node not in _hosts(job["excluded"]))
        self.change(job["job_id"], state="RUNNING", node=node, reason="None")
        env = {
            **os.environ, **self.env, "SLURM_JOB_ID": job["job_id"], "SLURMD_NODENAME": node,
            "SLURM_JOB_NAME": job["name"], warm.ADDRESS: warm.server(),
        }  # fmt: skip
        if job["element"] is not None:
            env |= {"SLURM_ARRAY_JOB_ID": job["array"], "SLURM_ARRAY_TASK_ID": str(job["element"])}
        script = job["script"].replace(f"{sys.executable} -u", f"{self.bin}/python -u")
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
        state = "FAILED" if done.returncode else "COMPLETED"
        self.change(job["job_id"], state=state, said=done.stdout + done.stderr)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1], sys.argv[2:]))
