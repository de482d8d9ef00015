"""The command line: `app` and one file per command. Files here import nothing heavy at the top, so that `--help` and `list` answer at once."""
