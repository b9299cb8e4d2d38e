"""What has been compiled, kept by what it computes."""
