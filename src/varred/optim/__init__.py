"""Gradient estimators and optimizers. This room needs torch alone.

:class:`SVRG` wraps any :class:`torch.optim.Optimizer`; :class:`STORM` is one.
:mod:`varred.optim.reference` holds the literal float64 transcription of every algorithm in the book.
"""

from varred.optim.batch import Batch
from varred.optim.storm import STORM
from varred.optim.svrg import SVRG

__all__ = ["STORM", "SVRG", "Batch"]
