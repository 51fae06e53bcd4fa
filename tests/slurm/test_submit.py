"""`armillary submit`: what it writes, what it gives to Slurm, and what it refuses. Slurm's commands are stand-ins."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from armillary import cli
from armillary.settings import CONFIGS_FOLDER, load_settings
from armillary.slurm.cluster_profile import ClusterProfile, load_cluster
from armillary.slurm.job_script import TEMPLATES_FOLDER, array_tasks
from armillary.slurm.stages import STAGES
from armillary.training.pretrain import PretrainSettings
from armillary.training.tokenize import TokenizeSettings

PRETRAIN = ["submit", "pretrain", "pretrain/nano.yaml"]
RECORDING = """#!/bin/bash
printf '%s\\0' "$@" >> "$CALLS/$(basename "$0")"; printf '\\n' >> "$CALLS/$(basename "$0")"
"""
FAKES = {
    "sbatch": RECORDING
    + 'n=$(wc -l < "$CALLS/sbatch"); [[ $n -lt ${REFUSE_FROM:-99} ]] || { echo "$REFUSAL" >&2; exit 1; }\n'
    "echo $((100 + n))\n",
    "srun": RECORDING + '[[ " $* " != *" preflight "* ]] || exit "${BAD_NODE:-0}"\n',
    "scontrol": '#!/bin/bash\n[[ $* == *hostnames* ]] && echo node1 || echo "NodeName=node1 NodeAddr=10.0.0.7 Po=1"\n',
    "armillary": RECORDING,
}


@pytest.fixture(autouse=True)
def slurm(tmp_path, monkeypatch):
    """Stand-ins on PATH that record their arguments; returns a function that reads the calls of one."""
    for folder in ("bin", "calls", "here"):
        (tmp_path / folder).mkdir()
    for name, text in FAKES.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "ARMILLARY"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.chdir(tmp_path / "here")

    def calls(name):
        path = tmp_path / "calls" / name
        return [line.split("\0")[:-1] for line in path.read_text().splitlines()] if path.exists() else []

    return calls


def options_of(script):
    """The #SBATCH options of a script, by name."""
    lines = [line.split(maxsplit=1)[1] for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert len({line.partition("=")[0] for line in lines}) == len(lines), "an option is given twice"
    return dict(line.removeprefix("--").partition("=")[::2] for line in lines)


def run_script(path, *words, **variables):
    """Run a job script as the batch shell of a job of two nodes would."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
    environment = {**os.environ, **job, **variables}
    return subprocess.run(["bash", path, *words], env=environment, capture_output=True, text=True, check=False)


def test_a_submitted_run_is_a_script_and_settings_in_its_folder(slurm, capsys):
    words = ["loop.steps=70", "run=runs/a", "--nodes", "8", "--gpus-per-node=4", "--time=20:00:00", "size=tiny"]
    assert cli.main([*PRETRAIN, *words, "--partition=gpu", "--sbatch-option=--constraint=a100"]) == 0
    (command,) = slurm("sbatch")
    assert command[0] == "--parsable"
    script = Path(command[1])
    assert script.parent == Path("runs/a/slurm").absolute()
    options = options_of(script.read_text())
    expected = {"nodes": "8", "gpus-per-node": "4", "ntasks-per-node": "4", "time": "20:00:00", "partition": "gpu"}
    assert options.items() >= {**expected, "constraint": "a100", "signal": "USR1@120", "requeue": ""}.items()
    assert options["output"] == f"{script.parent}/%x-%j.log"
    settings = load_settings(PretrainSettings, script.with_suffix(".yaml"))
    assert (settings.loop.steps, settings.size, settings.loop.num_nodes, settings.loop.devices) == (70, "tiny", 8, 4)
    told = capsys.readouterr().out
    assert "101" in told
    assert "runs/a/slurm/armillary-pretrain-101.log" in told
    assert "armillary status runs/a" in told
    assert json.loads((script.parent / "jobs.jsonl").read_text())["job"] == "101"


def test_a_script_starts_one_task_for_each_gpu_with_the_rendezvous_of_the_first_node(slurm, tmp_path):
    profile = tmp_path / "site.yaml"
    profile.write_text(
        'container: apptainer exec $HOME/image.sif\nenvironment: {WHERE: "$HOME/x", NCCL_IB_TIMEOUT: 22}\n'
    )
    assert cli.main([*PRETRAIN, "--nodes=2", "--gpus-per-node=4", "--preflight", "--cluster", str(profile)]) == 0
    script = slurm("sbatch")[0][1]
    text = Path(script).read_text()
    Path(script).write_text(text + 'echo "$MASTER_ADDR $MASTER_PORT $WHERE $NCCL_IB_TIMEOUT"\n')
    answer = run_script(script, HOME="/home/a")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "10.0.0.7 20007 /home/a/x 22\n"
    preflight, training = slurm("srun")
    assert preflight[-2:] == ["preflight", str(Path("runs/pretrain-nano").absolute())]
    command = [
        "apptainer",
        "exec",
        "/home/a/image.sif",
        "armillary",
        "pretrain",
        str(Path(script).with_suffix(".yaml")),
    ]
    assert training[-8:] == [*command, "loop.num_nodes=2", "loop.devices=4"]


def test_a_bad_node_ends_the_job_before_training(slurm):
    assert cli.main([*PRETRAIN, "--preflight"]) == 0
    assert run_script(slurm("sbatch")[0][1], BAD_NODE="1").returncode == 1
    assert len(slurm("srun")) == 1


def test_a_dry_run_shows_the_script_and_does_nothing(slurm, capsys):
    assert cli.main([*PRETRAIN, "--dry-run", "--job-name=mine"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("#!/bin/bash\n")
    assert options_of(shown)["job-name"] == "mine"
    assert not slurm("sbatch")
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    "words, problem",
    [
        (["pretrain", "pretrain/nano.yaml", "loop.stepss=4"], "did you mean 'steps'"),
        (["pretrain", "pretrain/nano.yaml", "--nodes=3"], "loop.batch_size 64 must be a multiple of the 3 processes"),
        (["pretrain", "pretrain/nano.yaml", "--gpus-per-node=2", "--tasks-per-node=4"], "each GPU has one process"),
        (["pretrain", "pretrain/nano.yaml", "--gpu=2"], "unknown option '--gpu=2'"),
        (["pretrain", "pretrain/nano.yaml", "tokenize.yaml"], "expected one settings file"),
        (["pretrain", "--nodes=2"], "expected a settings file, such as pretrain/base.yaml"),
        (["pretrain", "pretrain/nano.yaml", "--nodes=0"], "nodes"),
        (["pretrain", "pretrain/nano.yaml", "--sbatch-option=a100 please"], "expected --name=value"),
        (["pretrian", "pretrain/nano.yaml"], "no stage 'pretrian'; there are train-tokenizer, pretrain"),
        (["train-tokenizer", "tokenizers/scalar.yaml", "--tasks-per-node=2"], "fitted by one process; found 2"),
        (["train-tokenizer", "tokenizers/image.yaml", "tokenizers/image.yaml"], "must have runs of their own"),
        (["train-tokenizer", "tokenizers/image.yaml", "--array=0-1"], "one for each settings file"),
        (["tokenize", "tokenize.yaml", "--array=3,7"], "say num_parts="),
        (["tokenize", "tokenize.yaml", "--array=3,64", "num_parts=64"], "must lie in [0, 63]"),
        (["tokenize", "tokenize.yaml", "--array=all"], "expected numbers as in 0-63"),
        (["embed", "embed/default.yaml", "--nodes=2"], "use --array to divide work"),
        (["index", "runs/embeddings"], "expected EMBEDDINGS INDEX first"),
        (["chain", "chains/whole.yaml", "--nodes=2"], "resources stand in the chain's file"),
        (["chain", "chains/whole.yaml", "--from", "tokenise"], "no such stage; there are tokenizers, tokenize"),
        (["pretrain", "pretrain/nano.yaml", "--cluster=exampel"], "clusters/example.yaml"),
        (["pretrain", "pretrain/nano.yaml", "--from", "align"], "--from is for a chain"),
    ],
)
def test_mistakes_are_told_on_the_login_node_and_nothing_is_submitted(words, problem, slurm, capsys):
    assert cli.main(["submit", *words]) == 2
    assert problem in capsys.readouterr().err
    assert not slurm("sbatch")


def test_wrong_flags_of_index_are_found_before_it_waits_in_the_queue(slurm, capsys):
    with pytest.raises(SystemExit):
        cli.main(["submit", "index", "e", "i", "--dta", "d"])
    assert "--dta" in capsys.readouterr().err
    assert not slurm("sbatch")


def test_words_and_flags_of_index_are_passed_on(slurm):
    assert cli.main(["submit", "index", "--time=60", "e e", "i", "--data", "d", "--held-out", "h"]) == 0
    script = slurm("sbatch")[0][1]
    bin_folder = Path(os.environ["CALLS"]).parent / "bin"
    answer = run_script(script, ARMILLARY=str(bin_folder / "armillary"))
    assert answer.returncode == 0, answer.stderr
    assert slurm("armillary") == [["index", "e e", "i", "--data", "d", "--held-out", "h"]]


def test_several_tokenizers_are_an_array_of_which_each_task_trains_one(slurm, tmp_path):
    names = ["tokenizers/image.yaml", "tokenizers/scalar.yaml"]
    assert cli.main(["submit", "train-tokenizer", *names, "data=d"]) == 0
    script = Path(slurm("sbatch")[0][1])
    assert script.parent == Path("runs/tokenizers/slurm").absolute()
    options = options_of(script.read_text())
    assert options["array"] == "0-1"
    assert options["output"].endswith("%x-%A-%a.log")
    assert run_script(script, SLURM_ARRAY_TASK_ID="1", SLURM_NNODES="1", SLURM_NTASKS_PER_NODE="1").returncode == 0
    trained = Path(slurm("srun")[0][-3])
    assert "kind: scalar" in trained.read_text()
    assert "data: d\n" in trained.read_text()
    for number, kind in enumerate(("image", "scalar")):
        job = json.loads(Path(f"runs/tokenizers/{kind}/slurm/jobs.jsonl").read_text())
        assert job["job"] == f"101_{number}"
        assert job["log"].endswith(f"armillary-train-tokenizer-101-{number}.log")


def test_the_parts_of_divided_work_are_those_of_the_array(slurm):
    assert cli.main(["submit", "tokenize", "tokenize.yaml", "--array=0-7%2", "device=cuda"]) == 0
    script = Path(slurm("sbatch")[0][1])
    assert script.parent == Path("runs/slurm").absolute()
    assert options_of(script.read_text()).items() >= {"array": "0-7%2", "gpus-per-node": "1"}.items()
    settings = load_settings(TokenizeSettings, script.with_suffix(".yaml"))
    assert (settings.part, settings.num_parts) == (None, 8)


def test_arrays_are_read_as_slurm_writes_them():
    assert array_tasks("0-3,7,10-14:2%5") == [0, 1, 2, 3, 7, 10, 12, 14]
    assert array_tasks(4) == [4]


def test_a_cluster_gives_what_the_command_does_not_say(slurm, tmp_path, monkeypatch):
    profile = tmp_path / "site.yaml"
    profile.write_text(
        "account: a\npartition: p\ngpus_per_node: 4\ncpus_per_task: 3\nmodules: [one/1, two]\nsetup: [ulimit -n 9]\n"
        "sbatch_options: [--signal=USR1@300, --exclusive]\n"
    )
    monkeypatch.setenv("ARMILLARY_CLUSTER", str(profile))
    assert cli.main([*PRETRAIN, "--partition=q"]) == 0
    text = Path(slurm("sbatch")[0][1]).read_text()
    expected = {"account": "a", "partition": "q", "gpus-per-node": "4", "ntasks-per-node": "4", "cpus-per-task": "3"}
    assert options_of(text).items() >= {**expected, "signal": "USR1@300", "exclusive": ""}.items()
    places = [text.index(line) for line in ("module load one/1\n", "module load two\n", "ulimit -n 9\n", "set -uo")]
    assert places == sorted(places)
    assert cli.main(["submit", "embed", "embed/default.yaml", "--array=0-1"]) == 0
    assert "gpus-per-node" not in options_of(Path(slurm("sbatch")[1][1]).read_text())


@pytest.mark.parametrize("path", sorted((CONFIGS_FOLDER / "clusters").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_cluster_is_valid(path):
    assert isinstance(load_cluster(path.stem), ClusterProfile)


def test_what_slurm_refuses_is_told_with_what_to_do(slurm, capsys, monkeypatch):
    monkeypatch.setenv("REFUSE_FROM", "1")
    monkeypatch.setenv(
        "REFUSAL", "sbatch: error: invalid partition specified: gpu\nsbatch: error: Batch job submission failed"
    )
    assert cli.main(PRETRAIN) == 2
    told = capsys.readouterr().err
    assert "invalid partition specified: gpu" in told
    assert "sinfo -s" in told
    assert len(told.splitlines()) == 1
    assert not list(Path.cwd().rglob("jobs.jsonl"))


def test_without_slurm_it_says_so(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(PRETRAIN) == 2
    assert "sbatch is not on PATH" in capsys.readouterr().err


def test_a_chain_makes_each_stage_wait_for_the_success_of_the_one_before(slurm, capsys):
    assert cli.main(["submit", "chain", "chains/whole.yaml"]) == 0
    scripts = [Path(call[1]).read_text() for call in slurm("sbatch")]
    assert [options_of(text).get("dependency") for text in scripts] == [
        None,
        *(f"afterok:{n}" for n in range(101, 106)),
    ]
    assert ["kill-on-invalid-dep" in options_of(text) for text in scripts] == [False, *[True] * 5]
    table = capsys.readouterr().out
    assert all(str(number) in table for number in range(101, 107))


def test_a_chain_may_start_in_the_middle_and_wait_for_several_stages(slurm, tmp_path):
    chain = tmp_path / "chain.yaml"
    chain.write_text(
        """stages:
  - {stage: tokenize, config: tokenize.yaml}
  - {name: small, stage: pretrain, config: pretrain/nano.yaml}
  - {name: big, stage: pretrain, config: pretrain/tiny.yaml, after: [tokenize]}
  - {stage: index, words: [e, i], after: [small, big], resources: {dependency: "singleton"}}
"""
    )
    assert cli.main(["submit", "chain", str(chain), "--from", "small"]) == 0
    scripts = [Path(call[1]).read_text() for call in slurm("sbatch")]
    assert [options_of(text).get("dependency") for text in scripts] == [None, None, "afterok:101:102,singleton"]


@pytest.mark.parametrize(
    "last, problem",
    [
        ("{stage: pretrain, config: pretrain/nano.yaml, overrides: [siez=tiny]}", "did you mean 'size'"),
        ("{stage: pretrain, config: pretrain/nano.yaml, resources: {time: 20:00:00}}", "expected the limit in quotes"),
        ("{stage: pretrain, config: pretrain/nano.yaml, after: [tokens]}", "no stage before it has this name"),
        ("{stage: tokenize, config: tokenize.yaml}", "two stages are called 'tokenize'"),
    ],
)
def test_a_mistake_in_the_last_stage_of_a_chain_submits_nothing(last, problem, slurm, tmp_path, capsys):
    (tmp_path / "chain.yaml").write_text(f"stages:\n  - {{stage: tokenize, config: tokenize.yaml}}\n  - {last}\n")
    assert cli.main(["submit", "chain", str(tmp_path / "chain.yaml")]) == 2
    assert problem in capsys.readouterr().err
    assert not slurm("sbatch")


def test_a_chain_of_which_slurm_refuses_a_stage_names_the_jobs_that_wait_already(slurm, capsys, monkeypatch):
    monkeypatch.setenv("REFUSE_FROM", "3")
    monkeypatch.setenv("REFUSAL", "sbatch: error: Invalid account")
    assert cli.main(["submit", "chain", "chains/whole.yaml"]) == 2
    told = capsys.readouterr().err
    assert "stage pretrain" in told
    assert "scancel 101 102" in told


@pytest.mark.parametrize("stage", STAGES)
def test_every_template_runs_as_it_is(stage, slurm):
    words = ["e", "i"] if stage == "index" else ["some/config.yaml", "loop.steps=3", "run=a b"]
    template = TEMPLATES_FOLDER / f"{stage}.sbatch"
    answer = run_script(template, *words, ARMILLARY="env NOTHING=1 armillary", SLURM_CPUS_PER_TASK="5")
    assert answer.returncode == 0, answer.stderr
    (call,) = slurm("srun") or slurm("armillary")
    here = call.index(stage) if stage in call else -1
    assert call[here + 1 : here + 1 + len(words)] == words
    assert run_script(template).returncode != 0
    assert "usage: sbatch" in run_script(template).stderr


def test_the_template_of_tokenizers_refuses_several_without_an_array(slurm):
    template = TEMPLATES_FOLDER / "train-tokenizer.sbatch"
    answer = run_script(template, "a.yaml", "b.yaml", "data=d")
    assert answer.returncode == 2
    assert "--array=0-1" in answer.stderr
    assert run_script(template, "a.yaml", "b.yaml", "data=d", SLURM_ARRAY_TASK_ID="1").returncode == 0
    assert slurm("srun")[0][-4:-2] == ["b.yaml", "data=d"]
