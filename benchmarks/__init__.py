"""One script a claim: each measures both sides in the same run and prints the ratio."""
