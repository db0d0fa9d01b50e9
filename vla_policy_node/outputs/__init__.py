"""Output folders: only files that this project wrote are ever replaced or removed."""
