"""Settings are read once, and complete before anything is started with them."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.errors import IncompleteSettings, UnknownSetting
from app.settings import ServerSettings, Settings

DATABASE, REDIS = SecretStr("postgresql://given"), SecretStr("redis://given")


def test_settings_with_both_urls_are_complete(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=1234, database_url=DATABASE, redis_url=REDIS).completed()

    assert isinstance(settings, ServerSettings)
    assert (settings.database_url, settings.redis_url, settings.port) == (DATABASE, REDIS, 1234)


@pytest.mark.parametrize("given", [{}, {"database_url": DATABASE}, {"redis_url": REDIS}, {"redis_url": SecretStr("")}])
def test_a_missing_url_is_named_before_anything_is_started(given: dict[str, SecretStr]) -> None:
    settings = Settings(**{"database_url": None, "redis_url": None} | given)

    with pytest.raises(IncompleteSettings, match=r"MODELPRESS_DATABASE_URL and MODELPRESS_REDIS_URL"):
        settings.completed()


def test_urls_of_started_servers_fill_what_is_missing_and_replace_nothing() -> None:
    settings = Settings(database_url=DATABASE, redis_url=None)

    complete = settings.completed(
        database_url=SecretStr("postgresql://started"), redis_url=SecretStr("redis://started")
    )

    assert complete.database_url == DATABASE
    assert complete.redis_url.get_secret_value() == "redis://started"


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(database_url=DATABASE, redis_url=REDIS)
    monkeypatch.setenv("MODELPRESS_QUEUE", "changed-meanwhile")

    assert settings.completed().queue == settings.queue == "modelpress"


def test_complete_settings_cannot_be_made_without_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_DATABASE_URL", "postgresql://environment")

    with pytest.raises(ValidationError):
        ServerSettings(redis_url=REDIS)


@pytest.mark.parametrize("url", ["redis://:s3cret@127.0.0.1:port/0", "redis://:s3cret/x#y@host/0", "foo://:s3cret@h/0"])
def test_a_broker_that_cannot_be_one_is_refused_and_its_password_not_shown(url: str) -> None:
    with pytest.raises(ValidationError, match="no URL of a broker") as refused:
        Settings(redis_url=SecretStr(url))
    assert "s3cret" not in str(refused.value)


def test_a_misspelt_setting_is_told_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELPRESS_DATADIR", "/srv")
    with pytest.raises(UnknownSetting, match="did you mean MODELPRESS_DATA_DIR"):
        Settings()


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/prefix", "ftp://user@host/artifacts"])
def test_a_storage_with_a_password_in_its_url_is_refused_and_the_password_not_shown(url: str) -> None:
    with pytest.raises(ValidationError, match="a user or a password") as refused:
        Settings(storage_url=url)
    assert "secret" not in str(refused.value)
