"""The entry of the command line. Errors raised on purpose become one clear line; anything else keeps its traceback."""

import sys

from prunella import logs
from prunella.errors import PrunellaError
from prunella.redaction import redacted

EXIT_ERROR = 2


def main() -> None:
    """Run the command line."""
    logs.print_where_told()
    from prunella.cli import app

    try:
        app()
    except PrunellaError as error:
        print(redacted(f"prunella: {error}"), file=sys.stderr)
        sys.exit(EXIT_ERROR)


if __name__ == "__main__":
    main()
