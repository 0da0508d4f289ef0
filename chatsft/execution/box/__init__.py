"""What runs inside the sandbox. It is started by path with nothing but the standard library, and imports nothing else."""
