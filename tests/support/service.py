"""The settings of a service that a test starts, and a recipe that it computes within seconds."""

import shutil
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from app.settings import ServerSettings
from tests.support.text_models import write_text


def service_settings(servers: ServerSettings, directory: Path) -> ServerSettings:
    """Return settings with all files in `directory`, short leases and quick sweeps, and no hub.

    Models lie in its folder `models`, texts in `texts`.
    """
    roots = {"model_roots": directory / "models", "data_roots": directory / "texts"}
    for root in roots.values():
        root.mkdir(exist_ok=True)
    return servers.model_copy(
        update={
            **{name: (root,) for name, root in roots.items()},
            "data_dir": directory / "data",
            "hub_enabled": False,
            "queue": f"test-{directory.name}",
            "lease_seconds": 8.0,
            "retry_delay_seconds": 0.1,
            "ring_again_seconds": 1.0,
            "sweep_seconds": 0.2,
            "collect_seconds": 0.2,
            "threads": 1,
        }
    )


def tiny_recipe(model: Path, model_root: Path, data_root: Path) -> dict[str, Any]:
    """Return the body of a POST for a copy of `model`, which a service with these roots finds, as its texts."""
    shutil.copytree(model, model_root / "tiny")
    write_text(data_root / "calibration.txt", 600)
    write_text(data_root / "evaluation.txt", 300, offset=4)
    return {
        "model": "local:tiny",
        "target_ratio": 1.3,
        "method": "low_rank",
        "calibration": {"datasets": ["local:calibration.txt"], "sequences": 8, "length": 64},
        "evaluation": {"datasets": ["local:evaluation.txt"], "window": 64, "max_tokens": 512},
    }


def delete_jobs(engine: Engine) -> None:
    """Empty the database of what other tests have left."""
    with engine.begin() as connection:
        tables = "jobs, api_keys, audit, workers, uploads, deletions, subscriptions"
        connection.execute(text(f"TRUNCATE {tables} CASCADE"))
        connection.execute(text("DELETE FROM teams WHERE name <> 'default'"))
        connection.execute(
            text("UPDATE teams SET max_queued = NULL, max_running = NULL, max_stored_bytes = NULL, claimed_at = NULL")
        )
