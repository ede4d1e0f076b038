"""Trainings on one machine or on Slurm, and accelerate configurations, one a hardware shape."""
