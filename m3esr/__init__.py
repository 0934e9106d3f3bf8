"""The command line and the HTTP client."""
