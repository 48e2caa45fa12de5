"""The statistics of BatchNorm: those of the new images, and which of both to take."""
