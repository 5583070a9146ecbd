"""Bundle and frames in, restored frames out. No torch, no onnx."""
