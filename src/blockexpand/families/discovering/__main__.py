"""`python -m blockexpand.families.discovering CONFIG.json`: the family file that structure gives, to begin one with."""

from __future__ import annotations

import sys

from blockexpand.errors import BlockexpandError, UsageError
from blockexpand.families.discovering.finding import discover
from blockexpand.families.discovering.stating import as_toml
from blockexpand.families.known import not_per_layer
from blockexpand.records import read_json


def main(arguments: list[str]) -> int:
    """Print the file; the exit code is 2 when there is nothing to find."""
    try:
        if len(arguments) != 1:
            raise UsageError(f"{len(arguments)} arguments; expected one, the path of a config.json")
        config = read_json(arguments[0])
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise UsageError(f"{arguments[0]} has no model_type; expected a model's config.json")
        print(as_toml(discover(config, not_per_layer())), end="")
    except BlockexpandError as error:
        print(f"blockexpand: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
