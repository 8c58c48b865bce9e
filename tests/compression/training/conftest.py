"""The teacher of most tests, on disk and in memory."""

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from tests.support.students import opened


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "llama"
    opened(directory)
    return directory


@pytest.fixture(scope="module")
def teacher(source: Path) -> PreTrainedModel:
    return opened(source).whole()
