"""The backends of a layer: the compiled extension, its operators, plain PyTorch, and one ONNX node."""
