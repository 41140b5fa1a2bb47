"""One file a command: parsing, printing, exit codes, nothing else."""
