"""What runs on the vehicle: the torch-free runtime, prediction on images and video, the ONNX export."""
