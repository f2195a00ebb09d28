"""`prunella recipe`: the named configurations, and what they weigh."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Named configurations.")


@app.command("list")
def recipe_list() -> None:
    """Names of the recipes."""
    from prunella.recipes import RECIPES

    for name in RECIPES:
        print(name)


@app.command("show")
def recipe_show(
    name: Annotated[str, typer.Argument(help="Name of the recipe.")],
    world_size: Annotated[int | None, typer.Option(min=1, help="Devices in all; the recipe's nodes by default.")] = None,
    expert_parallel: Annotated[int, typer.Option(min=0, help="Devices that share a layer's experts; 0 chooses.")] = 0,
    as_toml: Annotated[bool, typer.Option("--toml", help="The configuration, as an experiment.toml.")] = False,
) -> None:
    """Parameters, memory a device and FLOPs a token of a recipe on a mesh, from the model built on the meta device."""
    from prunella import config_text
    from prunella.model.accounting import describe
    from prunella.recipes import recipe

    chosen = recipe(name)
    if as_toml:
        print(config_text.to_toml(chosen))
        return
    for line in describe(chosen, world_size=world_size or chosen.nodes, expert_parallel=expert_parallel).lines():
        print(line)
