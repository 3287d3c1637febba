"""The quantization pipeline, as Kubeflow Pipelines takes it.

    fetch ── plan ── calibrate ── smooth ──┬─ quantize 0:8  ─┐
                                           ├─ quantize 8:16 ─┼─ merge ── validate ──┬─ publish
                                           └─ quantize 16:24 ┘                      └─ gate

Only receipts of a few KB travel between the steps; weights and activations stay in the store.
"""

import json
from pathlib import Path

from kfp import compiler, dsl

from components.calibrate.component import calibrate
from components.fetch.component import fetch
from components.gate.component import gate
from components.merge.component import merge
from components.plan.component import plan
from components.publish.component import publish
from components.quantize.component import quantize
from components.smooth.component import smooth
from components.validate.component import validate
from quantlib.config import load_config
from quantlib.recipe import SHIPPED_RECIPES

# In one line: kfp writes a default into a comment of the compiled file without minding its line
# breaks, and the form of the Kubeflow UI has a single line for text, with an editor for JSON.
DEFAULT_RECIPE = json.dumps(load_config(SHIPPED_RECIPES / "gptq.yaml"))


def _step(task: dsl.PipelineTask) -> dsl.PipelineTask:
    # Kubeflow's cache goes by an image's name and by ids of artifacts; neither says what is in
    # them. The store knows by digest what is done already, so every step may always run.
    return task.set_caching_options(enable_caching=False)


@dsl.pipeline(name="quantize")
def quantize_pipeline(
    store: str,
    recipe: str = DEFAULT_RECIPE,
    source: str = "",
    num_ranges: int = 0,
    destination: str = "",
    device: str = "auto",
) -> None:
    """Quantizes a model for vLLM, proves it against the original and publishes it.

    Args:
        store: Address of the store that holds the bulk of every step: a folder.
        recipe: Recipe, as YAML or JSON text.
        source: A folder, a .gguf file, or hf://org/name@revision. Empty: the recipe's model.
        num_ranges: Ranges of blocks that are quantized in parallel. 0: the recipe's.
        destination: Folder to publish in. Empty: the recipe's.
        device: auto, cpu or cuda.
    """
    fetched = _step(fetch(recipe=recipe, source=source, store=store))
    model = fetched.outputs["model"]
    planned = _step(plan(recipe=recipe, num_ranges=num_ranges, store=store, model=model))
    calibrated = _step(
        calibrate(
            recipe=recipe,
            store=store,
            device=device,
            model=model,
            plan=planned.outputs["plan"],
        )
    )
    calibration = calibrated.outputs["calibration"]
    smoothed = _step(smooth(recipe=recipe, store=store, model=model, calibration=calibration))
    with dsl.ParallelFor(planned.outputs["ranges"]) as block_range:
        range_quantized = _step(
            quantize(
                recipe=recipe,
                block_range=block_range,
                store=store,
                device=device,
                model=model,
                calibration=calibration,
                smoothing=smoothed.outputs["smoothing"],
            )
        )
    merged = _step(
        merge(
            recipe=recipe,
            store=store,
            model=model,
            quantized=dsl.Collected(range_quantized.outputs["quantized"]),
        )
    )
    checkpoint = merged.outputs["checkpoint"]
    validated = _step(
        validate(recipe=recipe, store=store, device=device, model=model, checkpoint=checkpoint)
    )
    with dsl.If(validated.outputs["verdict"] == "passed"):
        _step(
            publish(
                recipe=recipe,
                destination=destination,
                store=store,
                checkpoint=checkpoint,
                validation=validated.outputs["validation"],
            )
        )
    with dsl.Else():
        _step(gate(reason=validated.outputs["reason"]))


def compile_pipeline(path: Path) -> None:
    """Writes the compiled pipeline, creating the folder that it goes to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(quantize_pipeline, str(path))
