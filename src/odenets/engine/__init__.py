"""What runs a solve: the loops, the record of their steps, and the reverse of that."""
