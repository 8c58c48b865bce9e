"""The architectures that are not registered, as `python -m workers.compression.inferred` found them by structure.

`inferred.json` holds what it found: a description for each model type of the installed transformers that it
understood, and the reason for each other one. `make architectures` writes it anew.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from modelpress.spec.architectures.architecture import Architecture

FILE = Path(__file__).with_suffix(".json")

ARCHITECTURE = TypeAdapter(Architecture)


@dataclass(frozen=True)
class Inferred:
    """Model types that are not registered: the descriptions that were inferred, and why others were not.

    Attributes:
        transformers: the release of transformers that was looked at.
        understood: the descriptions by model type.
        refused: by model type, why its models are not understood.
    """

    transformers: str
    understood: dict[str, Architecture]
    refused: Mapping[str, str]

    @classmethod
    def read(cls, file: Path = FILE) -> "Inferred":
        """Return what a file holds."""
        return TypeAdapter(cls).validate_python(json.loads(file.read_text(encoding="utf-8")))

    def write(self, file: Path = FILE) -> None:
        """Write the file, sorted, without what every architecture has by default."""
        understood = {
            name: ARCHITECTURE.dump_python(found, mode="json", exclude_defaults=True)
            for name, found in sorted(self.understood.items())
        }
        content: dict[str, Any] = {
            "transformers": self.transformers,
            "understood": understood,
            "refused": dict(sorted(self.refused.items())),
        }
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def reason(self, model_type: object) -> str:
        """Return why a model of a type that is neither registered nor understood is refused."""
        return self.refused.get(
            str(model_type), f"transformers {self.transformers} has no causal language model of this type"
        )
