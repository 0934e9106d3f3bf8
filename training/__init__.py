"""Training of the compact networks from a folder of photographs."""
