"""Variance-reduced optimization: the estimators, models and measurements behind the book.

Import the rooms by name, e.g. ``from varred.optim import SVRG``; importing ``varred`` itself loads nothing else.
"""

__version__ = "0.1.0"
