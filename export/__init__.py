"""Export networks to TorchScript and ONNX and build engines from them; needs torch."""
