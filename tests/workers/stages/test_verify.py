"""How long opening a package may take, and how many processes it takes."""

from modelpress.spec.formats import FORMATS
from workers.stages.verify import TIMEOUT_SECONDS, by_opener, timeout_of


def test_every_checkpoint_is_given_the_time_to_read_its_weights_from_a_slow_disk() -> None:
    assert timeout_of([1_000_000_000, 20_000_000]) == TIMEOUT_SECONDS + 102


def test_formats_that_transformers_opens_share_a_fresh_process() -> None:
    opened_by_transformers = [FORMATS["safetensors"], FORMATS["dense"]]
    (forms,) = by_opener(opened_by_transformers).values()
    assert forms == opened_by_transformers
