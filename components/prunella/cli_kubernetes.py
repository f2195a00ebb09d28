"""`prunella kubernetes`: what a cluster is asked to run, as manifests to look at, and what its nodes show of our ledger."""

from typing import Annotated

import typer
import yaml

from prunella.cli_options import Root, absolute, fleet_of, store_of
from prunella.records import Stage

app = typer.Typer(no_args_is_help=True, help="Manifests for a cluster, and what its nodes show.")


@app.command()
def render(
    name: Annotated[Stage, typer.Argument(help="Which stage.")],
    root: Root,
    request: Annotated[str, typer.Option(help="Key of the request to answer.")],
    exclude: Annotated[list[str] | None, typer.Option(help="Node to stay off; repeatable.")] = None,
    settings: Annotated[str | None, typer.Option(help="Cluster settings (TOML).")] = None,
) -> None:
    """Print the manifest that answers one request: a Pod, or a TrainJob for a stage that spans nodes. Sends nothing."""
    from prunella.launch.kubernetes.render import manifest, read_launch
    from prunella.launch.kubernetes.settings import load_settings

    launch = read_launch(name, root=absolute(root), key=request, excluded=tuple(exclude or ()))
    print(yaml.safe_dump(manifest(launch, load_settings(settings)), sort_keys=False, width=120), end="")


@app.command()
def nodes(
    root: Root,
    fleet: Annotated[str | None, typer.Option(help="Fleet file; the experiments' own otherwise.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read the nodes and say what would be sent.")] = False,
) -> None:
    """Show the node ledger to the cluster: cordons as taints, states and roles as labels. Repeated, it sends what changed."""
    from prunella.fleet.commands import node_table
    from prunella.orchestration.cluster_nodes import check_all_shown, show_nodes

    shown = show_nodes(node_table(store_of(root), fleet_of(root, fleet)), is_dry_run=dry_run)
    for found in shown:
        print(f"{found.node}: {found.outcome}{', ' if found.detail else ''}{found.detail}")
    check_all_shown(shown)
