"""STAC: catalogues as a source of scenes, and the catalogue of an output."""
