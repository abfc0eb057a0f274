"""Text from outside: made printable, stripped of secrets, or split into words as a shell does."""
