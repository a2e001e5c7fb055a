"""The algorithms: one file each, beside the contract that they keep."""

from sayso.aligners._contract import NEEDS, Aligner, Batch, Context, load_aligner, stratified

__all__ = ["NEEDS", "Aligner", "Batch", "Context", "load_aligner", "stratified"]
