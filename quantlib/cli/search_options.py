"""The options of a search for schemes, which several commands have."""

from __future__ import annotations

import click

budget_option = click.option(
    "--budget",
    help="Search schemes for what the checkpoint may take: 4.5bits, 6.2GB, or kl=0.02.",
)
candidates_option = click.option(
    "--candidates",
    callback=lambda _context, _option, value: value and value.split(","),
    help="With a budget, what linears may become: W4A16:32,W8A16,exact.",
)
search_options = (budget_option, candidates_option)
