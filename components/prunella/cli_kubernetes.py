"""`prunella kubernetes`: what a cluster is asked to run, as manifests to look at or to hand on."""

from typing import Annotated

import typer
import yaml

from prunella.cli_options import Root, absolute
from prunella.records import Stage

app = typer.Typer(no_args_is_help=True, help="Manifests for a cluster. Nothing is sent anywhere.")


@app.callback()
def _group() -> None:
    """A callback keeps `render` a word of its own while it is the only command."""


@app.command()
def render(
    name: Annotated[Stage, typer.Argument(help="Which stage.")],
    root: Root,
    request: Annotated[str, typer.Option(help="Key of the request to answer.")],
    exclude: Annotated[list[str] | None, typer.Option(help="Node to stay off; repeatable.")] = None,
    settings: Annotated[str | None, typer.Option(help="Cluster settings (TOML).")] = None,
) -> None:
    """Print the manifest that answers one request: a Pod, or a TrainJob for a stage that spans nodes."""
    from prunella.launch.kubernetes.render import manifest, read_launch
    from prunella.launch.kubernetes.settings import load_settings

    launch = read_launch(name, root=absolute(root), key=request, excluded=tuple(exclude or ()))
    print(yaml.safe_dump(manifest(launch, load_settings(settings)), sort_keys=False, width=120), end="")
