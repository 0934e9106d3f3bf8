"""Modality experts, their attention temperatures (Eq. 15) and the fusion (Eq. 14)."""
