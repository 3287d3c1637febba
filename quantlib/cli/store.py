"""``quantlib store``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from quantlib.cli.result_options import print_json, progress, result_options

if TYPE_CHECKING:
    from quantlib.store import Store
    from quantlib.store.base import StoredFile
    from quantlib.store.inventory import Inventory

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
@result_options
def list_command(address: str, as_json: bool, quiet: bool) -> None:
    """List the steps in STORE, the last used at the end."""
    from quantlib.report.text import size
    from quantlib.store.inventory import take_inventory
    from quantlib.store.leases import holders

    opened = _opened(address)
    with progress(quiet=quiet):
        inventory, in_flight = take_inventory(opened), [str(each) for each in holders(opened)]
    if as_json:
        print_json("store", _listed(inventory) | {"in_flight": in_flight})
        return
    table = _table("step", "key", "last used (UTC)", "files", "size", "state")
    for step in inventory.steps:
        table.add_row(
            step.step,
            step.key[:12],
            f"{step.used:%Y-%m-%d %H:%M}",
            str(len(step.receipt.files)) if step.receipt else "",
            size(step.bytes),
            "committed" if step.receipt else "damaged",
        )
    for (name, key), files in _unfinished(inventory).items():
        row = (f"{max(file.modified for file in files):%Y-%m-%d %H:%M}", str(len(files)))
        table.add_row(name, key[:12], *row, size(sum(file.bytes for file in files)), "unfinished")
    console = Console(highlight=False)
    console.print(table)
    for holder in in_flight:
        console.print(f"in flight: {holder}")
    console.print(f"{len(inventory.steps)} steps, {size(_bytes(inventory))}")


def _listed(inventory: Inventory) -> dict[str, Any]:
    """What a store holds, for machines."""
    return {
        "steps": [
            {
                "step": step.step,
                "key": step.key,
                "used": step.used.isoformat(),
                "files": len(step.receipt.files) if step.receipt else None,
                "bytes": step.bytes,
                "state": "committed" if step.receipt else "damaged",
            }
            for step in inventory.steps
        ],
        "unfinished": [
            {
                "step": name,
                "key": key,
                "used": max(file.modified for file in files).isoformat(),
                "files": len(files),
                "bytes": sum(file.bytes for file in files),
            }
            for (name, key), files in _unfinished(inventory).items()
        ],
        "bytes": _bytes(inventory),
    }


def _unfinished(inventory: Inventory) -> dict[tuple[str, str], list[StoredFile]]:
    """The files of steps that were not committed, by the step and its key."""
    found: dict[tuple[str, str], list[StoredFile]] = {}
    for path, file in sorted(inventory.unfinished.items()):
        _, name, key, *_rest = path.split("/")
        found.setdefault((name, key), []).append(file)
    return found


def _bytes(inventory: Inventory) -> int:
    return sum(file.bytes for file in (inventory.blobs | inventory.unfinished).values())


@store.command(epilog=_EXAMPLES)
@_ADDRESS
def verify(address: str) -> None:
    """Read and hash every file in STORE; exit 1 where one is damaged or missing."""
    from quantlib.errors import StoreError
    from quantlib.runtime.progress import progress_bar
    from quantlib.store.inventory import take_inventory, verify_blob, verify_steps

    opened = _opened(address)
    inventory = take_inventory(opened)
    faults = list(verify_steps(opened, inventory))
    blobs = inventory.blobs.values()
    with progress_bar("Verifying", sum(blob.bytes for blob in blobs), "bytes") as advance:
        found = (verify_blob(opened, blob, advance) for blob in blobs)
        faults += [fault for fault in found if fault is not None]
    for fault in faults:
        click.echo(fault)
    if faults:
        raise StoreError(opened.address, f"{len(faults)} faults; such steps are done again")
    click.echo(
        f"{len(inventory.steps)} steps are as their receipts say, "
        f"and {len(blobs)} files have the digests that they are named by"
    )


@store.command(epilog=_EXAMPLES)
@_ADDRESS
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="Keep steps that were used within these days, and all that they rest on.",
)
@click.option(
    "--keep-published",
    type=click.IntRange(min=0),
    help="Keep so many checkpoints of each model that are published within STORE. Default: all.",
)
@click.option(
    "--grace-hours",
    type=click.FloatRange(min=0),
    default=24,
    show_default=True,
    help="Remove what an earlier call named so long ago. 0: at once; only while nothing runs.",
)
@click.option("--dry-run", is_flag=True, help="Show what may go, and change nothing.")
def gc(
    address: str,
    keep_days: float,
    keep_published: int | None,
    grace_hours: float,
    dry_run: bool,
) -> None:
    """Remove from STORE what no recent step, no step in flight and no published checkpoint needs.

    In two passes: one call names what is not needed, and a later one, after the grace, removes what
    nobody has taken since. Unfinished steps and uploads go when they are older than a day. A
    published checkpoint keeps its own files, not the model and the activations it was made from.
    What is published outside of STORE is not touched.
    """
    from quantlib.report.text import size
    from quantlib.store.garbage import Keep, collect, find_garbage

    opened = _opened(address)
    keep = Keep(timedelta(days=keep_days), keep_published, timedelta(hours=grace_hours))
    garbage = find_garbage(opened, keep)
    table = _table("what", "why", "size", "when")
    for path, (file, reason) in sorted(garbage.files.items()):
        when = "now" if path in garbage.removable else "after the grace"
        table.add_row(_short(path), reason, size(file.bytes), when)
    for leftover in garbage.leftovers:
        table.add_row(leftover.description, "its writer is gone", "", "now")
    console = Console(highlight=False)
    if table.rows:
        console.print(table)
    freed = size(garbage.bytes_of(garbage.removable))
    if dry_run:
        console.print(f"would free {freed}; nothing was removed")
        return
    collect(opened, garbage)
    later = size(garbage.bytes_of(garbage.files.keys() - garbage.removable))
    console.print(f"freed {freed}; {later} may go after the grace, if nobody needs it until then")


def _short(path: str) -> str:
    """A path with its digests shortened, as they are in `store ls`."""
    return "/".join(part[:12] if len(part) > 60 else part for part in path.split("/"))


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
