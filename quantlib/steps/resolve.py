"""resolve: which release an address means now, and whether its checkpoint is published already.

It comes first in the watch pipeline, whose other steps run only where something is to be done.
"""

from __future__ import annotations

from quantlib.report.text import markdown_list, short_digests
from quantlib.steps.contract import StepCall
from quantlib.watching.jobs import Job, find_job


def main(call: StepCall) -> None:
    job = find_job(
        call.recipe_choice(),
        call.text("destination"),
        call.texts("images"),
        source=call.text("source"),
        num_ranges=call.integer("num_ranges"),
    )
    if job.published is None:
        print(f"{job.release.address}: to be quantized, job {job.digest}", flush=True)
    else:
        print(f"{job.release.address}: up to date: {job.published}", flush=True)
    call.write_summary(_page(job))
    call.write_parameter("needed", "yes" if job.published is None else "no")
    call.write_parameter("release", job.release.address)
    call.write_parameter("job", job.digest)


def _page(job: Job) -> str:
    """What was found, as the Markdown that a run's page shows."""
    found = "to be quantized" if job.published is None else "published already"
    rows = [("release", job.release.address), ("job", job.digest)]
    if job.published is not None:
        rows.append(("published at", job.published))
    lines = [f"# resolve: {found}", "", *markdown_list(rows)]
    return short_digests("\n".join(lines))
