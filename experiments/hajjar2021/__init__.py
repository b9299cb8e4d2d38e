"""Integrable parameterizations of deep networks

Karl Hajjar, Lénaïc Chizat, Christophe Giraud, *Training Integrable Parameterizations of Deep Neural
Networks in the Infinite-Width Limit*, arXiv [2110.15596](https://arxiv.org/abs/2110.15596). Numbers
of statements are those of the paper; L counts hidden layers, f_t is the network after t steps, η
the base learning rate, p the degree of the activation (φ(z) = z^p for z > 0). What the source does
not fix: squared loss, one sample per step, inputs of dimension 3, two test points A and B, and a
bias in the first layer, which carries no factor of the input dimension. The limits are
`tp.train(..., width=tp.inf)` of the same JAX functions that train the finite networks.
"""
