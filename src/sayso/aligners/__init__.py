"""The algorithms: one file each, beside the contract that they keep."""

from sayso.aligners._batch import Batch
from sayso.aligners._contract import NEEDS, Aligner, load_aligner
from sayso.aligners._work import Work, means_of, predict_together, prompt_means, stratified

__all__ = [
    "NEEDS",
    "Aligner",
    "Batch",
    "Work",
    "load_aligner",
    "means_of",
    "predict_together",
    "prompt_means",
    "stratified",
]
