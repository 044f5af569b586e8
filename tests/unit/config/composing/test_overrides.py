"""What people type as an override: taken as text where the key is text, else answered."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from batchgen.config.composing.compose import compose_job, recompose, write_hydra
from batchgen.config.composing.overrides import verbatim
from batchgen.errors import ConfigError, UsageError


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text("defaults: [base, {model: tiny-wan}, _self_]\nmanifest: rows.parquet\n")
    return path


def value_of(job: Path, *overrides: str, key: str = "") -> object:
    """What the last override sets; the stored configuration says the same again."""
    composed = compose_job(job, overrides)
    assert recompose(composed.resolved, [], composed.hydra).config == composed.config
    assert composed.overrides == overrides
    value: object = composed.resolved
    for part in (key or overrides[-1].partition("=")[0].strip("+~ ")).split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ('row_defaults.negative_prompt=低质量, blurry (2:1) [x] {y} = ~; & "q" it\'s', ...),
        ("row_defaults.negative_prompt=one\ntwo", ...),
        ("row_defaults.negative_prompt=[blurry]", ...),
        ("row_defaults.negative_prompt='a, b'", "a, b"),
        ("row_defaults.negative_prompt='unfinished", ...),
        ("row_defaults.negative_prompt=null", None),
        ("output.root_dir=x=1/ü $(x) `y` #%j", ...),
        ("output.root_dir=back\\slash", ...),
        ("slurm.exclude=node[01-04]", ...),
        ("slurm.exclude=n1,n[2-3]", ...),
        ("slurm.account=12345", ...),
        ("slurm.extra.comment=12", ...),
        ("slurm.extra.contiguous=true", True),
        ("slurm.python=apptainer exec 'my image.sif' python", ...),
        ("tag=20240101", ...),
        ("tag=007", ...),
        ("tag=1_000", ...),
        ("tag=1e5", ...),
        ("tag=.5", ...),
        ("carry_columns=[1,007, a b,1e5,true]", ["1", "007", "a b", "1e5", "true"]),
        ("carry_columns=['1', 'b']", ["1", "b"]),
        ("tag=true", ...),
        ("tag='null'", "null"),
        ("tag=", ""),
        ("+tag=x", "x"),
        ("++row_defaults.num_steps=3", 3),
        ("row_defaults.num_steps = 3", 3),
        ("row_defaults.num_steps=1_000", 1000),
    ],
)
def test_a_key_that_takes_text_takes_it_as_typed(job: Path, override: str, value: object) -> None:
    wanted = override.partition("=")[2] if value is ... else value
    assert value_of(job, override) == wanted


def test_a_path_is_taken_as_typed(job: Path, tmp_path: Path) -> None:
    for name in ("x=1", "ü", "it's", "a b;c&d", "[1]", "a,b", "節", "./~x~"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.parquet").touch()
        assert value_of(job, f"manifest={name}/r.parquet") == str(tmp_path / name / "r.parquet")


def test_a_home_folder_is_one_in_every_path(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = str(tmp_path / "home")
    assert value_of(job, "output.root_dir=~/runs") == f"{home}/runs"
    assert value_of(job, "manifest=~/m.parquet") == f"{home}/m.parquet"
    assert value_of(job, "model.weights=~/w") == f"{home}/w"
    job.write_text(f"{job.read_text()}output: {{root_dir: ~/runs}}\n")
    assert value_of(job, key="output.root_dir") == f"{home}/runs"
    with pytest.raises(UsageError, match="there is no home folder for ~nobody-here"):
        compose_job(job, ["output.root_dir=~nobody-here/x"])


def test_a_minus_goes_back_to_the_default(job: Path) -> None:
    job.write_text(f"{job.read_text()}tag: mine\nrow_defaults: {{num_steps: 3}}\n")
    assert value_of(job, "~tag") == ""
    assert value_of(job, "~tag", "tag=x") == "x"
    assert value_of(job, "~row_defaults.num_steps") is None
    assert value_of(job, "~row_defaults.num_frames") is None  # null before, too
    assert value_of(job, "~row_defaults", key="row_defaults.num_steps") is None


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("row_defaults.num_steps=range(2,6)", "sweep.parquet num_steps=2,3,4,5"),
        ("row_defaults.num_steps=choice(2,4)", "sweep.parquet num_steps=2,4"),
        ("row_defaults.num_steps=2,4", "sweep.parquet num_steps=2,4"),
        ("row_defaults.aspect_ratio=16:9,1:1", "sweep.parquet aspect_ratio=16:9,1:1"),
        ("row_defaults.cache=a,b", "sweep.parquet cache_strategy=a,b"),
        ("row_defaults.seed=range(0,1000)", ",18,19,..."),
        ("seed=1,2", "sweep.parquet seed=1,2"),
        ("output.fps=8,16", "sweep.parquet fps=8,16"),
        ("system.sampler.solver=unipc,euler", "for v in unipc euler; do batchgen run JOB system."),
        ("model=tiny-wan,null-engine", "for v in tiny-wan null-engine; do batchgen run JOB model="),
        ("slurm.nodes=range(1,3)", "for v in 1 2; do batchgen run JOB slurm.nodes="),
        ("slurm.account=glob(a*)", """as a text write "slurm.account='glob(a*)'\""""),
        ("hydra.sweeper.params.seed=1,2", "a sweep is a manifest"),
        ("hydra.searchpath=[/x]", "looked for in model/ and slurm/"),
        ("tag=null", """for the word itself write "tag='null'\""""),
        ("slurm.setup=module load cuda/12", "write \"slurm.setup=['module load cuda/12']\""),
        ("carry_columns=[null]", "carry_columns[0]: null is not a string"),
        ("slurm=a/b", "slurm: 'a/b' is not one of "),
        ("slurm.setup=[export A=b, ü]", "write \"slurm.setup=['export A=b','ü']\""),
        ("slurm.extra={a: ü}", "set one entry at a time: slurm.extra.NAME=VALUE"),
        ("row_defaults.num_steps=ü", "num_steps: 'ü' is not an integer or null"),
        ("row_defaults.negative_prompt=${x", "row_defaults.negative_prompt='${x'"),
        ("slurm=slurm/mine.yaml", "takes a name, not a file; write slurm=mine"),
        ("slurm=12", "slurm: '12' is not one of inline, local; own ones are slurm/NAME.yaml"),
        ("slurm=ü", "slurm: 'ü' is not one of inline, local"),
        ("slurm=", "takes the name of one of its files"),
        ("~slurm", "a job needs one; choose another: slurm=<name>"),
        ("~tag=x", "taken out without a value: ~tag"),
        ("~manifest", "manifest: required"),
        ("manifest=", "manifest: is empty"),
        ("output.root_dir=", "output.root_dir: is empty"),
        ("row_defaults.negative_prompt=gr\udcfcn", "'gr\\udcfcn' is not UTF-8"),
        ("manifest=gr\udcfcn.parquet", "is not UTF-8"),
        ("num_steps", "write key=value"),
        ("=3", "write key=value"),
        ("system.parallel.up_limit=0", "up_limit: 0 is not an integer >= 1"),
        ("model.media=image", "model.media: image is not served by tiny-wan yet; served: video"),
    ],
)
def test_what_is_no_value_is_answered_with_what_works(
    job: Path, override: str, answer: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_job(job, [override])
    assert answer in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("override", ["tag=null", "slurm.setup=[export A=b, $(c) `d`!, ü]"])
def test_the_line_in_an_answer_works_in_a_shell(job: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_job(job, [override])
    compose_job(job, shlex.split(str(caught.value).rpartition("write ")[2]))


def test_an_upper_limit_of_one_is_used_whatever_else_the_section_says(job: Path) -> None:
    assert value_of(job, "system.parallel.up_limit=1", key="system.parallel.ulysses") == 1
    job.write_text(f"{job.read_text()}system: {{parallel: {{up_limit: 1}}}}\n")
    assert value_of(job, key="system.parallel.ulysses") == 1


@pytest.mark.parametrize("text", ["${x}", "a\\", "'", "it's \\' 20", "null", "1", "a,b", "ü="])
def test_a_text_of_a_program_is_taken_verbatim(job: Path, text: str) -> None:
    assert value_of(job, verbatim("row_defaults.negative_prompt", text)) == text


def test_the_hydra_files_keep_texts_that_look_like_numbers(job: Path, tmp_path: Path) -> None:
    """Hydra reads 1e5 as a number where plain YAML does not."""
    from omegaconf import OmegaConf

    composed = compose_job(job, ["tag=1e5", "slurm.account=007"])
    write_hydra(composed.resolved, composed.overrides, composed.hydra, tmp_path / "h")
    stored = OmegaConf.load(tmp_path / "h" / "config.yaml")
    assert (stored.tag, stored.slurm.account) == ("1e5", "007")
