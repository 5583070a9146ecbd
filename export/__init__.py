"""Trained networks out: ONNX graphs and bundles. Needs the `train` extra (torch, onnx)."""
