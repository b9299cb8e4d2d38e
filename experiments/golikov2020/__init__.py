r"""Golikov: infinite-width limits of classifiers with one hidden layer.

Claims of E. A. Golikov, *Dynamically Stable Infinite-Width Limits of Neural Classifiers*
([arXiv 2006.06574](https://arxiv.org/abs/2006.06574), G-DS below), and *Towards a General Theory of
Infinite-Width Limits of Neural Classifiers* ([arXiv 2003.05884](https://arxiv.org/abs/2003.05884),
G-GT). Initial weights and learning rates of a network $f = \sum_r a_r \varphi(w_r \cdot x)$ follow
powers of $\rho = d / d^*$, the width over that of a *reference* network, 128 as in the sources:

$$
\sigma = \sigma^* \rho^{q_\sigma}, \qquad \hat\eta = \hat\eta^* \rho^{\tilde q}; \qquad
e_0 = q_\sigma + \tfrac12, \quad e_K = \tilde q + 2 q_\sigma + 1, \quad s = q_\sigma + \tilde q
$$

are then the exponents of the initial logits, of the tangent kernel and the increments of the
logits, and of the relative increments of the weights. All of it is run from the same few lines of
plain JAX, at finite widths and at infinite width.

What differs from the sources: their data, two classes of CIFAR-10, are not available here, and are
replaced by random points and by scikit-learn's handwritten digits (3 against 8). Weights are
Gaussian of variance 1/fan-in, not uniform. The theory is for any data; orderings of
limits by their distance from a network are not.
"""
