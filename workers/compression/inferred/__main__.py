"""Write `inferred.json`: what is found of every causal language model of transformers that is not registered.

python -m workers.compression.inferred          # takes minutes; `make architectures`
"""

import sys
import warnings
from collections.abc import Iterable
from dataclasses import replace

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from modelpress.spec.architectures import ARCHITECTURES, INFERRED, Inferred
from workers.compression.inferred.block import NotUnderstood
from workers.compression.inferred.infer import infer
from workers.compression.inferred.streaming import may_be_shallower, require_streamed


def main(model_types: Iterable[str]) -> None:
    """Look at each model type, and write what was found of it."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    INFERRED.understood.clear()
    refused: dict[str, str] = {}
    for model_type in model_types:
        try:
            INFERRED.understood[model_type] = found = infer(model_type)
            require_streamed(model_type)
            INFERRED.understood[model_type] = replace(found, fixed_depth=not may_be_shallower(model_type))
        except NotUnderstood as error:
            INFERRED.understood.pop(model_type, None)
            refused[model_type] = str(error)
        sys.stderr.write(f"{model_type}: {refused.get(model_type, 'understood')}\n")
    Inferred(transformers.__version__, INFERRED.understood, refused).write()


if __name__ == "__main__":
    main(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in ARCHITECTURES)
