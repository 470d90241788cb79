"""What a command does when several components meet in it."""
