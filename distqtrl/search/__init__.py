"""The automatic choice of bit widths: trainings with quantization, shared out over processes, and what is chosen."""
