"""DICOM pixels: grayscale, palettes, series, isolated decoders."""
