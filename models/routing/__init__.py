"""Coarse network, uncertainty map (Eq. 13) and the router that turns both into expert weights."""
