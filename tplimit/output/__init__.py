"""What leaves the library: figures, files, progress bars."""
