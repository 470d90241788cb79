"""A stack's databases and files, copied into a store of backups and back."""
