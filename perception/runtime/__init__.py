"""Running an exported network on a vehicle or a robot: numpy, OpenCV and ONNX Runtime. No torch."""
