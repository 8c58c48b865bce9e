"""Write the compressed model in every format that the recipe asks for, each into a directory named after it.

The files written here are the ones that are measured, packaged and verified. A method such as `auto` may leave plain or
factored matrices; a format that does not support the outcome is then left out.
"""

import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter

from modelpress.contract.codes import FailureCode
from modelpress.contract.recipe import Recipe
from modelpress.spec.formats import FORMATS, MAIN, Format
from modelpress.spec.methods import Leaves, method_of
from workers.compression.formats import writer_of
from workers.compression.overlay import Overlay
from workers.messages import AttemptFailed
from workers.stages import compress, inspect, names, quantise
from workers.stages.context import Context
from workers.stages.stage import Stage

log = logging.getLogger(__name__)

SIZES = "sizes.json"


class Stored(BaseModel):
    """The size of a written checkpoint.

    Attributes:
        parameters: parameters that it represents.
        bytes: bytes of its weights on disk.
        rounded: whether weights were rounded for it, so that it is measured on its own.
    """

    model_config = ConfigDict(frozen=True)

    parameters: int
    bytes: int
    rounded: bool


_SIZES: TypeAdapter[dict[str, Stored]] = TypeAdapter(dict[str, Stored])


def require_libraries(recipe: Recipe) -> None:
    """Check, before anything is computed, that the libraries of the recipe's formats are installed.

    Raises:
        AttemptFailed: one of them is not.
    """
    for form in (FORMATS[name] for name in recipe.formats):
        if form.library is not None and find_spec(form.library) is None:
            message = f"this worker cannot write {form.name}: install modelpress[{form.extra}] there"
            raise AttemptFailed(FailureCode.MISSING_EXTRA, message)


def run(context: Context, directory: Path) -> None:
    """Write every suitable format, and the size of each."""
    overlay = Overlay.open(inspect.model_dir(context), compress.finished_parts(context))
    wanted, stored = suitable(context.assignment.recipe, overlay), dict[str, Stored]()
    for number, form in enumerate(wanted):
        context.progress(number / len(wanted), f"writing {form.title}")
        destination = directory / form.name
        shutil.rmtree(destination, ignore_errors=True)
        result = quantise.overlay_for(context, form)
        written = writer_of(form.name).write(result, destination)
        rounded = bool(result.codes)
        stored[form.name] = Stored(parameters=written.parameters, bytes=written.bytes, rounded=rounded)
    (directory / SIZES).write_bytes(_SIZES.dump_json(stored))


def suitable(recipe: Recipe, overlay: Overlay) -> tuple[Format, ...]:
    """Return the recipe's formats without those that do not support the result.

    Only a method that may leave plain or factored matrices drops formats; for any other, the recipe was checked before.
    """
    found, left = [], Leaves.FACTORED if overlay.is_factored else Leaves.PLAIN
    for form in (FORMATS[name] for name in recipe.formats):
        reason = form.refuses(overlay.inventory, left)
        if reason is not None and method_of(recipe.method).leaves is Leaves.EITHER:
            log.warning("the result is not written as %s: %s", form.name, reason)
        else:
            found.append(form)
    return tuple(found)


def sizes(context: Context) -> dict[str, Stored]:
    """Return the size of each written checkpoint by the name of its format."""
    return _SIZES.validate_json((context.results[names.WRITE] / SIZES).read_bytes())


def written(context: Context) -> tuple[Format, ...]:
    """Return the written formats in the order of the recipe."""
    return tuple(FORMATS[name] for name in sizes(context))


def directory_of(context: Context, name: str = MAIN) -> Path:
    """Return the directory with the checkpoint in the format `name`."""
    return context.results[names.WRITE] / name


STAGE = Stage(names.WRITE, run)
