"""Random programs, each compared with itself at finite width: `make fuzz SECONDS=600`."""
