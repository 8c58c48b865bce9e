"""Every setting of the service, read once from the environment into a frozen object.

No other module reads a setting from the environment. Each field is MODELPRESS_<FIELD> in capitals; several directories
are separated by `:` as in PATH. Secrets are `SecretStr`, so that no log, repr or traceback shows them.

`Settings` is what was read. `ServerSettings` is what API and worker run with: it also has the URLs of a database and a
broker, be they given or those of servers that were started for it.
"""

import os
import re
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from app.errors import IncompleteSettings, UnknownSetting

NO_SETTINGS = ("MODELPRESS_URL", "MODELPRESS_API_KEY")
"""Read by the command line, as a client."""
KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_[0-9]+_")
"""Variables that Kubernetes sets for a service which is called like this one."""
BROKER_SCHEMES = ("redis", "rediss", "redis+socket")


def split_paths(value: Any) -> Any:
    return tuple(part for part in value.split(os.pathsep) if part) if isinstance(value, str) else value


def absolute(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(path.expanduser().resolve() for path in paths)


def check_broker(url: SecretStr) -> SecretStr:
    """Return the URL of a broker. Raises ValueError, which shows nothing of it, where it cannot be one."""
    if not url.get_secret_value():
        return url
    wrong = "is no URL of a broker, such as redis://:password@host:6379/0; in a password write / as %2F, # as %23"
    try:
        parts = urlsplit(url.get_secret_value())
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        raise ValueError(wrong) from None
    if parts.scheme not in BROKER_SCHEMES or not (parts.hostname or parts.path):
        raise ValueError(wrong)
    return url


Network = IPv4Network | IPv6Network


def networks(text: str) -> tuple[Network, ...]:
    """Return networks that are separated by commas. Raises ValueError where one is none."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def check_networks(text: str) -> str:
    """Return the text if it names networks. Raises ValueError, which says how they look, where it does not."""
    try:
        networks(text)
    except ValueError:
        raise ValueError("names something that is no network; send such as 10.1.0.0/16,fd00::/8") from None
    return text


def refuse_password(url: str) -> str:
    """Return the URL of a storage. Raises ValueError if it holds a user or a password, since it is logged and shown."""
    if "@" in urlsplit(url).netloc:
        raise ValueError("holds a user or a password; give them in the variables that the store's own tools read")
    return url


BrokerUrl = Annotated[SecretStr, AfterValidator(check_broker)]
Roots = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(split_paths), AfterValidator(absolute)]
RootPath = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")]
HttpsUrl = Annotated[str, Field(pattern=r"^(https://|http://(localhost|127\.0\.0\.1)[:/])")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Labels = Annotated[tuple[Label, ...], NoDecode, BeforeValidator(split_paths)]
Directory = Annotated[Path, AfterValidator(lambda path: path.expanduser().resolve())]


class SourceSettings(BaseModel):
    """The directories and hubs from which models and texts may come."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model_roots: tuple[Path, ...] = ()
    data_roots: tuple[Path, ...] = ()
    hub_endpoint: str
    hub_enabled: bool = True
    hub_token: SecretStr | None = None


class OidcSettings(BaseModel):
    """The OpenID provider whose tokens are accepted besides keys, and the claims that are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str
    audience: str
    team_claim: str
    scope_claim: str


class Settings(BaseSettings):
    """The settings as read from the environment."""

    model_config = SettingsConfigDict(env_prefix="MODELPRESS_", frozen=True, extra="ignore", hide_input_in_errors=True)

    data_dir: Directory = Field(Path(".modelpress"), validate_default=True, description="everything the service writes")
    database_url: SecretStr | None = Field(None, description="postgresql://…; unset: an embedded PostgreSQL is started")
    redis_url: BrokerUrl | None = Field(
        None, description="redis://… or rediss://…; unset: an embedded Valkey is started"
    )

    storage_url: Annotated[str, AfterValidator(refuse_password)] | None = Field(
        None,
        description="where finished checkpoints are kept: a URL whose scheme names a storage backend, such as "
        "file:///srv/artifacts or s3://bucket/prefix; unset: the directory artifacts of data_dir",
    )

    link_seconds: float | None = Field(
        None,
        gt=0,
        le=7 * 24 * 3600,
        description="a download is answered with 307 and a URL of the object store that is valid for this long; unset: "
        "files go through the API, as they must where clients cannot reach the store",
    )

    host: str = Field("127.0.0.1", description="address on which the API listens")
    port: int = Field(8000, ge=0, le=65535, description="port of the API; 0: any that is free")

    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="port on `MODELPRESS_HOST` at which a worker serves its metrics; unset: none"
    )

    root_path: RootPath | None = Field(
        None, description="path under which a proxy publishes the API, such as /ml/modelpress; links begin with it"
    )

    requests_per_minute: int | None = Field(
        6000, ge=1, description="requests that a team may make of one API process; further ones are answered with 429"
    )
    oidc_issuer: HttpsUrl | None = Field(
        None, description="URL of an OpenID provider whose bearer tokens are accepted besides keys"
    )
    oidc_audience: str = Field("modelpress", description="audience that a token of the provider must be for")
    oidc_team_claim: str = Field("team", description="claim of a token that names the team")
    oidc_scope_claim: str = Field(
        "scope", description="claim of a token with its scopes: modelpress:read, modelpress:submit and so on"
    )

    model_roots: Roots = Field((), description="directories that `local:` models may lie under")
    data_roots: Roots = Field((), description="directories that `local:` text may lie under")
    tasks_dir: Directory | None = Field(
        None, description="the operator's own tasks for lm-eval: YAML files, their data and their Python, which is run"
    )
    hub_endpoint: str = Field("https://huggingface.co", description="model hub, or a mirror of it")
    hub_token: SecretStr | None = Field(None, description="for gated and private models; never stored with a job")
    hub_enabled: bool = Field(True, description="false: only local models and text")

    queue: str = Field("modelpress", description="name of the Celery queue that this API rings and this worker hears")
    lease_seconds: float = Field(
        30.0, gt=0, description="lease of a claim: a worker silent for this long has lost its job"
    )
    max_attempts: int = Field(
        3, ge=1, description="attempts of a job; then it fails with the last error, or as worker_lost"
    )
    retry_delay_seconds: float = Field(
        5.0, ge=0, description="wait before a lost job is tried again, doubled each time"
    )
    ring_again_seconds: float = Field(
        15.0, gt=0, description="a queued job that nobody claimed is rung again after this"
    )
    sweep_seconds: float = Field(5.0, gt=0, description="pause between two rounds of the sweeper")
    collect_seconds: float = Field(
        60.0, ge=0, description="pause between two looks of a worker for files that nobody can ask for any more"
    )
    stop_grace_seconds: float = Field(5.0, ge=0, description="from SIGTERM to SIGKILL for a computing child")
    job_timeout_seconds: float = Field(24 * 3600.0, gt=0, description="an attempt that computes for longer is failed")
    keep_work_seconds: float = Field(24 * 3600.0, ge=0, description="age at which work files of ended jobs are deleted")
    keep_sources_seconds: float = Field(
        30 * 24 * 3600.0,
        ge=0,
        description="how long what was fetched from the hub is kept after a job last used it; where jobs wait for a "
        "full disk, the oldest goes earlier",
    )
    keep_unknown_seconds: float = Field(
        7 * 24 * 3600.0,
        ge=0,
        description="how long files of jobs that the database does not know stay where they are; then they are moved "
        "to a quarantine, and never deleted",
    )
    max_queued: int = Field(1000, ge=1, description="jobs that may wait at a time; further ones are refused for now")
    max_upload_bytes: int = Field(1 << 30, ge=1, description="size of the largest file of text that a team may upload")
    max_model_parameters: int | None = Field(
        None, ge=1, description="a model of more parameters is refused when it is posted; unset: no limit"
    )
    reserved_disk_bytes: int = Field(
        1 << 28, ge=0, description="what stays free on a worker's disk: no job or download is begun that would take it"
    )
    storage_patience_seconds: float = Field(
        24 * 3600.0, ge=0, description="how long a job waits for a worker's full or broken disk before it fails"
    )
    webhook_networks: Annotated[str, AfterValidator(check_networks)] = Field(
        "",
        description="networks besides the public Internet that webhooks may lead to, separated by commas, such as "
        "10.1.0.0/16,fd00::/8; plain http is allowed there alone",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    labels: Labels = Field(
        (), description="names by which recipes can ask for this worker as their `device`, besides cpu or gpu"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of the computing child; unset: all cores")
    processes: int | None = Field(
        None,
        ge=1,
        description="processes that share a distillation, a GPU each where there are GPUs; unset: one for each visible "
        "GPU where the device is auto or cuda, one elsewhere",
    )
    memory_bytes: int | None = Field(
        None,
        ge=1,
        description="memory that the computing child should stay below. Less makes it slower, and a larger model is "
        "compressed but not timed; unset: all that machine and container have",
    )

    @model_validator(mode="after")
    def refuse_misspelt(self) -> Self:
        """Raise UnknownSetting for a variable that is named like a setting and is none."""
        prefix = str(self.model_config["env_prefix"])
        known = [f"{prefix}{name.upper()}" for name in type(self).model_fields]
        for name in sorted(os.environ):
            foreign = name in NO_SETTINGS or KUBERNETES.search(name)
            if name.upper().startswith(prefix) and name.upper() not in known and not foreign:
                meant = get_close_matches(name.upper(), known, n=1)
                hint = f"; did you mean {meant[0]}?" if meant else "."
                raise UnknownSetting(f"{name} is not a setting{hint}")
        return self

    @property
    def artifacts_url(self) -> str:
        """Return the URL of the storage for finished checkpoints."""
        return self.storage_url or (self.data_dir / "artifacts").as_uri()

    @property
    def allowed_networks(self) -> tuple[Network, ...]:
        """Return the networks besides the public Internet that webhooks may lead to."""
        return networks(self.webhook_networks)

    @property
    def work_dir(self) -> Path:
        """Durable results of the stages of running jobs."""
        return self.data_dir / "work"

    @property
    def quarantine_dir(self) -> Path:
        """Work files of jobs that the database does not know."""
        return self.data_dir / "quarantine"

    @property
    def uploads_dir(self) -> Path:
        """Pieces of text that teams are uploading, and a worker's copies of it."""
        return self.data_dir / "uploads"

    @property
    def sources_dir(self) -> Path:
        """Models and text fetched from the hub."""
        return self.data_dir / "sources"

    @property
    def sources(self) -> SourceSettings:
        """The settings that concern models and texts."""
        return SourceSettings(
            model_roots=self.model_roots,
            data_roots=self.data_roots,
            hub_endpoint=self.hub_endpoint,
            hub_enabled=self.hub_enabled,
            hub_token=self.hub_token,
        )

    @property
    def oidc(self) -> OidcSettings | None:
        """The settings that concern an OpenID provider, if there is one."""
        if self.oidc_issuer is None:
            return None
        return OidcSettings(
            issuer=self.oidc_issuer,
            audience=self.oidc_audience,
            team_claim=self.oidc_team_claim,
            scope_claim=self.oidc_scope_claim,
        )

    def completed(self, database_url: SecretStr | None = None, redis_url: SecretStr | None = None) -> "ServerSettings":
        """Return the settings of a process that serves, with these URLs where the environment gave none.

        Raises:
            IncompleteSettings: a URL is still missing.
        """
        urls = {"database_url": self.database_url or database_url, "redis_url": self.redis_url or redis_url}
        if None in urls.values():
            raise IncompleteSettings(
                "Set MODELPRESS_DATABASE_URL and MODELPRESS_REDIS_URL, or run `modelpress serve`, which starts both."
            )
        return ServerSettings(**{name: getattr(self, name) for name in type(self).model_fields} | urls)


class ServerSettings(Settings):
    """The settings of a process that serves: complete, and made from `Settings` alone."""

    database_url: SecretStr
    redis_url: BrokerUrl

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing from the environment: `Settings` has done that."""
        return (init_settings,)
