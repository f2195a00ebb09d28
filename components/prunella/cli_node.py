"""`prunella node`: list, cordon and uncordon the nodes of a fleet."""

from typing import Annotated

import typer
from rich.table import Table

from prunella.cli_options import Root, fleet_of, out, store_of

app = typer.Typer(no_args_is_help=True, help="List, cordon and uncordon nodes.")

Node = Annotated[str, typer.Argument(help="Name of the node.")]
Fleet = Annotated[str | None, typer.Option(help="Fleet file; the experiments' own otherwise.")]


@app.command("list")
def node_list(root: Root, fleet: Fleet = None) -> None:
    """Every node, its state, and the last word about it."""
    from prunella.fleet.commands import node_table

    table = Table("node", "role", "devices", "state", "owner", "reason")
    for row in node_table(store_of(root), fleet_of(root, fleet)):
        table.add_row(row.name, str(row.role or ""), str(row.devices or ""), row.state, str(row.owner or ""), row.reason or "")
    out.print(table)


@app.command("cordon")
def node_cordon(name: Node, root: Root, reason: Annotated[str, typer.Option(help="Why.")], fleet: Fleet = None) -> None:
    """Keep a node out of training."""
    from prunella.fleet.commands import cordon_node

    print(cordon_node(store_of(root), fleet_of(root, fleet), name, reason=reason))


@app.command("uncordon")
def node_uncordon(
    name: Node,
    root: Root,
    reason: Annotated[str, typer.Option(help="What was repaired, or why not.")],
    override: Annotated[bool, typer.Option("--override", help="Available at once, without a gate; recorded.")] = False,
    fleet: Fleet = None,
) -> None:
    """Return a node: it trains again once it passed a gate."""
    from prunella.fleet.commands import uncordon_node

    print(uncordon_node(store_of(root), fleet_of(root, fleet), name, reason=reason, is_override=override))
