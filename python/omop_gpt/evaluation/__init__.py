"""Fidelity, privacy and utility of synthetic patients, against real ones and anchors."""
