"""Independent references for the tests of tplimit: numpy and plain JAX, never tplimit itself.

`linear`      exact limits of deep linear networks (an algebra of Gaussian sources)
`integrable`  the leading coefficient of f_t in an integrable network, exact and measured
`dmft`        Monte Carlo of the muP limit with explicit fields and corrections
`dense`       ordinary networks over widths and seeds
`golden`      published data, tables of known numbers and the programs they belong to
`statistics`  two-sample tests, slopes and thresholds
"""
