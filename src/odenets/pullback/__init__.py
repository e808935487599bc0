"""f and its pullback: which tensors f reaches, and f differentiated by autograd or as a graph."""
