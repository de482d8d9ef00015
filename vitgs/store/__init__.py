"""What is kept on disk: rows, the table made from them, and which version of the code a row stands for."""
