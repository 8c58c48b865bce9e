"""A method is one new file and its entry in the registry."""

import json

from tests.support.house import House

TOY = '''
"""A method that halves the hidden units of every MLP."""

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.dimensions import intermediate_size, resized_parameters
from modelpress.spec.inventory import Inventory
from modelpress.spec.methods.base import Leaves, Measured, MethodOptions, PlanningMethod
from modelpress.spec.plan import Plan
from modelpress.spec.ranges import Range
from modelpress.spec.steps import Narrow


class ToyOptions(MethodOptions):
    name: Literal["toy"] = "toy"
    keep: int = Field(2, ge=2, le=8, description="one in this many hidden units stays")


class Toy(PlanningMethod[ToyOptions]):
    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "fewer hidden units"
    description: ClassVar[str] = "Keeps one hidden unit in `keep`, for demonstration."
    leaves: ClassVar[Leaves] = Leaves.PLAIN
    options = ToyOptions

    def range(self, inventory: Inventory, options: ToyOptions) -> Range:
        return Range.around(self._plan(inventory, options).ratio)

    def plan(self, inventory: Inventory, ratio: float, options: ToyOptions, measured: Measured) -> Plan:
        self.range(inventory, options).require(ratio, self.name)
        return self._plan(inventory, options)

    def _plan(self, inventory: Inventory, options: ToyOptions) -> Plan:
        size = intermediate_size(inventory) // options.keep
        return Plan(
            method=self.name,
            steps=(Narrow(intermediate_size=size),),
            parameters_before=inventory.total_parameters,
            parameters_after=resized_parameters(inventory, (), size),
        )


TOY = Toy()
'''

ASK = """
import json
from modelpress.contract.recipe import Recipe
from app.jobs.catalogue import method_list

recipe = Recipe.model_validate(
    {"model": "local:x", "target_ratio": 1.3, "method": {"name": "toy", "keep": 4}}
)
(listed,) = (method for method in method_list().methods if method.name == "toy")
documented = "ToyOptions" in json.dumps(Recipe.model_json_schema())
sent = recipe.model_dump(mode="json")["method"]
print(json.dumps({"recipe": sent, "listed": listed.title, "documented": documented}))
"""

REGISTRY = "modelpress/spec/methods/__init__.py"


def test_a_method_is_one_file_and_its_entry_in_the_registry(house: House) -> None:
    house.add_file("modelpress/spec/methods/toy.py", TOY)
    house.add_line(REGISTRY, "REGISTERED: tuple[Method[Any], ...] = (", "from modelpress.spec.methods.toy import TOY")
    house.add_line(REGISTRY, "SVD,", "TOY,")
    assert json.loads(house.run("-c", ASK)) == {
        "recipe": {"name": "toy", "keep": 4},
        "listed": "fewer hidden units",
        "documented": True,
    }
    tested = house.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/modelpress/spec/test_methods.py", "-k", "toy"
    )
    assert "passed" in tested
