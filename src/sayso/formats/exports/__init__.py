"""Layouts that other programs read: one file each, beside the contract that they keep."""

from sayso.formats.exports._contract import ExportFormat, load_format, need_pyarrow

__all__ = ["ExportFormat", "load_format", "need_pyarrow"]
