"""Random parameters as users declare them: widths, scales, laws."""
