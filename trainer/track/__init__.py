"""Trackers that people use (TensorBoard, Weights & Biases, MLflow, trackio, SwanLab), fed from a run's files."""
