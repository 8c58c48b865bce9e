"""The command line as a person meets it: what it prints, where it ends, and that it never shows a traceback."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpress.contract.job import Comparison, Problem, State, SweepResult, TaskMetric, TaskResult
from modelpress.contract.recipe import Recipe
from tests.support.loopback import AFTER, BEFORE, Script, below_gate, failed, make_job, running, succeeded
from tests.support.waiting import PATIENCE_SECONDS

Run = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = [sys.executable, "-m", "modelpress.cli"]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def environment(script: Script) -> dict[str, str]:
    """One in which the server of the test is the service, and nothing of the caller's settings is left."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELPRESS_")}
    return kept | {"MODELPRESS_URL": script.url, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment | extra,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    return run


def test_compress_downloads_the_checkpoint_and_prints_the_comparison(run: Run, script: Script, tmp_path: Path) -> None:
    script.states = [make_job(State.QUEUED, attempt=0), running(0.4, detail="block 12 of 30"), succeeded()]
    script.files = {"config.json": b"{}", "model.safetensors": b"weights"}
    done = run("compress", "local:tiny", "--ratio", "1.31", "--out", "out", "--method", "svd")
    assert done.returncode == 0, done.stderr
    assert script.posted == [{"model": "local:tiny", "target_ratio": 1.31, "method": {"name": "svd"}}]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    for told in (
        "block 12 of 30",
        "134,515,008",
        "102,683,212",
        "81.50",
        "1.31 requested, 1.31 achieved",
        str(tmp_path / "out"),
    ):
        assert told in done.stdout


def test_several_ratios_are_one_job_and_shown_as_a_curve(run: Run, script: Script) -> None:
    found = Comparison(before=BEFORE, after=AFTER)
    results = tuple(
        SweepResult(target_ratio=ratio, achieved_ratio=1.31, directory=str(ratio), method="low_rank", metrics=found)
        for ratio in (1.31, 1.75)
    )
    recipe = Recipe(model="local:tiny", target_ratio=(1.31, 1.75))
    script.states = [succeeded(recipe=recipe, sweep=results)]
    script.files = {"1.31/model.safetensors": b"weights"}
    done = run("compress", "local:tiny", "--ratio", "1.31", "--ratio", "1.75", "--out", "out", COLUMNS="160")
    assert done.returncode == 0, done.stderr
    assert script.posted == [{"model": "local:tiny", "target_ratio": [1.31, 1.75]}]
    rows = [line.split("│")[1:-1] for line in done.stdout.splitlines() if line.startswith("│")]
    assert [[row[0].strip(), row[5].strip()] for row in rows] == [["1", "22.00"], ["1.31", "81.50"], ["1.75", "81.50"]]
    assert "1.31, 1.75 requested" in done.stdout


def test_options_of_text_reach_the_recipe(run: Run, script: Script) -> None:
    run(
        "compress",
        "local:tiny",
        "--ratio",
        "1.3",
        "--out",
        "out",
        "--length",
        "64",
        "--window",
        "32",
        "--max-tokens",
        "96",
    )
    assert script.posted[0]["calibration"] == {"length": 64}
    assert script.posted[0]["evaluation"] == {"window": 32, "max_tokens": 96}


def test_options_of_tasks_reach_the_recipe(run: Run, script: Script) -> None:
    wanted = "--task a --task b --task-limit 50"
    run("compress", "local:tiny", "--ratio", "1.3", "--out", "out", *wanted.split())
    assert script.posted[0]["evaluation"] == {"tasks": ["a", "b"], "task_limit": 50}


def test_options_of_training_reach_the_recipe(run: Run, script: Script) -> None:
    wanted = "--distill local:a --distill local:b --distill-tokens 4096 --learning-rate 1e-3 --trainable norms"
    run("compress", "local:tiny", "--ratio", "1.3", "--out", "out", *wanted.split())
    assert script.posted[0]["distillation"] == {
        "datasets": ["local:a", "local:b"],
        "tokens": 4096,
        "learning_rate": 1e-3,
        "trainable": "norms",
    }


def test_tasks_are_compared_with_their_standard_errors(run: Run, script: Script) -> None:
    before, after = (
        model.model_copy(update={"tasks": {"arc_easy": TaskResult(examples=50, metrics={"acc": accuracy})}})
        for model, accuracy in (
            (BEFORE, TaskMetric(value=0.5, stderr=0.05)),
            (AFTER, TaskMetric(value=0.42, stderr=0.06)),
        )
    )
    script.states = [succeeded(metrics=Comparison(before=before, after=after))]
    done = run("show", "job_1", COLUMNS="160")
    (row,) = [line.split("│")[1:-1] for line in done.stdout.splitlines() if "arc_easy" in line]
    assert [cell.strip() for cell in row] == ["acc, arc_easy", "0.5000 ± 0.0500", "0.4200 ± 0.0600", "-0.0800"]


def test_a_model_that_was_not_asked_shows_why(run: Run, script: Script) -> None:
    skipped = BEFORE.model_copy(update={"tasks_skipped": "it does not fit"})
    asked = AFTER.model_copy(update={"tasks": {"a": TaskResult(examples=5, metrics={"f1": TaskMetric(value=0.25)})}})
    script.states = [succeeded(metrics=Comparison(before=skipped, after=asked))]
    done = run("show", "job_1", COLUMNS="160")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    assert ["tasks", "it does not fit", "", ""] in rows
    assert ["f1, a", "", "0.2500", ""] in rows


def test_away_from_a_terminal_there_are_no_control_characters(run: Run, script: Script) -> None:
    script.states = [running(0.4, detail="block \x1b[31m12"), succeeded()]
    script.files = {"config.json": b"{}"}
    done = run("compress", "local:tiny", "--ratio", "1.31", "--out", "out")
    assert [character for character in done.stdout if not character.isprintable() and character != "\n"] == []


def test_a_failed_job_ends_the_command_with_its_reason(run: Run, script: Script, tmp_path: Path) -> None:
    script.states = [failed()]
    done = run("compress", "local:tiny", "--ratio", "1.31", "--out", "out")
    assert done.returncode == 1
    assert "out_of_memory: the worker has too little memory" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_result_below_the_gate_is_downloaded_before_the_command_fails(
    run: Run, script: Script, tmp_path: Path
) -> None:
    script.states, script.files = [below_gate()], {"config.json": b"{}"}
    done = run("compress", "local:tiny", "--ratio", "1.31", "--out", "out", "--max-perplexity-ratio", "1.5")
    assert script.posted[0]["evaluation"] == {"gate": {"max_perplexity_ratio": 1.5}}
    assert done.returncode == 3
    assert "quality_gate: the perplexity is too high" in done.stderr
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_baseline_is_asked_for_and_shown_beside_the_result(run: Run, script: Script) -> None:
    dropped = AFTER.model_copy(
        update={"parameters": 98_765_432, "kl_divergence": {"some": 1.25}, "top1_agreement": {"some": 0.4}}
    )
    near = AFTER.model_copy(update={"kl_divergence": {"some": 0.125}, "top1_agreement": {"some": 0.875}})
    script.states = [succeeded(metrics=Comparison(before=BEFORE, after=near, baseline=dropped))]
    script.files = {"config.json": b"{}"}
    done = run("compress", "local:tiny", "--ratio", "1.31", "--out", "out", "--baseline", COLUMNS="200")
    assert script.posted[0]["evaluation"] == {"baseline": True}
    for told in ("blocks dropped", "98,765,432", "0.125 nats", "1.250 nats", "87.5%", "40.0%"):
        assert told in done.stdout


def test_further_formats_are_asked_for_and_shown_beside_the_result(run: Run, script: Script) -> None:
    rounded = AFTER.model_copy(update={"bytes": 55_555_000})
    script.states = [succeeded(metrics=Comparison(before=BEFORE, after=AFTER, formats={"dense": rounded}))]
    script.files = {"config.json": b"{}"}
    done = run("compress", "local:tiny", "--ratio", "1.31", "--out", "out", "--format", "dense", COLUMNS="200")
    assert script.posted[0]["formats"] == ["safetensors", "dense"]
    for told in ("dense", "55.6 MB"):
        assert told in done.stdout


def test_a_refused_recipe_names_the_field(run: Run, script: Script) -> None:
    errors = [{"field": "target_ratio", "message": "must be between 1.02 and 2.31"}]
    script.refusals = [
        Problem(
            type="about:blank", title="The target ratio cannot be reached", status=422, detail="refused", errors=errors
        )
    ]
    done = run("compress", "local:tiny", "--ratio", "9", "--out", "out")
    assert done.returncode == 2
    assert "target_ratio: must be between 1.02 and 2.31" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("compress", "org/name", "--ratio", "0.5", "--out", "out"), "target_ratio: must be above 1"),
        (("compress", "missing.gguf", "--ratio", "1.5", "--out", "out"), "model: there is no "),
        (("compress", "org/name", "--ratio", "1.5", "--out", "."), "--out: . exists and is not empty"),
        (
            ("compress", "./kept", "--ratio", "1.5", "--out", "out"),
            "only opens models in its own MODELPRESS_MODEL",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_posted(
    run: Run, script: Script, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    (tmp_path / "kept").mkdir()
    done = run(*arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert script.posted == []


def test_an_interrupt_leaves_the_job_to_a_service_that_was_there(
    environment: dict[str, str], script: Script, tmp_path: Path
) -> None:
    script.states = [running(0.4)]
    arguments = [*COMMAND, "compress", "local:tiny", "--ratio", "1.31", "--out", "out"]
    with subprocess.Popen(
        arguments, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout
        while "compress" not in command.stdout.readline():
            assert command.poll() is None
        command.send_signal(signal.SIGINT)
        _, told = command.communicate(timeout=PATIENCE_SECONDS)
    assert command.returncode == 130
    assert "modelpress cancel job_1" in told
    assert script.asked("POST") == ["/jobs"]


def test_jobs_lists_them(run: Run, script: Script) -> None:
    done = run("jobs", "--state", "succeeded")
    assert "job_1" in done.stdout
    assert script.asked("GET") == ["/jobs?limit=20&state=succeeded"]


def test_show_tells_of_failures_and_what_to_do(run: Run, script: Script) -> None:
    script.states = [failed()]
    assert "Posting the same recipe again will not help" in run("show", "job_1").stdout


def test_cancel_tells_the_new_state(run: Run, script: Script) -> None:
    assert run("cancel", "job_1").stdout == "Job job_1 is cancelled.\n"
    assert script.asked("POST") == ["/jobs/job_1/cancel"]


def test_download_fetches_the_files_of_an_earlier_job(run: Run, script: Script, tmp_path: Path) -> None:
    script.files = {"config.json": b"{}"}
    assert run("download", "job_1", "--out", "out").returncode == 0
    assert (tmp_path / "out" / "config.json").read_bytes() == b"{}"


def test_a_setting_that_is_wrong_is_named(run: Run) -> None:
    done = run("serve", MODELPRESS_PORT="many")
    assert done.returncode == 2
    assert done.stderr.startswith("MODELPRESS_PORT: ")


def test_the_api_alone_asks_for_its_database(run: Run) -> None:
    done = run("api")
    assert done.returncode == 1
    assert "Set MODELPRESS_DATABASE_URL and MODELPRESS_REDIS_URL" in done.stderr


def test_a_database_that_does_not_answer_is_told_without_its_password(run: Run, free_port: int) -> None:
    done = run("migrate", MODELPRESS_DATABASE_URL=f"postgresql://me:hunter2@127.0.0.1:{free_port}/jobs")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_missing_extra_says_what_to_install(run: Run, tmp_path: Path) -> None:
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text("import sys\nsys.modules['celery'] = None\n")
    done = run("worker", PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert done.returncode == 2
    assert "pip install 'modelpress[server]'" in done.stderr


def test_the_client_imports_nothing_of_the_server(run: Run) -> None:
    foreign = ("app", "workers", "torch", "fastapi", "celery", "sqlalchemy")
    probe = f"import modelpress.cli, sys; print([name for name in {foreign} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.stdout == "[]\n"


def test_a_recipe_file_says_every_field_and_options_change_some(run: Run, script: Script, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: local:tiny\ntarget_ratio: 2\ncalibration: {datasets: ['builtin:python-docs'], sequences: 4}\n"
    )
    done = run(
        *("compress", "--recipe", "recipe.yaml", "--ratio", "1.31", "--sequences", "8", "--metadata", "team=search"),
        *("--detach", "--idempotency-key", "nightly"),
    )
    assert (done.returncode, done.stdout) == (0, "job_1\n"), done.stderr
    assert script.posted == [
        {
            "model": "local:tiny",
            "target_ratio": 1.31,
            "calibration": {"datasets": ["builtin:python-docs"], "sequences": 8},
            "metadata": {"team": "search"},
        }
    ]
    assert script.keys == ["nightly"]


def test_json_is_all_that_a_program_reads(run: Run, script: Script) -> None:
    script.states = [running(0.4), succeeded()]
    waited = run("wait", "job_1", "--json")
    assert json.loads(waited.stdout)["state"] == "succeeded"
    assert "40%" in waited.stderr
    listed = run("jobs", "--json")
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == ["job_1"]


def test_the_list_has_no_lines_of_a_box_in_a_pipe(run: Run) -> None:
    assert not set("│─┃━") & set(run("jobs").stdout)


def test_a_service_that_is_not_there_is_told_apart_from_a_job_that_failed(run: Run, free_port: int) -> None:
    assert run("show", "job_1", "--url", f"http://127.0.0.1:{free_port}").returncode == 4


def test_what_has_happened_is_printed_as_lines(run: Run) -> None:
    done = run("logs", "job_1", "--follow")
    assert [line.split(maxsplit=2)[2] for line in done.stdout.splitlines()] == [
        "state state=queued",
        "metric step=1 name=loss value=0.5",
        "log a word",
        "state state=succeeded",
    ]
