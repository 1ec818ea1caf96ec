"""Engine adapters. An engine's packages are imported here and nowhere else."""
