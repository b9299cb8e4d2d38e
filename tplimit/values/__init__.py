"""What a variable is in the limit: powers of the width, coefficients, parity, what is unknown."""
