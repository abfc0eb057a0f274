"""A job's output, tables, and notes on stderr: how answers of the server become text for people and programs."""
