"""`prunella fault`: what can be broken on purpose."""

import typer
from rich.table import Table

from prunella import faults
from prunella.cli_options import out

app = typer.Typer(no_args_is_help=True, help="Faults that can be injected.")


@app.command("list")
def fault_list() -> None:
    """What can be broken on purpose."""
    table = Table("fault", "what it does")
    for kind, (required, optional, text) in faults.KINDS.items():
        names = [f"{name}=..." for name in required] + [f"\\[{name}=...]" for name in optional]
        table.add_row(f"{kind}:{','.join(names)}", text)
    out.print(table)
