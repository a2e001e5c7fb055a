"""Others' tables: one file for each layout, beside the contract that they keep."""

from sayso.formats.imports._contract import (
    Column,
    Context,
    Entry,
    Picture,
    RowError,
    TableImport,
    decode,
    load_import,
    read_rows,
    table_files,
)

__all__ = [
    "Column",
    "Context",
    "Entry",
    "Picture",
    "RowError",
    "TableImport",
    "decode",
    "load_import",
    "read_rows",
    "table_files",
]
