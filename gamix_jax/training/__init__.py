"""Training, from a config to the last checkpoint. Read `loop` first.

loop        the training loop: steps, logging, validation, checkpoints
workdir     creates a run's folder, or checks that the run may continue in it
validation  metrics and pictures of held-out images
monitor     warnings about the GAN, the latent codes and the input pipeline
progress    progress bar and log lines
writer      metrics.jsonl, PNG
trackers    TensorBoard, Weights & Biases, MLflow
profiling   profiler trace of selected steps
"""
