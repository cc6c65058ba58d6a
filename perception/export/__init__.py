"""From a trained network to one verified ONNX file: graph, embedded preprocessing, parity, FP16, INT8."""
