"""Service: a FastAPI application over exported bundles, on ONNX Runtime and FAISS, without torch."""
