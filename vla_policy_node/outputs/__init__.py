"""What this project writes: only our own files are ever replaced or removed."""
