"""DVIB: a second, perturbed pass through the hidden layer, around any model and only while training.

Paper: "DVIB: Towards Robust Multimodal Recommender Systems via Variational Information Bottleneck Distillation",
WWW 2025, Section 3. Nothing in here takes part in inference.
"""
