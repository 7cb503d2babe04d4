"""What text models compute, one module a family: tokenize (pre), one batch through the network (core), shape (post)."""
