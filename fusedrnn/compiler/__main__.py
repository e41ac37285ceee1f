"""``python -m fusedrnn.compiler show module:cell`` prints the struct that is generated from a cell."""

from __future__ import annotations

import argparse
import functools
import importlib
import sys

from .definition import Cell
from .groups import CellError


def find(reference: str) -> Cell:
    module, _, name = reference.partition(":")
    if not module or not name:
        raise SystemExit(f"{reference!r} names no cell: module:name, as in fusedrnn.zoo:mgu")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, CellError) as error:
        raise SystemExit(f"{reference}: {error}") from error
    if not isinstance(found, Cell):
        raise SystemExit(f"{reference} is no cell but of type {type(found).__name__}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fusedrnn.compiler", description="Cells written in Python")
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print the struct that is generated from a cell")
    show.add_argument("cell", help="module:name, as in fusedrnn.zoo:mgu")
    sys.path.insert(0, "")  # a module in this folder, as with python -m
    cell = find(parser.parse_args().cell)
    print(f"// {cell.__module__}.{cell.__qualname__}\n{cell.generate().text}", end="")


if __name__ == "__main__":
    main()
