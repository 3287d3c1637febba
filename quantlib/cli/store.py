"""``quantlib store``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from quantlib.store import Store

_EXAMPLES = """\b
Examples:
  quantlib store ls s3://bucket/store
  quantlib store verify .quantlib/store
  quantlib store gc s3://bucket/store --keep-days 30 --dry-run
"""
_ADDRESS = click.argument("address", metavar="STORE")


@click.group(epilog=_EXAMPLES)
def store() -> None:
    """List, verify and clean a store: a folder, or s3://bucket/prefix."""


@store.command("ls", epilog=_EXAMPLES)
@_ADDRESS
def list_command(address: str) -> None:
    """List the steps in STORE, the newest last."""
    from quantlib.report.text import size
    from quantlib.store.inventory import take_inventory

    inventory = take_inventory(_opened(address))
    table = _table("step", "key", "written (UTC)", "files", "size", "state")
    for folder in inventory.folders:
        table.add_row(
            folder.step,
            folder.key[:12],
            f"{folder.modified:%Y-%m-%d %H:%M}",
            str(len(folder.files)),
            size(folder.bytes),
            "committed" if folder.committed else "unfinished",
        )
    console = Console(highlight=False)
    console.print(table)
    total = sum(folder.bytes for folder in inventory.folders)
    console.print(f"{len(inventory.folders)} steps, {size(total)}")


@store.command(epilog=_EXAMPLES)
@_ADDRESS
def verify(address: str) -> None:
    """Read and hash every file of every committed step in STORE; exit 1 where one is damaged."""
    from quantlib.errors import StoreError
    from quantlib.progress import progress_bar
    from quantlib.store.inventory import take_inventory, verify_folder

    opened = _opened(address)
    folders = [folder for folder in take_inventory(opened).folders if folder.committed]
    faults: list[str] = []
    with progress_bar("Verifying", sum(f.bytes for f in folders), "bytes") as advance:
        for folder in folders:
            faults += verify_folder(opened, folder, advance)
    for fault in faults:
        click.echo(fault)
    if faults:
        raise StoreError(opened.address, f"{len(faults)} faults; such steps are done again")
    click.echo(f"{len(folders)} steps are as their receipts say")


@store.command(epilog=_EXAMPLES)
@_ADDRESS
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="Keep steps of this age, and all that they and published checkpoints rest on.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
def gc(address: str, keep_days: float, dry_run: bool) -> None:
    """Remove from STORE what no published checkpoint and no recent step rests on.

    So are unfinished steps and uploads that are older than a day. Published checkpoints themselves
    lie elsewhere and are not touched.
    """
    from quantlib.report.text import size
    from quantlib.store.inventory import find_garbage, remove_folder, take_inventory

    opened = _opened(address)
    garbage = find_garbage(opened, take_inventory(opened), timedelta(days=keep_days))
    table = _table("what", "why", "size")
    for folder, reason in garbage.folders:
        table.add_row(f"{folder.step} {folder.key[:12]}", reason, size(folder.bytes))
    for leftover in garbage.leftovers:
        table.add_row(leftover.description, "its writer is gone", "")
    console = Console(highlight=False)
    if table.rows:
        console.print(table)
    total = size(sum(folder.bytes for folder, _ in garbage.folders))
    if dry_run:
        console.print(f"would free {total}; nothing was removed")
        return
    for folder, _ in garbage.folders:
        remove_folder(opened, folder)
    for leftover in garbage.leftovers:
        leftover.remove()
    console.print(f"freed {total}")


def _opened(address: str) -> Store:
    """The store; a folder has to be there, or a slip of the pen would look like an empty store."""
    from quantlib.errors import InvalidInputError
    from quantlib.store import LocalStore, open_store

    opened = open_store(address)
    if isinstance(opened, LocalStore) and not opened.root.is_dir():
        raise InvalidInputError.one(f"store {address}", "there is no such folder")
    return opened


def _table(*header: str) -> Table:
    table = Table(*header, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns:
        if column.header in ("files", "size"):
            column.justify = "right"
    return table
