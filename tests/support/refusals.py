"""What the sources refuse."""

import pytest

from app.sources.models import ModelSources
from modelpress.errors import Refused


def refusal(sources: ModelSources, reference: str) -> Refused:
    """Return the refusal of a model's reference, which names the recipe's field `model`."""
    with pytest.raises(Refused) as caught:
        sources.resolve(reference)
    assert caught.value.field == "model"
    return caught.value
