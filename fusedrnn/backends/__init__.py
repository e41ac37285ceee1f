"""What can run a layer: the compiled extension, its operators, plain PyTorch, and one node of ONNX."""
