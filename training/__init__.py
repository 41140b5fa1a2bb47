"""Fits, evaluates and exports the models. Runs from the checkout: `python -m training ...` (extra `train`)."""
