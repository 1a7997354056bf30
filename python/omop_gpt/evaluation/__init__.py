"""Fidelity, privacy and utility of synthetic patients, beside real ones and anchors."""
