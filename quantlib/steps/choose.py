"""choose: from what ranges measured to the scheme of every linear, for the budget of a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from quantlib.checks.recipe import recipe_from_text
from quantlib.recipe import Recipe
from quantlib.report.build import SEARCH_NAME, read_json
from quantlib.scheme_rules import SchemeRule
from quantlib.search.candidates import rules_of, search_space, with_rules
from quantlib.search.choosing import Errors, choose
from quantlib.search.solve import solver_name
from quantlib.steps.contract import StepCall
from quantlib.steps.delivery import deliver
from quantlib.steps.layout import open_receipt
from quantlib.steps.measure import ERRORS_NAME
from quantlib.store import Receipt, StepOutput, Store, commit_step


def choose_schemes(
    store: Store, recipe: Recipe, model: Receipt, measured: Sequence[Receipt]
) -> Receipt:
    """Chooses schemes.

    Args:
        store: Where the steps' files are.
        recipe: With a budget.
        model: Receipt of the fetch step.
        measured: Receipts of the measure steps, in any order.

    Returns:
        A receipt with what was found, :class:`quantlib.search.outcome.Outcome`, and the facts
        ``rules``, ``chosen``, how many parts got each candidate, ``bits`` and ``predicted_kl``.

    Raises:
        InvalidInputError: Nothing can be found for the budget.
    """
    section = recipe.quantization
    assert section.budget is not None

    def work(output: StepOutput) -> None:
        checkpoint, adapter = open_receipt(store, model)
        space = search_space(recipe, checkpoint, adapter)
        outcome = choose(space, _errors(store, measured), section.budget or "")
        output.add_bytes(SEARCH_NAME, outcome.to_json())
        chosen = {(each.block, each.name): each.chosen for each in outcome.choices}
        rules = rules_of(space, chosen, adapter)
        output.facts["rules"] = [rule.model_dump(mode="json") for rule in rules]
        output.facts["chosen"] = dict(Counter(chosen.values()).most_common())
        output.facts["bits"] = round(outcome.chosen.bits, 4)
        output.facts["predicted_kl"] = outcome.chosen.kl

    parameters = {"budget": section.budget, "solver": solver_name()}
    inputs = {"model": model} | {
        f"measured {receipt.parameters['range']}": receipt for receipt in measured
    }
    return commit_step(store, "choose", parameters, inputs, work)


def _errors(store: Store, measured: Sequence[Receipt]) -> Errors:
    found: dict[tuple[int, str], dict[str, float]] = {}
    for receipt in measured:
        for block, of_block in read_json(store, receipt, ERRORS_NAME).items():
            found |= {(int(block), name): each for name, each in of_block.items()}
    return found


def searched_recipe(recipe: Recipe, chosen: Receipt) -> Recipe:
    """The recipe with what was chosen in the place of its budget.

    Args:
        recipe: With a budget.
        chosen: Receipt of the choose step.
    """
    rules = [SchemeRule.model_validate(rule) for rule in chosen.facts["rules"]]
    return with_rules(recipe, rules, chosen.address)


def main(call: StepCall) -> None:
    store, recipe = call.store(), recipe_from_text(call.text("recipe"))
    receipt = choose_schemes(store, recipe, call.receipt("model"), call.receipts("measured"))
    deliver(call, "chosen", store, receipt)
    call.write_parameter("searched_recipe", searched_recipe(recipe, receipt).canonical_json())
