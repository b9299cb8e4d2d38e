"""Claims of papers measured again, and their pages."""
