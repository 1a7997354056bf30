"""Learn to write patient histories from an OMOP warehouse, and write new ones."""

__version__ = "0.1.0"
