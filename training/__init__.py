"""Fits, evaluates and exports the models. Runs from the checkout: `python -m training ...` (extra `train`)."""

import engines as engines  # before torch, onnxruntime and timm: it keeps them from calling their makers
