"""The networks of M3ESR (arXiv 2605.10470)."""
