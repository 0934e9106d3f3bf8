"""Load: what the service costs and holds, measured on loopback against real processes. LOAD=full for real figures."""
